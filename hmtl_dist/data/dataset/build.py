"""Building a data set: what an adapter names goes into shards, in parallel, and again from where it stopped.

spool every sample's name, labels and group in a local file
leave out what is the same picture as another sample, if asked to
take the published splits, or assign whole groups to splits; and the samples of a split to shards, by seeded hashes
compare with OUT/build.json: other samples or settings are refused
in worker processes, for every shard whose side table is not there yet:
    load and check its pictures, write the tar, upload it, then its side table
write OUT/rejected.csv, the index of every split, and OUT/dataset.json
"""

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from pydantic import Field as Limits
from pydantic import ValidationError

from hmtl_dist.config.base import Section
from hmtl_dist.data.dataset.adapter import Adapter, Rejected, RejectedError
from hmtl_dist.data.dataset.copies import as_rejected, find_copies
from hmtl_dist.data.dataset.index import table_key
from hmtl_dist.data.dataset.pictures import PictureSettings, store_picture
from hmtl_dist.data.dataset.pool import run_tasks
from hmtl_dist.data.dataset.schema import Field, IndexHeader
from hmtl_dist.data.dataset.sources import all_stamps, are_unchanged, stamps_of, write_stamps
from hmtl_dist.data.dataset.split import assign_splits
from hmtl_dist.data.dataset.spool import Spool, read_refs, write_spool
from hmtl_dist.data.dataset.survey import Survey, survey
from hmtl_dist.data.dataset.tables import Column, decode_table, encode_table, text_column, texts_of
from hmtl_dist.data.dataset.writing import (
    ShardRecord,
    ShardSample,
    sample_columns,
    shard_record,
    write_dataset,
    write_index,
    write_tar,
)
from hmtl_dist.data.storage import Storage, open_storage
from hmtl_dist.errors import UserError
from hmtl_dist.temporary import temporary_folder

MANIFEST = "build.json"
_COPIES = "duplicates.npz"
_PROBES = 64
"""Pictures loaded to learn their mean size, when shards are asked for by bytes."""


class BuildSettings(Section):
    """How a data set is built; the same samples and settings always give the same bytes."""

    dataset: str
    """Name of the data set."""
    splits: dict[str, float]
    """Share of the samples by split; none for the splits that the set's authors have published."""
    seed: int = 0
    """Decides which group falls to which split, and the order of the samples."""
    image_size: int | None = Limits(default=None, ge=8)
    """Pixels of the shorter side after shrinking; none keeps the originals."""
    jpeg_quality: int = Limits(default=95, ge=1, le=100)
    """JPEG quality of pictures that have to be encoded."""
    shard_samples: int = Limits(default=1000, ge=1)
    """Samples a shard."""
    shard_bytes: int | None = Limits(default=None, ge=1)
    """About this many bytes a shard, instead of `shard_samples`."""
    drop_duplicates: bool = False
    """Leave out originals that are the same as another one byte by byte (and cut by the same box)."""


class Manifest(Section):
    """What a data set was built from; kept in it so that a second call can go on."""

    settings: BuildSettings
    """How it is built."""
    fields: dict[str, Field]
    """Labels of the samples."""
    group: str | None
    """What groups are called."""
    source_digest: str
    """SHA-256 over every sample's name, labels and group (and published split and box where there are some)."""


@dataclass(frozen=True)
class BuildReport:
    """What a build did."""

    headers: Mapping[str, IndexHeader]
    """The index of each split."""
    rejected: list[Rejected]
    """Samples that were left out."""
    kept_shards: int
    """Shards that an earlier call had finished."""
    survey: Survey
    """What should be known of the labels."""

    @property
    def told(self) -> bool:
        """Whether there is something that should be looked at."""
        return bool(self.rejected or self.survey.conflicts or self.survey.unlabelled)


@dataclass(frozen=True)
class _Job:
    """What all shards of a build have in common."""

    adapter: Adapter
    url: str
    spool: Path
    pictures: PictureSettings


