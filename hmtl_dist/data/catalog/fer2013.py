"""FER2013: grey faces of 48 x 48 pixels found by web search (Goodfellow et al. 2013).

As one table, whose rows hold 2304 grey levels (also `icml_face_data.csv`, with other columns' order and spaces):

    fer2013.csv     emotion,pixels,Usage; Usage is Training, PublicTest (here val) or PrivateTest (here test)

or as the folders that are passed on, which do not part the two tests:

    train/angry/*.jpg ... test/surprise/*.jpg

Codes are 0 angry, 1 disgust, 2 fear, 3 happy, 4 sad, 5 surprise, 6 neutral. Pictures of the table are encoded anew.
"""

import csv
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from typing_extensions import override

from hmtl_dist.data.catalog.originals import (
    OriginalsAdapter,
    code,
    expression_field,
    first_of,
    pictures_under,
    stamp_of,
)
from hmtl_dist.data.catalog.registry import DataSet, NoOptions
from hmtl_dist.data.dataset.adapter import Adapter, Rejected, RejectedError, SampleRef
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.errors import UserError

SIDE = 48
USAGES: dict[str, str | None] = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
_NAMES = ("anger", "disgust", "fear", "happy", "sad", "surprise", "neutral")
_CODES: dict[str, str | None] = {str(number): name for number, name in enumerate(_NAMES)}
_FOLDERS: dict[str, str | None] = {"angry": "anger", **{name: name for name in _NAMES}}


class FerTable(Adapter):
    """The rows of a table of pixels.

    Args:
        table: the file.

    Raises:
        UserError: when it cannot be read or a column is missing.
    """

    def __init__(self, table: Path) -> None:
        self._table = table

    @property
    @override
    def fields(self) -> Mapping[str, Field]:
        return {"expression": expression_field(_NAMES)}

    @property
    @override
    def group(self) -> None:
        return None

    @property
    @override
    def splits(self) -> tuple[str, ...]:
        return ("train", "val", "test")

    @override
    def refs(self) -> Iterator[SampleRef | Rejected]:
        for name, row in self.rows():
            try:
                expression = code(row["emotion"], _CODES, "emotion")
                yield SampleRef(name, {"expression": expression}, split=code(row["Usage"], USAGES, "Usage"))
            except ValueError as error:
                yield Rejected(name, str(error))

    @override
    def stamp(self, ref: SampleRef) -> str:
        return stamp_of(self._table)

    @override
    def load(self, ref: SampleRef) -> bytes:
        starts = _line_starts(self._table)
        line = int(ref.name.rpartition(":")[2])
        with self._table.open("rb") as file:
            file.seek(starts[line - 1])
            text = file.read(starts[line] - starts[line - 1]).decode("utf-8", errors="replace")
        header = _header(self._table)
        cells = _cells(text)
        pixels = dict(zip(header, cells, strict=False)).get("pixels", "").split()
        if len(pixels) != SIDE * SIDE or not all(pixel.isdecimal() and int(pixel) < 256 for pixel in pixels):
            raise RejectedError(f"the row does not hold {SIDE * SIDE} grey levels from 0 to 255")
        picture = np.array(pixels, dtype=np.uint8).reshape(SIDE, SIDE)
        return cv2.imencode(".png", picture)[1].tobytes()

    def rows(self) -> Iterator[tuple[str, Mapping[str, str]]]:
        """Name and cells of every row, without the pixels."""
        header = _header(self._table)
        for column in ("emotion", "pixels", "Usage"):
            if column not in header:
                raise UserError(f"{self._table} has no column {column!r}: its columns are {', '.join(header)}")
        for line, (start, end) in enumerate(pairwise(_line_starts(self._table)), start=1):
            if line > 1 and end - start > 2:
                yield f"{self._table.name}:{line}", self._row(header, start, end)

    def _row(self, header: list[str], start: int, end: int) -> dict[str, str]:
        with self._table.open("rb") as file:
            file.seek(start)
            text = file.read(end - start).decode("utf-8", errors="replace")
        row = dict(zip(header, _cells(text), strict=False))
        return {name: row.get(name, "").strip() for name in header if name != "pixels"}


class FerFolders(OriginalsAdapter):
    """The folders."""

    @property
    @override
    def fields(self) -> Mapping[str, Field]:
        return {"expression": expression_field(_NAMES)}

    @property
    @override
    def splits(self) -> tuple[str, ...]:
        return ("train", "test")

    @override
    def refs(self) -> Iterator[SampleRef | Rejected]:
        for split in self.splits:
            for file in pictures_under(self._root / split):
                name = file.relative_to(self._root).as_posix()
                try:
                    expression = code(file.parent.name, _FOLDERS, "the folder")
                    yield SampleRef(name, {"expression": expression}, split=split)
                except ValueError as error:
                    yield Rejected(name, str(error))


def _header(table: Path) -> list[str]:
    starts = _line_starts(table)
    with table.open("rb") as file:
        first = file.read(starts[1]).decode("utf-8-sig", errors="replace") if len(starts) > 1 else ""
    return [cell.strip() for cell in _cells(first)]


def _cells(line: str) -> list[str]:
    """The cells of a line; none where it is damaged beyond reading."""
    try:
        return next(csv.reader([line]), list[str]())
    except csv.Error:
        return []


@lru_cache(maxsize=2)
def _line_starts(table: Path) -> list[int]:
    """Where each line begins, and the end of the file: a picture is then read without what is before it."""
    starts = [0]
    try:
        with table.open("rb") as file:
            for line in file:
                starts.append(starts[-1] + len(line))
    except OSError as error:
        raise UserError(f"cannot read {table}: {(error.strerror or str(error)).lower()}") from error
    return starts


def _open(source: Path, _: NoOptions) -> Adapter:
    found = first_of(source, "fer2013.csv", "fer2013/fer2013.csv", "icml_face_data.csv", "train", what="FER2013")
    return FerFolders(source) if found.is_dir() else FerTable(found)


DATASET = DataSet(
    name="fer2013",
    title="FER2013",
    labels=("expression",),
    licence="research only; the pictures belong to their owners",
    url="https://www.kaggle.com/c/challenges-in-representation-learning-facial-expression-recognition-challenge",
    splits="published",
    open=_open,
)
