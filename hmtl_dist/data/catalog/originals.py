"""What the adapters of published data sets share: finding, listing and reading files, and the names of classes."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from hmtl_dist.data.dataset.adapter import Adapter, Box, RejectedError, SampleRef
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.data.dataset.values import number_of
from hmtl_dist.data.drawn.face import EXPRESSIONS as LOOKS
from hmtl_dist.errors import UserError

MAX_FILE_BYTES = 256 << 20
"""A picture file larger than this is left out instead of being read into memory."""
PICTURE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})

EXPRESSIONS = tuple(LOOKS)
"""Names of expressions, the same in every set: neutral, happy, sad, surprise, fear, disgust, anger, contempt."""
GENDER = Field(kind="category", classes=("female", "male"))
SMILE = Field(kind="category", classes=("no", "yes"))
DEGREES = Field(kind="number", unit="degrees")
AGE = Field(kind="number", unit="years")

_FOREHEAD = 0.25
"""How much higher than its landmarks (brows to chin) a face is, as a share of their height."""


def expression_field(names: Sequence[str] = EXPRESSIONS) -> Field:
    """The label of an expression with only these names, in the order of AffectNet."""
    return Field(kind="category", classes=tuple(name for name in EXPRESSIONS if name in names))


class OriginalsAdapter(Adapter):
    """Samples whose names are paths of picture files under one local folder.

    Args:
        root: the folder.

    Raises:
        UserError: when there is no such folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UserError(f"no folder {root}: give the folder that the set was unpacked into")
        self._root = root

    @property
    @override
    def group(self) -> str | None:
        return None

    @override
    def stamp(self, ref: SampleRef) -> str:
        return stamp_of(self._root / ref.name)

    @override
    def load(self, ref: SampleRef) -> bytes:
        return read_original(self._root, ref.name)


def stamp_of(file: Path) -> str:
    """Size and time of change of a file, "" where it cannot be looked up."""
    try:
        status = file.stat()
    except (OSError, ValueError):
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"


def read_original(root: Path, name: str) -> bytes:
    """Bytes of the file `name` under `root`.

    Raises:
        RejectedError: when it leads out of the folder, is not there, is too large or cannot be read.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise RejectedError("the path leads out of the folder")
    try:
        file = root / path
        size = file.stat().st_size
        if size > MAX_FILE_BYTES:
            raise RejectedError(f"the file has {size >> 20} MiB, more than {MAX_FILE_BYTES >> 20}")
        return file.read_bytes()
    except FileNotFoundError:
        raise RejectedError("no such file") from None
    except OSError as error:
        raise RejectedError((error.strerror or str(error)).lower()) from error


def first_of(root: Path, *candidates: str, what: str) -> Path:
    """The first of some paths under `root` that is there: archives are unpacked with and without their outer folder.

    Args:
        root: the folder that was given.
        candidates: relative paths, the likeliest first.
        what: what they are, for the message.

    Raises:
        UserError: when none is there.
    """
    for candidate in candidates:
        if (root / candidate).exists():
            return root / candidate
    raise UserError(f"{root} holds no {what}: expected {' or '.join(candidates)} in it; see docs/datasets.md")


def pictures_under(folder: Path) -> Iterator[Path]:
    """Picture files under a folder, sorted, without hidden ones (`._x.jpg` that macOS leaves in archives)."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICTURE_ENDINGS and not path.name.startswith(".") and path.is_file():
            yield path


def read_csv(path: Path, wanted: Sequence[str], header: Sequence[str] | None = None) -> Iterator[Mapping[str, str]]:
    """Rows of a table with a header line; names and values are stripped, missing cells are "".

    Args:
        path: the file.
        wanted: columns that it must have.
        header: the columns of a file that may come without its header line.

    Raises:
        UserError: when it cannot be read, is no CSV file or lacks a column.
    """
    try:
        # utf-8-sig: spreadsheets put a byte order mark in front.
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, strict=True)  # else a stray quote swallows the rows behind it
            first = [cell.strip() for cell in next(rows, list[str]())]
            bare = header is not None and wanted[0] not in first
            names = list(header) if bare and header is not None else first
            for column in wanted:
                if column not in names:
                    raise UserError(f"{path} has no column {column!r}: its columns are {', '.join(names)}")
            if bare and first:
                yield _row(names, first)
            for row in rows:
                if row:
                    yield _row(names, row)
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no CSV file in UTF-8: {error}") from error


def _row(names: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    return {name: cells[place].strip() if place < len(cells) else "" for place, name in enumerate(names)}


def read_lines(path: Path, *, keep_empty: bool = False) -> list[str]:
    """Lines of a text file, stripped; those that are empty only where their number matters.

    Raises:
        UserError: when it cannot be read or is no text.
    """
    try:
        lines = (line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
        return [line for line in lines if line or keep_empty]
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8: {error}") from error


def code(text: str, codes: Mapping[str, str | None], name: str) -> str | None:
    """The class that a set writes as `text`.

    Raises:
        ValueError: when the set has no such code.
    """
    try:
        return codes[text]
    except KeyError:
        raise ValueError(f"{name} is {text!r}, not one of {', '.join(codes)}") from None


def number(text: str, name: str) -> float:
    """A number from its text, by the rules of `dataset.values`.

    Raises:
        ValueError: when it is none.
    """
    try:
        return number_of(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}, not a number") from None


def numbers(text: str, count: int, what: str) -> list[float]:
    """At least `count` finite numbers that are parted by white space.

    Raises:
        ValueError: when there are fewer, or something else between them.
    """
    try:
        values = [float(part) for part in text.split()]
    except ValueError:
        values = []
    if len(values) < count or not all(map(math.isfinite, values)):
        raise ValueError(f"{what} does not hold {count} numbers")
    return values


def landmark_box(points: NDArray[np.float64]) -> Box:
    """The face around landmarks that reach from the brows to the chin: as wide as they are, raised by the forehead.

    Args:
        points: in pixels [n, 2].
    """
    left, top = points.min(axis=0)
    right, bottom = points.max(axis=0)
    forehead = _FOREHEAD * (bottom - top)
    return Box(float(left), float(top - forehead), float(right - left), float(bottom - top + forehead))
