"""Indexing shards that were made elsewhere: one pass over the tars, tables beside them.

What becomes of the entries of KEY.json (and of KEY.cls, as an entry `cls`):

- text and true/false: a category; its classes are the values found, sorted;
- numbers, whole ones too: a number, unless `--label NAME:category` says that they are the names of classes;
- KEY.cls: a category of its values, in numerical order;
- a text with more than `MAX_CLASSES` values, or of which most samples have their own (names of files): left out, like
  lists and nested entries; the report says so.
"""

import io
import json
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal, Self, cast

import xxhash

from hmtl_dist.config.dialect import parse_json
from hmtl_dist.data.dataset.index import table_key
from hmtl_dist.data.dataset.labels import MAX_CLASSES, MAX_NUMBER, LabelSpec
from hmtl_dist.data.dataset.pool import run_tasks
from hmtl_dist.data.dataset.schema import Field, IndexHeader, LabelValue
from hmtl_dist.data.dataset.tables import encode_table
from hmtl_dist.data.dataset.writing import (
    SampleRow,
    ShardRecord,
    sample_columns,
    shard_record,
    write_dataset,
    write_index,
)
from hmtl_dist.data.storage import Storage, open_storage
from hmtl_dist.data.storage.hashing import HashingReader
from hmtl_dist.errors import UserError

_PICTURES = ("jpg", "jpeg", "png")
_MAX_ENTRY_BYTES = 16 << 20
"""A KEY.json or KEY.cls larger than this is no set of labels."""

# In `fromtarfile` the name of the module is the name of an argument.
_READ_ERROR = tarfile.ReadError
_HEADER_ERROR = tarfile.HeaderError
_END = cast("type[Exception]", tarfile.EOFHeaderError)  # pyright: ignore[reportAttributeAccessIssue]  # left out of the stubs

JsonValue = str | float | bool | list[object] | dict[str, object] | None


@dataclass(frozen=True)
class ForeignReport:
    """What indexing found."""

    headers: Mapping[str, IndexHeader]
    """The index of each split."""
    left_out: Mapping[str, str]
    """Entries of KEY.json that became no label, and why."""
    without_picture: int
    """Samples without a jpg, jpeg or png; they are not in the index."""


@dataclass(frozen=True)
class _Scanned:
    """One tar; its rows wait on disk until the classes of all tars are known."""

    split: str
    key: str
    num_bytes: int
    sha256: bytes
    rows: Path
    without_picture: int
    seen: dict[str, "_Seen"]


@dataclass
class _Seen:
    """What values an entry of KEY.json had."""

    kinds: set[str] = field(default_factory=set[str])
    texts: set[str] = field(default_factory=set[str])
    count: int = 0

    def add(self, value: JsonValue) -> None:
        if value is None or value == "":
            return
        self.count += 1
        if isinstance(value, (list, dict)):
            self.kinds.add("nested")
            return
        self.kinds.add("number" if isinstance(value, (int, float)) and not isinstance(value, bool) else "text")
        if len(self.texts) <= MAX_CLASSES:
            self.texts.add(_as_text(value))

    def merge(self, other: "_Seen") -> None:
        self.kinds |= other.kinds
        self.texts |= other.texts
        self.count += other.count


@dataclass(frozen=True)
class _ScanJob:
    url: str
    split: str
    key: str
    rows: Path


@dataclass
class _Member:
    """The files of a tar that share a key, as far as they have been read."""

    key: str
    picture: tuple[int, int, int] | None = None
    entries: dict[str, JsonValue] = field(default_factory=dict[str, JsonValue])