@dataclass(frozen=True)
class _ShardJob:
    job: _Job
    split: str
    name: str
    numbers: NDArray[np.int64]
    offsets: NDArray[np.int64]


@dataclass(frozen=True)
class _ShardResult:
    split: str
    record: ShardRecord
    rejected: list[tuple[int, Rejected]]
    planned: int
    kept: bool


def build(
    adapter: Adapter,
    url: str,
    settings: BuildSettings,
    *,
    num_workers: int = 1,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> BuildReport:
    """Build a data set, or go on with one that was interrupted.

    Args:
        adapter: names and loads the samples.
        url: where to, `s3://…` or a folder.
        settings: how.
        num_workers: processes that load and write.
        overwrite: delete what an earlier call has left instead of going on with it.
        on_progress: called with the samples done and the samples in all.

    Raises:
        UserError: when no sample is usable, a split would be empty, or `url` holds another data set.
    """
    storage = open_storage(url)
    with temporary_folder("build") as folder:
        spool = write_spool(adapter, folder / "samples.jsonl", settings.seed)
        if not len(spool.offsets):
            raise UserError(f"no sample is usable{_first_reasons(spool.rejected)}")
        splits = _assign(spool, settings, adapter)  # refuses what is impossible before anything is written
        job = _Job(adapter, url, spool.path, PictureSettings(settings.image_size, settings.jpeg_quality))
        manifest = Manifest(
            settings=settings, fields=dict(adapter.fields), group=adapter.group, source_digest=spool.digest
        )
        _claim(storage, manifest, overwrite=overwrite)
        results: list[_ShardResult] = []
        done, passes = 0, 2 if settings.drop_duplicates else 1

        def tell(read: int) -> None:
            on_progress(read // passes, len(spool.offsets))

        tell(0)
        if settings.drop_duplicates:
            copies = _copies(storage, adapter, spool, num_workers, tell)
            spool.rejected += as_rejected(spool, copies)
            splits = _assign(spool, settings, adapter, copies[:, 0])
            done = len(spool.offsets) + len(copies)
        names = tuple(settings.splits) or adapter.splits
        names = {number: name for number, name in enumerate(names) if np.any(splits == number)}
        tasks = _shard_tasks(job, spool, splits, names, settings)
        for result in run_tasks(_build_shard, tasks, num_workers, preload=["webdataset.writer"]):
            results.append(result)
            done += result.planned
            tell(done)
    results.sort(key=lambda result: result.record.name)
    rejected = spool.rejected + [
        row for _, row in sorted((entry for result in results for entry in result.rejected), key=lambda entry: entry[0])
    ]
    _write_rejected(storage, rejected)
    headers = _write_indexes(storage, manifest, tuple(names.values()), results, rejected)
    return BuildReport(headers, rejected, sum(result.kept for result in results), survey(url))


def _assign(
    spool: Spool, settings: BuildSettings, adapter: Adapter, left_out: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Number of the split of each sample [n], -1 for those that are left out."""
    kept = np.ones(len(spool.offsets), dtype=bool)
    if left_out is not None:
        kept[left_out] = False
    if not settings.splits and not adapter.splits:
        raise UserError("the set has no published splits: give names and shares, like --split train=0.8,val=0.2")
    splits = np.where(kept, spool.splits, -1)
    if settings.splits:
        splits[kept] = assign_splits(spool.groups[kept], settings.splits)
    return splits


def _copies(
    storage: Storage, adapter: Adapter, spool: Spool, num_workers: int, on_progress: Callable[[int], None]
) -> NDArray[np.int64]:
    """The duplicates; found once, because finding them reads every original."""
    stamps = all_stamps(adapter, spool, num_workers)
    if storage.exists(_COPIES):
        try:
            found = decode_table(storage.read(_COPIES))
            if np.array_equal(found["stamps"], stamps):
                return found["pairs"].reshape(-1, 2).astype(np.int64)
        except (ValueError, KeyError):
            pass  # cut short by what ended the earlier call
    copies = find_copies(adapter, spool, num_workers, on_progress)
    storage.write(_COPIES, encode_table({"pairs": copies.reshape(-1), "stamps": stamps}))
    return copies


def _shard_tasks(
    job: _Job, spool: Spool, splits: NDArray[np.int64], names: Mapping[int, str], settings: BuildSettings
) -> Iterator[_ShardJob]:
    size = settings.shard_samples
    if settings.shard_bytes is not None:
        size = max(int(settings.shard_bytes / _mean_bytes(job, spool)), 1)
    for number, split in names.items():
        members = np.flatnonzero(splits == number)
        members = members[np.argsort(spool.orders[members], kind="stable")]
        # Shards of nearly equal size: a short last shard would weigh as much as a full one when shards are shuffled.
        for shard, numbers in enumerate(np.array_split(members, -(-len(members) // size))):
            yield _ShardJob(job, split, f"{split}/shard-{shard:06d}.tar", numbers, spool.offsets[numbers])


def _mean_bytes(job: _Job, spool: Spool) -> float:
    some = np.unique(np.linspace(0, len(spool.offsets) - 1, _PROBES).astype(np.int64))
    sizes: list[int] = []
    for ref in read_refs(spool.path, spool.offsets[some]):
        try:
            sizes.append(len(store_picture(job.adapter.load(ref), job.pictures, ref.box)))
        except RejectedError:
            continue
    # A sample also takes two tar headers, its json and the padding of both.
    return sum(sizes) / max(len(sizes), 1) + 2048


def _build_shard(task: _ShardJob) -> _ShardResult:
    """Write one shard (in a worker process): the tar first, then the side table that says the shard is finished."""
    storage = _storage(task.job.url)
    table = table_key(task.split, task.name)
    adapter = task.job.adapter
    # before anything is read: what changes meanwhile is found by the next call
    stamps = stamps_of(adapter, task.job.spool, task.offsets)
    if storage.exists(table):
        kept = _finished(task, storage, table, stamps)
        if kept is not None:
            return kept
    rejected: list[tuple[int, Rejected]] = []
    with temporary_folder("shard") as folder:
        path = folder / "shard.tar"
        rows, num_bytes, sha256 = write_tar(path, _load_samples(task, rejected), adapter.group)
        if rows:
            storage.upload(task.name, path)
    data = encode_table(
        sample_columns(rows, adapter.fields, adapter.group)
        | {
            "tar.bytes": np.array([num_bytes], dtype=np.int64),
            "tar.sha256": np.frombuffer(sha256, dtype=np.uint8),
            "rejected.number": np.array([number for number, _ in rejected], dtype=np.int64),
            "rejected.name": text_column([row.name for _, row in rejected]),
            "rejected.reason": text_column([row.reason for _, row in rejected]),
        }
    )
    write_stamps(storage, table, stamps)
    storage.write(table, data)
    record = shard_record(task.name, data, adapter.fields, num_bytes=num_bytes, sha256=sha256)
    return _ShardResult(task.split, record, rejected, len(task.numbers), kept=False)


def _finished(task: _ShardJob, storage: Storage, table: str, stamps: NDArray[np.uint64]) -> _ShardResult | None:
    """The result of an earlier call, None when its shard is not whole, or its originals have changed since."""
    data = storage.read(table)
    try:
        columns = decode_table(data)
        num_bytes, sha256 = int(columns["tar.bytes"][0]), columns["tar.sha256"].tobytes()
        rejected = _read_rejected(columns)
    except (ValueError, KeyError):
        return None
    whole = not len(columns["offset"]) or (storage.exists(task.name) and storage.stat(task.name).size == num_bytes)
    if not whole or len(columns["offset"]) + len(rejected) != len(task.numbers):
        return None
    if not are_unchanged(storage, table, stamps):
        return None
    record = shard_record(task.name, data, task.job.adapter.fields, num_bytes=num_bytes, sha256=sha256)
    return _ShardResult(task.split, record, rejected, len(task.numbers), kept=True)


def _read_rejected(columns: Mapping[str, Column]) -> list[tuple[int, Rejected]]:
    names, reasons = texts_of(columns["rejected.name"]), texts_of(columns["rejected.reason"])
    numbers = columns["rejected.number"]
    return [
        (int(number), Rejected(str(name), str(reason)))
        for number, name, reason in zip(numbers, names, reasons, strict=True)
    ]


def _load_samples(task: _ShardJob, rejected: list[tuple[int, Rejected]]) -> Iterator[ShardSample]:
    for number, ref in zip(task.numbers, read_refs(task.job.spool, task.offsets), strict=True):
        try:
            picture = store_picture(task.job.adapter.load(ref), task.job.pictures, ref.box)
        except RejectedError as error:
            rejected.append((int(number), Rejected(ref.name, str(error))))
            continue
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", PurePosixPath(ref.name).name.split(".")[0])[:40]
        yield ShardSample(f"{number:09d}-{stem}", "jpg", picture, ref.labels, ref.group, ref.name)


@lru_cache(maxsize=2)
def _storage(url: str) -> Storage:
    return open_storage(url)


def _claim(storage: Storage, manifest: Manifest, *, overwrite: bool) -> None:
    """Make sure that what lies in OUT belongs to this build."""
    found: Manifest | None = None
    if storage.exists(MANIFEST):
        try:
            found = Manifest.model_validate_json(storage.read(MANIFEST))
        except ValidationError:
            found = None
        if found == manifest and not overwrite:
            storage.delete("dataset.json")
            return
    elif not any(True for _ in storage.list()):
        storage.write(MANIFEST, manifest.model_dump_json(indent=1).encode() + b"\n")
        return
    if not overwrite:
        raise UserError(
            f"{storage.url} already holds {_difference(found, manifest)}: choose another OUT, repeat the first call "
            "unchanged to go on with it, or give --overwrite to delete it"
        )
    for key in [info.key for info in storage.list() if _is_ours(info.key)]:
        storage.delete(key)
    storage.write(MANIFEST, manifest.model_dump_json(indent=1).encode() + b"\n")


def _is_ours(key: str) -> bool:
    return key in ("dataset.json", MANIFEST, _COPIES, "rejected.csv") or bool(
        re.fullmatch(r"[\w-]+/(index\.json|shards\.npz|shard-\d+\.(tar|npz|sources\.npz))", key)
    )


def _difference(found: Manifest | None, manifest: Manifest) -> str:
    if found is None:
        return "something else"
    before, now = found.model_dump()["settings"], manifest.model_dump()["settings"]
    for name, value in now.items():
        if before[name] != value:
            return f"a data set built with {name} {before[name]} instead of {value}"
    return "a data set built from other samples or labels"


def _write_rejected(storage: Storage, rejected: list[Rejected]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["sample", "reason"])
    writer.writerows([row.name, row.reason] for row in rejected)
    storage.write("rejected.csv", text.getvalue().encode())


def _write_indexes(
    storage: Storage,
    manifest: Manifest,
    splits: tuple[str, ...],
    results: list[_ShardResult],
    rejected: list[Rejected],
) -> dict[str, IndexHeader]:
    headers: dict[str, IndexHeader] = {}
    for split in splits:
        records = [result.record for result in results if result.split == split and result.record.num_samples]
        if not records:
            raise UserError(f"no sample of split {split} is usable{_first_reasons(rejected)}")
        headers[split] = write_index(
            storage, manifest.settings.dataset, split, records, fields=manifest.fields, group=manifest.group
        )
    write_dataset(storage, manifest.settings.dataset, list(headers))
    return headers


def _first_reasons(rejected: list[Rejected]) -> str:
    some = "; ".join(f"{row.name}: {row.reason}" for row in rejected[:3])
    return f" ({len(rejected)} left out, {some})" if rejected else ""
