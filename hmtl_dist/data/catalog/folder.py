"""Adapter of a folder of pictures with a table of labels (CSV with a header line)."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath

from typing_extensions import override

from hmtl_dist.data.catalog.registry import DataSet
from hmtl_dist.data.dataset.adapter import Adapter, Rejected, RejectedError, SampleRef
from hmtl_dist.data.dataset.labels import MAX_CLASSES, LabelSpec, is_missing, read_value
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.data.storage import Storage, open_storage
from hmtl_dist.errors import UserError

MAX_FILE_BYTES = 256 << 20
"""A picture file larger than this is left out instead of being read into memory."""


class FolderAdapter(Adapter):
    """Pictures under a folder (or an `s3://` prefix), one row of a CSV file each.

    Args:
        source: the folder.
        labels: the CSV file; a relative path that is not there is looked for in `source`.
        file_column: column with the picture's path under `source`.
        specs: columns to keep as labels; the classes of a category without given ones are the values found, sorted.
        group: column that says whom a picture belongs to, None for none.

    Raises:
        UserError: when the folder or the file cannot be read, or a column is missing.
    """

    def __init__(
        self, source: str, labels: Path, *, file_column: str, specs: Sequence[LabelSpec], group: str | None = None
    ) -> None:
        if "://" not in source and not Path(source).is_dir():
            raise UserError(f"no folder {source}: give the folder that holds the pictures")
        self._source = source
        beside = Path(source) / labels
        self._labels = beside if not labels.exists() and beside.is_file() else labels
        self._file_column = file_column
        self._group = group
        self._check_columns([file_column, *(spec.name for spec in specs), *([group] if group else [])])
        self._fields = self._find_fields(specs)

    @property
    @override
    def fields(self) -> Mapping[str, Field]:
        return self._fields

    @property
    @override
    def group(self) -> str | None:
        return self._group

    @override
    def refs(self) -> Iterator[SampleRef | Rejected]:
        seen: set[str] = set()
        for line, row in self._rows():
            name = (row.get(self._file_column) or "").strip()
            try:
                _refuse_ragged(row)
                ref = self._ref(name, row)
            except ValueError as error:
                yield Rejected(name or f"line {line}", str(error))
                continue
            if ref.name in seen:  # it could fall to both sides of a split
                yield Rejected(ref.name, f"line {line} lists the file again")
                continue
            seen.add(ref.name)
            yield ref

    @override
    def load(self, ref: SampleRef) -> bytes:
        storage = _storage(self._source)
        if not storage.exists(ref.name):
            raise RejectedError(f"no such file under {self._source}")
        size = storage.stat(ref.name).size
        if size > MAX_FILE_BYTES:
            raise RejectedError(f"the file has {size >> 20} MiB, more than {MAX_FILE_BYTES >> 20}")
        return storage.read(ref.name)

    def _ref(self, name: str, row: Mapping[str, str | None]) -> SampleRef:
        path = PurePosixPath(name)
        if not name:
            raise ValueError(f"column {self._file_column} is empty")
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
            raise ValueError("the path leads out of the folder")
        labels = {label: read_value(row.get(label) or "", label, field) for label, field in self._fields.items()}
        group = (row.get(self._group) or "").strip() if self._group else ""
        return SampleRef(path.as_posix(), labels, group or None)

    def _rows(self) -> Iterator[tuple[int, Mapping[str, str | None]]]:
        try:
            # utf-8-sig: spreadsheets put a byte order mark in front.
            with self._labels.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file, strict=True)  # else a stray quote swallows the rows behind it
                for row in reader:
                    yield reader.line_num, row
        except OSError as error:
            raise UserError(f"cannot read {self._labels}: {error.strerror}; give the CSV file with --labels") from error
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{self._labels} is no CSV file in UTF-8: {error}") from error

    def _header(self) -> list[str]:
        with self._labels.open(newline="", encoding="utf-8-sig") as file:
            return next(csv.reader(file, strict=True), list[str]())

    def _check_columns(self, wanted: Sequence[str]) -> None:
        _, first = next(self._rows(), (0, None))
        if first is None:
            raise UserError(f"{self._labels} has no rows: give a CSV file with a header line and a row a picture")
        twice = [name for name in wanted if self._header().count(name) > 1]
        if twice:
            raise UserError(f"{self._labels} has two columns {twice[0]!r}: name each column once")
        for column in wanted:
            if column not in first:
                known = ", ".join(name for name in first if name)
                separator = next((one for one in ";\t|" if one in known and "," not in known), None)
                hint = f"; separate them by commas, not by {separator!r}" if separator else ""
                raise UserError(f"{self._labels} has no column {column!r}: its columns are {known}{hint}")

    def _find_fields(self, specs: Sequence[LabelSpec]) -> dict[str, Field]:
        found: dict[str, set[str]] = {
            spec.name: set() for spec in specs if spec.kind == "category" and not spec.classes
        }
        if found:
            for _, row in self._rows():
                for name, values in found.items():
                    values.add((row.get(name) or "").strip())
                    if len(values) > MAX_CLASSES:
                        raise UserError(
                            f"column {name!r} has more than {MAX_CLASSES} different values: if it holds numbers give "
                            f"'--label {name}:number', else leave it out"
                        )
        fields: dict[str, Field] = {}
        for spec in specs:
            if spec.kind == "number":
                fields[spec.name] = Field(kind="number", unit=spec.unit)
                continue
            classes = spec.classes or tuple(sorted(value for value in found[spec.name] if not is_missing(value)))
            if not classes:
                raise UserError(f"column {spec.name!r} is empty in every row: leave it out")
            fields[spec.name] = Field(kind="category", classes=classes)
        return fields


def _refuse_ragged(row: Mapping[str, str | None]) -> None:
    """Raise `ValueError` for a row that is cut short or too long: its values may be those of other columns."""
    if None in row or None in row.values():
        raise ValueError("the row has more or fewer cells than the header line")


@lru_cache(maxsize=4)
def _storage(url: str) -> Storage:
    """One client a process and folder: making one for every picture would cost more than reading it."""
    return open_storage(url)


DATASET = DataSet(
    name="folder",
    title="a folder with a CSV file",
    labels=("columns of the file",),
    licence="yours",
    url="",
    splits="train=0.8,val=0.2",
    group="a column of the file",
)