def index_shards(
    url: str,
    *,
    labels: Sequence[LabelSpec] = (),
    group: str | None = None,
    num_workers: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ForeignReport:
    """Write the index of tars made by `webdataset.ShardWriter` or any other tool.

    A sample is a KEY.jpg (jpeg, png) with a KEY.json, a KEY.cls, or both.

    Tars in a folder of `url` form the split of that name. Tars in `url` itself form splits by their name without its
    number (`train-000000.tar` is of split `train`; without a name, `train`).

    Args:
        url: the data set.
        labels: what to make of entries whose kind is not told right by their values.
        group: entry that says whom a sample belongs to.
        num_workers: processes that read tars.
        on_progress: called with the tars done and the tars in all.

    Raises:
        UserError: when there are no tars, a tar is damaged, or has no pictures.
    """
    url = url.rstrip("/")
    storage = open_storage(url)
    tars = _find_tars(storage)
    with tempfile.TemporaryDirectory(prefix="hmtl-index-") as folder:
        tasks = (
            _ScanJob(url, split, key, Path(folder) / f"{number}.jsonl") for number, (split, key) in enumerate(tars)
        )
        scanned: list[_Scanned] = []
        on_progress(0, len(tars))
        for result in run_tasks(_scan, tasks, num_workers):
            scanned.append(result)
            on_progress(len(scanned), len(tars))
        scanned.sort(key=lambda shard: (shard.split, shard.key))
        fields, left_out = _infer_fields(scanned, labels, group)
        headers = _write_tables(storage, scanned, fields, group)
    return ForeignReport(headers, left_out, sum(shard.without_picture for shard in scanned))


def _find_tars(storage: Storage) -> list[tuple[str, str]]:
    """Split and key of every tar."""
    found: list[tuple[str, str]] = []
    compressed = ""
    for info in storage.list():
        folder, _, name = info.key.rpartition("/")
        if name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
            compressed = info.key
        if name.endswith(".tar") and "/" not in folder:
            split = folder or re.sub(r"[^A-Za-z]*\d.*$", "", name.removesuffix(".tar")) or "train"
            found.append((split, info.key))
    if not found:
        hint = (
            f"; {compressed} is compressed, and single samples cannot be read from it: unpack it" if compressed else ""
        )
        raise UserError(f"no shards (NAME.tar or SPLIT/NAME.tar) under {storage.url}{hint}")
    return found


@lru_cache(maxsize=2)
def _storage(url: str) -> Storage:
    return open_storage(url)


def _scan(task: _ScanJob) -> _Scanned:
    """Read one tar from end to end (in a worker process)."""
    seen: dict[str, _Seen] = {}
    without_picture = 0
    with _storage(task.url).open_read(task.key) as stream, task.rows.open("w") as rows:
        reader = HashingReader(stream)
        for member in _members(reader, f"{task.url}/{task.key}"):
            if member.picture is None:
                without_picture += 1
                continue
            for name, value in member.entries.items():
                seen.setdefault(name, _Seen()).add(value)
            rows.write(json.dumps([member.key, *member.picture, member.entries]) + "\n")
        reader.finish()  # what follows the last member belongs to the digest too
    return _Scanned(task.split, task.key, reader.size, reader.sha256.digest(), task.rows, without_picture, seen)


def _members(reader: HashingReader, where: str) -> Iterator[_Member]:
    """Files of the same key lie side by side, as webdataset groups them."""
    current: _Member | None = None
    try:
        with tarfile.open(fileobj=cast(BinaryIO, reader), mode="r|", tarinfo=_StrictInfo) as tar:
            for info in tar:
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  # else all headers stay in memory
                folder, slash, name = info.name.rpartition("/")
                key, _, extension = name.partition(".")
                if info.issym() or info.islnk():
                    raise UserError(
                        f"{where}: {_printable(info.name)} is a link, not a file: make the tar with files alone "
                        "(tar --dereference --hard-dereference)"
                    )
                if not info.isreg() or not key or not extension:
                    continue
                key = folder + slash + key
                if _printable(key) != key:
                    raise UserError(
                        f"{where}: the name {_printable(key)!r} is no UTF-8: rename it and make the tar again"
                    )
                if current is None or current.key != key:
                    if current is not None:
                        yield current
                    current = _Member(key)
                _add_file(current, tar, info, extension.lower(), where)
            _refuse_rest(tar)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{where} is damaged or no tar: {error}; make it again") from error
    if current is not None:
        yield current


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


def _add_file(member: _Member, tar: tarfile.TarFile, info: tarfile.TarInfo, extension: str, where: str) -> None:
    if extension not in (*_PICTURES, "json", "cls"):
        return
    if extension not in _PICTURES and info.size > _MAX_ENTRY_BYTES:
        raise UserError(f"{where}: {info.name} has {info.size} bytes, too many for labels")
    data = cast(io.BufferedReader, tar.extractfile(info)).read()
    if len(data) != info.size:
        raise UserError(f"{where} ends in the middle of {info.name}: make it again")
    if extension in _PICTURES:
        member.picture = (info.offset_data, info.size, xxhash.xxh3_64_intdigest(data))
        return
    if extension == "cls":
        member.entries["cls"] = data.decode(errors="replace").strip()
        return
    try:
        entries: object = parse_json(data)
        _refuse_surrogates(entries)
    except ValueError as error:
        raise UserError(f"{where}: {info.name} is no JSON: {error}") from error
    if isinstance(entries, dict):
        member.entries.update(cast(dict[str, JsonValue], entries))


def _printable(text: str) -> str:
    """A name of a tar without the bytes that are no UTF-8."""
    return text.encode(errors="replace").decode()


def _refuse_surrogates(entries: object) -> None:
    """Raise `ValueError` where a name or text holds half a character, which JSON can write and UTF-8 cannot."""
    json.dumps(entries, ensure_ascii=False).encode()


def _infer_fields(
    scanned: Sequence[_Scanned], labels: Sequence[LabelSpec], group: str | None
) -> tuple[dict[str, Field], dict[str, str]]:
    seen: dict[str, _Seen] = {}
    for shard in scanned:
        for name, values in shard.seen.items():
            seen.setdefault(name, _Seen()).merge(values)
    wanted = {spec.name: spec for spec in labels}
    for name in [*wanted, *([group] if group else [])]:
        if name not in seen:
            known = ", ".join(sorted(seen)) or "none"
            raise UserError(f"no sample has an entry {name!r}: the entries found are {known}")
    fields: dict[str, Field] = {}
    left_out: dict[str, str] = {}
    for name, values in seen.items():
        if name == group and name not in wanted:
            continue
        made = _field_of(name, values, wanted.get(name))
        if isinstance(made, Field):
            fields[name] = made
        else:
            left_out[name] = made
    return fields, left_out


def _field_of(name: str, values: _Seen, spec: LabelSpec | None) -> Field | str:
    """The field, or why there is none."""
    if spec is not None and spec.kind == "number":
        return Field(kind="number", unit=spec.unit)
    if spec is not None and spec.classes:
        return Field(kind="category", classes=spec.classes)
    if spec is None:
        if "nested" in values.kinds:
            return "holds lists or nested entries"
        if not values.texts:
            return "is empty in every sample"
        if values.kinds == {"number"}:
            return Field(kind="number")
        if len(values.texts) > MAX_CLASSES or len(values.texts) > max(values.count // 2, 20):
            return "has too many different values for a category"
    elif len(values.texts) > MAX_CLASSES:
        raise UserError(f"label {name!r} has more than {MAX_CLASSES} different values: it cannot be a category")
    return Field(kind="category", classes=tuple(sorted(values.texts, key=_class_order)))


def _class_order(name: str) -> tuple[int, float, str]:
    """Numbers by their value, before texts."""
    return (0, float(name), name) if re.fullmatch(r"-?\d+(\.\d+)?", name) else (1, 0.0, name)


def _as_text(value: JsonValue) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) and value.is_integer() else str(value)


def _write_tables(
    storage: Storage, scanned: Sequence[_Scanned], fields: Mapping[str, Field], group: str | None
) -> dict[str, IndexHeader]:
    dataset = storage.url.rstrip("/").rpartition("/")[2]
    headers: dict[str, IndexHeader] = {}
    for split in sorted({shard.split for shard in scanned}):
        records: list[ShardRecord] = []
        for shard in scanned:
            if shard.split != split:
                continue
            rows = list(_read_rows(shard, fields, group))
            if not rows:
                continue
            table = encode_table(sample_columns(rows, fields, group))
            storage.write(table_key(split, shard.key), table)
            records.append(shard_record(shard.key, table, fields, num_bytes=shard.num_bytes, sha256=shard.sha256))
        if not records:
            raise UserError(f"no sample of split {split} under {storage.url} has a jpg, jpeg or png: nothing to index")
        headers[split] = write_index(storage, dataset, split, records, fields=fields, group=group)
    write_dataset(storage, dataset, list(headers))
    return headers


def _read_rows(shard: _Scanned, fields: Mapping[str, Field], group: str | None) -> Iterator[SampleRow]:
    with shard.rows.open() as lines:
        for line in lines:
            key, offset, length, digest, entries = json.loads(line)
            labels = {name: _label(entries.get(name), name, one, shard.key) for name, one in fields.items()}
            whose = entries.get(group) if group else None
            yield SampleRow(key, offset, length, digest, labels, None if whose is None else _as_text(whose))


def _label(value: JsonValue, name: str, one: Field, where: str) -> LabelValue:
    if value is None or value == "":
        return None
    kind: Literal["category", "number"] = one.kind
    text = _as_text(value)
    if kind == "category":
        if text not in one.classes:
            raise UserError(f"{where}: {name} is {text!r}, not one of {', '.join(one.classes)}")
        return text
    try:
        number = float(text)
    except ValueError:
        raise UserError(f"{where}: {name} is {text!r}, not a number: give '--label {name}:category'") from None
    if abs(number) > MAX_NUMBER:
        raise UserError(f"{where}: {name} is {text}, too large for a label")
    return number
