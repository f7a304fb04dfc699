"""One's own pictures: a folder with a table of labels (CSV with a header line), or with a folder a class."""

import csv
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath

from typing_extensions import override

from hmtl_dist.config.base import Section
from hmtl_dist.data.catalog.class_folders import ClassFolders
from hmtl_dist.data.catalog.originals import MAX_FILE_BYTES
from hmtl_dist.data.catalog.registry import DataSet
from hmtl_dist.data.dataset.adapter import Adapter, Rejected, RejectedError, SampleRef
from hmtl_dist.data.dataset.labels import MAX_CLASSES, LabelSpec, parse_labels, read_value
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.data.dataset.split import ORDER, SPLITS
from hmtl_dist.data.dataset.values import class_of, group_of, is_missing
from hmtl_dist.data.storage import ObjectInfo, ObjectMissingError, Storage, open_storage
from hmtl_dist.errors import UserError

MAX_SPLITS = 20
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
"""How an absolute path begins on Windows."""
MAX_NAME_BYTES = 255
"""Longest name of a file on the usual file systems."""


class FolderAdapter(Adapter):
    """Pictures under a folder (or an `s3://` prefix), one row of a CSV file each.

    Args:
        source: the folder.
        labels: the CSV file; a relative path that is not there is looked for in `source`.
        file_column: column with the picture's path under `source`.
        specs: columns to keep as labels; the classes of a category without given ones are the values found, sorted.
        group: column that says whom a picture belongs to, None for none.
        split_column: column that says which split a picture is in, None for none; train, val and test go by several
            names (`dataset.split.SPLITS`).

    Raises:
        UserError: when the folder or the file cannot be read, or a column is missing.
    """

    def __init__(
        self,
        source: str,
        labels: Path,
        *,
        file_column: str,
        specs: Sequence[LabelSpec],
        group: str | None = None,
        split_column: str | None = None,
    ) -> None:
        if "://" not in source and not Path(source).is_dir():
            raise UserError(f"no folder {source}: give the folder that holds the pictures")
        self._source = source
        self._roots = _roots(source)
        beside = Path(source) / labels
        self._labels = beside if not labels.exists() and beside.is_file() else labels
        self._file_column = file_column
        self._group = group
        self._split_column = split_column
        named = [name for name in (group, split_column) if name is not None]
        self._check_columns([file_column, *(spec.name for spec in specs), *named])
        self._fields = self._find_fields(specs)
        self._splits = self._find_splits()

    @property
    @override
    def fields(self) -> Mapping[str, Field]:
        return self._fields

    @property
    @override
    def group(self) -> str | None:
        return self._group

    @property
    @override
    def splits(self) -> tuple[str, ...]:
        return self._splits

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
            same = unicodedata.normalize("NFC", ref.name)
            if same in seen:  # it could fall to both sides of a split
                yield Rejected(ref.name, f"line {line} lists the file again")
                continue
            seen.add(same)
            yield ref

    @override
    def stamp(self, ref: SampleRef) -> str:
        try:
            return _stat(_storage(self._source), ref.name).etag
        except ObjectMissingError:
            return ""

    @override
    def load(self, ref: SampleRef) -> bytes:
        storage = _storage(self._source)
        try:
            file = _stat(storage, ref.name)
        except ObjectMissingError:
            raise RejectedError(f"no such file under {self._source}") from None
        if file.size > MAX_FILE_BYTES:
            raise RejectedError(f"the file has {file.size >> 20} MiB, more than {MAX_FILE_BYTES >> 20}")
        return storage.read(file.key)

    def _ref(self, name: str, row: Mapping[str, str | None]) -> SampleRef:
        if not name:
            raise ValueError(f"column {self._file_column} is empty")
        path = PurePosixPath(self._below(name.replace("\\", "/")))  # which separates the parts on Windows
        if path.is_absolute() or ".." in path.parts or _DRIVE.match(name) or "\0" in name or not path.parts:
            raise ValueError("the path leads out of the folder")
        if any(len(part.encode()) > MAX_NAME_BYTES for part in path.parts):
            raise ValueError(f"a part of the path is longer than {MAX_NAME_BYTES} bytes, which no file's name is")
        labels = {label: read_value(row.get(label) or "", label, field) for label, field in self._fields.items()}
        group = group_of(row.get(self._group)) if self._group else None
        return SampleRef(path.as_posix(), labels, group, split=self._split_of(row))

    def _below(self, name: str) -> str:
        """Take the folder itself off a path that begins with it."""
        for root in self._roots:
            if name.startswith(root):
                return name[len(root) :].lstrip("/")
        return name

    def _split_of(self, row: Mapping[str, str | None]) -> str | None:
        if self._split_column is None:
            return None
        given = (row.get(self._split_column) or "").strip()
        if not given:
            raise ValueError(f"column {self._split_column} is empty")
        return SPLITS.get(given.lower(), given)

    def _find_splits(self) -> tuple[str, ...]:
        """The splits of the table, those of `ORDER` first."""
        if self._split_column is None:
            return ()
        found: dict[str, str] = {}
        for _, row in self._rows():
            given = (row.get(self._split_column) or "").strip()
            if not given or _is_ragged(row):
                continue
            name = SPLITS.get(given.lower(), given)
            if found.setdefault(name, given).lower() != given.lower():
                raise UserError(
                    f"column {self._split_column!r} has {found[name]!r} and {given!r}, which are one split: call it "
                    f"{name} in every row"
                )
            if len(found) > MAX_SPLITS:
                raise UserError(f"column {self._split_column!r} has more than {MAX_SPLITS} different values: no splits")
        if odd := sorted(name for name in found if not _NAME.fullmatch(name)):
            raise UserError(f"column {self._split_column!r} has {odd[0]!r}: name splits with letters, digits, - and _")
        if not found:
            raise UserError(f"column {self._split_column!r} is empty in every row: leave it out")
        return (*(name for name in ORDER if name in found), *sorted(found.keys() - set(ORDER)))

    def _rows(self) -> Iterator[tuple[int, Mapping[str, str | None]]]:
        begun = 2
        try:
            # utf-8-sig: spreadsheets put a byte order mark in front.
            with self._labels.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file, strict=True)
                reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
                for row in reader:
                    _refuse_swallowed(self._labels, row, begun, reader.line_num)
                    begun = reader.line_num + 1
                    yield reader.line_num, row
        except OSError as error:
            raise UserError(f"cannot read {self._labels}: {error.strerror}; give the CSV file with --labels") from error
        except csv.Error as error:
            where = f"the row that begins in line {begun}"
            raise UserError(f"{self._labels}: {where} is no CSV ({error}): is a quote not closed?") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{self._labels} is no CSV file in UTF-8: {error}") from error

    def _header(self) -> list[str]:
        with self._labels.open(newline="", encoding="utf-8-sig") as file:
            return [name.strip() for name in next(csv.reader(file, strict=True), list[str]())]

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
                    values.add(class_of(row.get(name) or ""))
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


