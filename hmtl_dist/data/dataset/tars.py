"""Tars that were made elsewhere: which there are, of which split each is, and what is in them.

A sample is the files of a tar that share a key: their path up to the first dot of the name, as webdataset has it. They
need not lie side by side, so pictures may come first and labels after them. The last part of the rest says what a file
is: `000.left.jpg` is a picture of the sample `000`. A sample has one picture, one KEY.json and one KEY.cls: of several
the first in the tar counts, and the others are named.
"""

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Self, cast

import xxhash

from hmtl_dist.config.dialect import parse_json
from hmtl_dist.data.dataset.split import SPLITS
from hmtl_dist.data.storage import Storage
from hmtl_dist.data.storage.hashing import HashingReader
from hmtl_dist.errors import UserError

PICTURES = ("jpg", "jpeg", "png", "webp")
"""What ends the name of a picture."""
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_GZIP = b"\x1f\x8b"
_MAX_ENTRY_BYTES = 16 << 20
"""A KEY.json or KEY.cls larger than this is no set of labels."""
_RUNNING_NUMBER = re.compile(r"\d+(of\d+)?", re.IGNORECASE)

# In `fromtarfile` the name of the module is the name of an argument.
_READ_ERROR = tarfile.ReadError
_HEADER_ERROR = tarfile.HeaderError
_END = cast("type[Exception]", tarfile.EOFHeaderError)  # pyright: ignore[reportAttributeAccessIssue]  # left out of the stubs

JsonValue = str | float | bool | list[object] | dict[str, object] | None


@dataclass(frozen=True)
class Found:
    """The tars of a data set."""

    tars: list[tuple[str, str]]
    """Split and key of each."""
    passed_over: dict[str, str]
    """What looks like shards and is not read, and why."""


