"""Indexing shards that were made elsewhere: one pass over the tars, tables beside them.

What becomes of the entries of KEY.json (and of KEY.cls, as an entry `cls`):

- text and true/false: a category; its classes are the values found, sorted;
- numbers, whole ones too: a number, unless `--label NAME:category` says that they are the names of classes;
- KEY.cls: a category of its values, in numerical order;
- a text with more than `MAX_CLASSES` values, or of which most samples have their own (names of files): left out, like
  lists and nested entries; the report says so.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from hmtl_dist.data.dataset.index import open_dataset, open_index, table_key
from hmtl_dist.data.dataset.labels import MAX_CLASSES, LabelSpec, read_value
from hmtl_dist.data.dataset.pool import run_tasks
from hmtl_dist.data.dataset.schema import Field, IndexHeader, LabelValue
from hmtl_dist.data.dataset.survey import Survey, survey
from hmtl_dist.data.dataset.tables import encode_table
from hmtl_dist.data.dataset.tars import JsonValue, find_tars, read_tar
from hmtl_dist.data.dataset.values import class_of, group_of, is_missing
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
from hmtl_dist.temporary import temporary_folder


@dataclass(frozen=True)
class ForeignReport:
    """What indexing found."""

    headers: Mapping[str, IndexHeader]
    """The index of each split."""
    left_out: Mapping[str, str]
    """Entries of KEY.json that became no label, and why."""
    without_picture: int = 0
    """Samples without a jpg, jpeg, png or webp; they are not in the index."""
    without_labels: int = 0
    """Samples that have neither a KEY.json nor a KEY.cls."""
    passed_over: Mapping[str, str] = field(default_factory=dict[str, str])
    """What looks like shards and was not read, and why."""
    doubled: Sequence[str] = ()
    """Files of a kind that their sample has already, as TAR: NAME."""
    others: Counter[str] = field(default_factory=Counter[str])
    """Files that are neither pictures nor labels, by their ending."""
    survey: Survey = field(default_factory=lambda: Survey([], {}))
    """What should be known of the labels."""

    @property
    def told(self) -> bool:
        """Whether there is something that should be looked at."""
        left_out = self.without_picture or self.without_labels or self.passed_over or self.doubled
        return bool(left_out or self.survey.conflicts or self.survey.unlabelled)


@dataclass(frozen=True)
class _Scanned:
    """One tar; its rows wait on disk until the classes of all tars are known."""

    split: str
    key: str
    num_bytes: int
    sha256: bytes
    rows: Path
    seen: dict[str, "_Seen"]
    without_picture: int
    without_labels: int
    doubled: list[str]
    others: Counter[str]


@dataclass
class _Seen:
    """What values an entry of KEY.json had."""

    kinds: set[str] = field(default_factory=set[str])
    texts: set[str] = field(default_factory=set[str])
    count: int = 0

    def add(self, value: JsonValue) -> None:
        if isinstance(value, (list, dict)):
            self.count += 1
            self.kinds.add("nested")
            return
        if value is None or is_missing(value):
            return
        self.count += 1
        self.kinds.add("number" if isinstance(value, (int, float)) and not isinstance(value, bool) else "text")
        if len(self.texts) <= MAX_CLASSES:
            self.texts.add(class_of(value))

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


def index_shards(
    url: str,
    *,
    labels: Sequence[LabelSpec] = (),
    group: str | None = None,
    split: str | None = None,
    num_workers: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ForeignReport:
    """Write the index of tars made by `webdataset.ShardWriter` or any other tool.

    A sample is a KEY.jpg (jpeg, png, webp) with a KEY.json, a KEY.cls, or both, anywhere in one tar (see `tars`).

    Tars in a folder of `url` form the split of that name. Tars in `url` itself form splits by what tells their names
    apart beside the running number. What an index that is there already says of groups and units is kept.

    Args:
        url: the data set.
        labels: what to make of entries whose kind is not told right by their values.
        group: entry that says whom a sample belongs to; that of an index that is there already if empty.
        split: of the tars in `url` itself, instead of what their names say.
        num_workers: processes that read tars.
        on_progress: called with the tars done and the tars in all.

    Raises:
        UserError: when there are no tars, a tar is damaged, or has no pictures.
    """
    url = url.rstrip("/")
    storage = open_storage(url)
    found = find_tars(storage, split)
    tars = found.tars
    with temporary_folder("index") as folder:
        tasks = (_ScanJob(url, split, key, folder / f"{number}.jsonl") for number, (split, key) in enumerate(tars))
        scanned: list[_Scanned] = []
        on_progress(0, len(tars))
        for result in run_tasks(_scan, tasks, num_workers):
            scanned.append(result)
            on_progress(len(scanned), len(tars))
        scanned.sort(key=lambda shard: (shard.split, shard.key))
        known = _known(url)
        group = group or (known.group if known else None)
        fields, left_out = _infer_fields(scanned, labels, group, known)
        headers = _write_tables(storage, scanned, fields, group)
    return ForeignReport(
        headers,
        left_out,
        without_picture=sum(shard.without_picture for shard in scanned),
        without_labels=sum(shard.without_labels for shard in scanned),
        passed_over=found.passed_over,
        doubled=[name for shard in scanned for name in shard.doubled],
        others=sum((shard.others for shard in scanned), Counter[str]()),
        survey=survey(url),
    )


@lru_cache(maxsize=2)
def _storage(url: str) -> Storage:
    return open_storage(url)


def _scan(task: _ScanJob) -> _Scanned:
    """Read one tar from end to end (in a worker process)."""
    seen: dict[str, _Seen] = {}
    where = f"{task.url}/{task.key}"
    with _storage(task.url).open_read(task.key) as stream:
        reader = HashingReader(stream)
        contents = read_tar(reader, where)
        reader.finish()  # what follows the last member belongs to the digest too
    pictured = [member for member in contents.members.values() if member.picture is not None]
    with task.rows.open("w", encoding="utf-8") as rows:
        for member in pictured:
            for name, value in member.entries.items():
                seen.setdefault(name, _Seen()).add(value)
            rows.write(json.dumps([member.key, *(member.picture or ()), member.entries]) + "\n")
    return _Scanned(
        split=task.split,
        key=task.key,
        num_bytes=reader.size,
        sha256=reader.sha256.digest(),
        rows=task.rows,
        seen=seen,
        without_picture=len(contents.members) - len(pictured),
        without_labels=sum(member.kinds == {"picture"} for member in pictured),
        doubled=[f"{task.key}: {name}" for name in contents.doubled],
        others=contents.others,
    )


def _known(url: str) -> IndexHeader | None:
    """What an index says that is there already, one of ours or of an earlier call."""
    try:
        return open_index(url, open_dataset(url).splits[0]).header
    except UserError:  # there is none that can be read
        return None


def _infer_fields(
    scanned: Sequence[_Scanned], labels: Sequence[LabelSpec], group: str | None, known: IndexHeader | None
) -> tuple[dict[str, Field], dict[str, str]]:
    seen: dict[str, _Seen] = {}
    for shard in scanned:
        for name, values in shard.seen.items():
            seen.setdefault(name, _Seen()).merge(values)
    wanted = {spec.name: spec for spec in labels}
    for name in [*wanted, *([group] if group else [])]:
        if name not in seen:
            there = ", ".join(sorted(seen)) or "none"
            raise UserError(f"no sample has an entry {name!r}: the entries found are {there}")
    fields: dict[str, Field] = {}
    left_out: dict[str, str] = {}
    for name, values in seen.items():
        if name == group and name not in wanted:
            continue
        before = known.fields.get(name) if known else None
        if known and before is None and name not in wanted:
            left_out[name] = "is no label of the index that was there; --label makes it one"
            continue
        if before and name not in wanted and _fits(before, values):
            fields[name] = before
            continue
        made = _field_of(name, values, wanted.get(name))
        if isinstance(made, Field):
            fields[name] = made
        else:
            left_out[name] = made
    return fields, left_out


def _fits(before: Field, values: _Seen) -> bool:
    """Whether a label may stay what an index says that it is."""
    if before.kind == "category":
        return values.texts <= set(before.classes)
    return values.kinds <= {"number"}


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
            raise UserError(
                f"no sample of split {split} under {storage.url} has a jpg, jpeg, png or webp: nothing to index"
            )
        headers[split] = write_index(storage, dataset, split, records, fields=fields, group=group)
    write_dataset(storage, dataset, list(headers))
    return headers


def _read_rows(shard: _Scanned, fields: Mapping[str, Field], group: str | None) -> Iterator[SampleRow]:
    with shard.rows.open(encoding="utf-8") as lines:
        for line in lines:
            key, offset, length, digest, entries = json.loads(line)
            where = f"{shard.key}: {key}"
            labels = {name: _label(entries.get(name), name, one, where) for name, one in fields.items()}
            whose = entries.get(group) if group else None
            yield SampleRow(key, offset, length, digest, labels, _group_of(whose))


def _group_of(value: JsonValue) -> str | None:
    if isinstance(value, (list, dict)):
        return str(value)
    return group_of(value)


def _label(value: JsonValue, name: str, one: Field, where: str) -> LabelValue:
    if isinstance(value, (list, dict)):
        raise UserError(f"{where}: {name} is a list or nested: it is no {one.kind}")
    try:
        return read_value(value, name, one)
    except ValueError as error:
        raise UserError(f"{where}: {error}; `--label {name}:category` or `{name}:number` says what it is") from None