def _refuse_swallowed(file: Path, row: Mapping[str, str | None], begun: int, ended: int) -> None:
    """Refuse a cell that holds what look like whole rows: its quote is closed far behind it, by another row's.

    Raises:
        UserError: One does.
    """
    if begun == ended:
        return
    for column, cell in row.items():
        inner = cell.splitlines()[1:-1] if isinstance(cell, str) else []
        if any(line.count(",") == len(row) - 1 for line in inner):
            raise UserError(
                f"{file}: column {column!r} of the row that begins in line {begun} goes on to line {ended} and holds "
                "other rows: a quote is not closed"
            )


def _is_ragged(row: Mapping[str, str | None]) -> bool:
    return None in row or None in row.values()


def _refuse_ragged(row: Mapping[str, str | None]) -> None:
    """Raise `ValueError` for a row that is cut short or too long: its values may be those of other columns."""
    if _is_ragged(row):
        raise ValueError("the row has more or fewer cells than the header line")


def _roots(source: str) -> tuple[str, ...]:
    """How paths begin that name the folder itself, the longest first; none where the folder is named by a dot."""
    if "://" in source:
        return (f"{source.rstrip('/')}/",)
    folder = Path(source)
    return tuple(sorted({f"{one.as_posix()}/" for one in (folder.absolute(), folder.resolve())}, key=len, reverse=True))


def _stat(storage: Storage, name: str) -> ObjectInfo:
    """Find a file by its name, which tables and file systems may write with accents as letters of their own or not.

    Raises:
        ObjectMissingError: There is none.
    """
    try:
        return storage.stat(name)
    except ObjectMissingError:
        for form in ("NFC", "NFD"):
            other = unicodedata.normalize(form, name)
            if other != name and storage.exists(other):
                return storage.stat(other)
        raise


@lru_cache(maxsize=4)
def _storage(url: str) -> Storage:
    """One client a process and folder: making one for every picture would cost more than reading it."""
    return open_storage(url)


class Options(Section):
    """How the folder is read."""

    labels: Path | None = None
    """CSV file with a header line and a row a picture, also one in SRC; without it SRC has a folder a class."""
    label: tuple[str, ...] = ()
    """NAME, NAME:category:CLASS,CLASS or NAME:number[:UNIT] of a column to keep; may be given several times. Without a
    CSV file the name of what the folders are, otherwise `expression`."""
    file_column: str = "file"
    """Column with the picture's path under SRC."""
    group: str | None = None
    """Column that says whom a picture belongs to."""
    split_column: str | None = None
    """Column that says which split a picture is in, such as train, val or test."""


def open_folder(source: str, options: Options) -> Adapter:
    """The adapter of a folder with a CSV file, or of one with a folder a class.

    Raises:
        UserError: when what is asked for does not go together, or is not there.
    """
    specs = parse_labels(options.label)
    if options.labels is not None:
        if not specs:
            raise UserError("no label is named: give at least one, like --label expression or --label age:number:years")
        return FolderAdapter(
            source,
            options.labels,
            file_column=options.file_column,
            specs=specs,
            group=options.group,
            split_column=options.split_column,
        )
    if options.group or options.split_column or options.file_column != "file":
        raise UserError("--group, --file-column and --split-column name columns of a CSV file: give it with --labels")
    if len(specs) > 1 or any(spec.kind == "number" or spec.classes for spec in specs):
        raise UserError(
            "--label: without a CSV file it is the one name of what the folders are, like --label expression"
        )
    if "://" in source:
        raise UserError(f"{source}: a folder a class is read from a local folder; for S3 give --labels FILE")
    if tables := sorted(path.name for path in Path(source).glob("*.csv")):
        raise UserError(
            f"{source} holds {tables[0]}: give it with --labels {tables[0]}, or move it elsewhere if the folders are "
            "the classes"
        )
    return ClassFolders(Path(source), specs[0].name if specs else "expression")


DATASET = DataSet(
    name="folder",
    title="your own: a CSV file, or a folder a class",
    labels=("columns of the file", "or the folders' names"),
    licence="yours",
    url="",
    splits="train=0.8,val=0.2",
    source="url",
    options=Options,
    open=open_folder,
)