@dataclass
class Member:
    """The files of a tar that share a key."""

    key: str
    picture: tuple[int, int, int] | None = None
    """Where its bytes begin, how many there are, and their digest."""
    entries: dict[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    kinds: set[str] = field(default_factory=set[str])
    """Which of `picture`, `json` and `cls` it has."""


@dataclass
class Contents:
    """What is in a tar."""

    members: dict[str, Member] = field(default_factory=dict[str, Member])
    """By key, in the order in which they begin."""
    doubled: list[str] = field(default_factory=list[str])
    """Files of a kind that their sample has already."""
    others: Counter[str] = field(default_factory=Counter[str])
    """Files that are neither pictures nor labels, counted by their ending."""


def find_tars(storage: Storage, split: str | None = None) -> Found:
    """Find the tars, in the folder itself or one deeper, and of which split each is.

    Args:
        storage: Of the data set.
        split: Of tars that lie in the folder itself, instead of what their names say.

    Raises:
        UserError: There are none.
    """
    own: list[str] = []
    found: list[tuple[str, str]] = []
    passed_over: dict[str, str] = {}
    for info in storage.list():
        folder, _, name = info.key.rpartition("/")
        if name.endswith(_COMPRESSED):
            passed_over[info.key] = "is compressed, and single samples cannot be read from it: unpack it"
        elif not name.endswith(".tar"):
            continue
        elif "/" in folder:
            passed_over[info.key] = "lies deeper than SPLIT/NAME.tar: move it"
        elif folder:
            found.append((folder, info.key))
        else:
            own.append(info.key)
    named = dict.fromkeys(own, split) if split else splits_of(own)
    found += [(name, key) for key, name in named.items()]
    if not found:
        hint = "".join(f"; {key} {reason}" for key, reason in list(passed_over.items())[:1])
        raise UserError(f"no shards (NAME.tar or SPLIT/NAME.tar) under {storage.url}{hint}")
    return Found(sorted(found, key=lambda one: one[1]), passed_over)


def splits_of(keys: Sequence[str]) -> dict[str, str]:
    """Say of which split each tar is, by what tells their names apart beside the running number.

    `train-000000` is of `train`; of `imagenet1k-train-0000` and `imagenet1k-validation-0000` one is of `train` and one
    of `val`; `01-val` is of `val`; a name without any word is of `train`.

    Args:
        keys: Names of the tars.
    """
    words = {key: tuple(filter(_is_word, re.split(r"[-_.]+", key.removesuffix(".tar")))) for key in keys}
    kinds = sorted(set(words.values()))
    begin, end = 0, 0
    if len(kinds) > 1:
        shortest = min(map(len, kinds))
        while begin < shortest and len({kind[begin] for kind in kinds}) == 1:
            begin += 1
        while end < shortest - begin and len({kind[len(kind) - 1 - end] for kind in kinds}) == 1:
            end += 1
    rests = {kind: kind[begin : len(kind) - end] for kind in kinds}
    plain = {kind: "-".join(rest) or "train" for kind, rest in rests.items()}
    usual = {kind: _usual(rest) or plain[kind] for kind, rest in rests.items()}
    apart = len(set(usual.values())) == len(kinds)  # `val` and `validation` beside one another stay two
    return {key: (usual if apart else plain)[kind] for key, kind in words.items()}


def _usual(words: Sequence[str]) -> str | None:
    """Our name of the one word that names a split, None where there is none or there are several."""
    known = [SPLITS[word.lower()] for word in words if word.lower() in SPLITS]
    return known[0] if len(known) == 1 else None


def _is_word(part: str) -> bool:
    return part != "" and _RUNNING_NUMBER.fullmatch(part) is None


def read_tar(reader: HashingReader, where: str) -> Contents:
    """Read a tar from end to end.

    Raises:
        UserError: It is damaged, no tar, or holds what cannot be read in part: links, names that are no UTF-8.
    """
    contents = Contents()
    try:
        with tarfile.open(fileobj=cast(BinaryIO, reader), mode="r|", tarinfo=_StrictInfo) as tar:
            for info in tar:
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  # else all headers stay in memory
                if info.issym() or info.islnk():
                    raise UserError(
                        f"{where}: {_printable(info.name)} is a link, not a file: make the tar with files alone "
                        "(tar --dereference --hard-dereference)"
                    )
                if info.isreg():
                    _add_file(contents, tar, info, where)
            _refuse_rest(tar)
    except (tarfile.TarError, EOFError) as error:
        hint = (
            "it is compressed, whatever its name says: unpack it" if reader.head.startswith(_GZIP) else "make it again"
        )
        raise UserError(f"{where} is damaged or no tar: {error}; {hint}") from error
    return contents


class _StrictInfo(tarfile.TarInfo):
    """A header that must be whole: `tarfile` takes a torn one for the end, and what follows would go missing unseen."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except _END:
            raise
        except _HEADER_ERROR as error:
            raise _READ_ERROR(f"{error} at byte {tarfile.offset}") from error


def _refuse_rest(tar: tarfile.TarFile) -> None:
    """Read what follows the mark of the end; anything but zeros is a part that would be left out."""
    stream = cast(BinaryIO, tar.fileobj)
    while rest := stream.read(1 << 20):
        if rest.count(0) != len(rest):
            raise tarfile.ReadError("there is more behind its end")


def _add_file(contents: Contents, tar: tarfile.TarFile, info: tarfile.TarInfo, where: str) -> None:
    folder, slash, name = info.name.rpartition("/")
    stem, _, ending = name.partition(".")
    if not stem or not ending:  # ._ files of macOS among them
        return
    key = folder + slash + stem
    if _printable(key) != key:
        raise UserError(f"{where}: the name {_printable(key)!r} is no UTF-8: rename it and make the tar again")
    last = ending.rpartition(".")[2].lower()
    kind = "picture" if last in PICTURES else last
    if kind not in ("picture", "json", "cls"):
        contents.others[last] += 1
        return
    member = contents.members.setdefault(key, Member(key))
    if kind in member.kinds:
        contents.doubled.append(info.name)
        return
    member.kinds.add(kind)
    if kind != "picture" and info.size > _MAX_ENTRY_BYTES:
        raise UserError(f"{where}: {info.name} has {info.size} bytes, too many for labels")
    data = cast(io.BufferedReader, tar.extractfile(info)).read()
    if len(data) != info.size:
        raise UserError(f"{where} ends in the middle of {info.name}: make it again")
    if kind == "picture":
        member.picture = (info.offset_data, info.size, xxhash.xxh3_64_intdigest(data))
    elif kind == "cls":
        member.entries["cls"] = data.decode(errors="replace").strip()
    else:
        member.entries |= _entries(data, f"{where}: {info.name}")


def _entries(data: bytes, where: str) -> dict[str, JsonValue]:
    try:
        entries: object = parse_json(data)
        json.dumps(entries, ensure_ascii=False).encode()  # half a character, which JSON can write and UTF-8 cannot
    except ValueError as error:
        raise UserError(f"{where} is no JSON: {error}") from error
    return cast(dict[str, JsonValue], entries) if isinstance(entries, dict) else {}


def _printable(text: str) -> str:
    """A name of a tar without the bytes that are no UTF-8."""
    return text.encode(errors="replace").decode()
