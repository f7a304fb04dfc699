# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
"""Verifying data sets: every digest, every picture, and whether the splits are apart."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations
from typing import Any, cast

import imagehash
import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image

from hmtl_dist.data.dataset.duplicates import BANDS, near_pairs, same_pairs
from hmtl_dist.data.dataset.index import SampleTable, ShardIndex, open_dataset, open_index
from hmtl_dist.data.dataset.pool import run_tasks
from hmtl_dist.data.dataset.survey import conflict_of, locator, name_of
from hmtl_dist.data.decode import DecodeError, decode
from hmtl_dist.data.storage.hashing import HashingReader
from hmtl_dist.errors import UserError

_HASH_SIDE = 16
_HASH_PIXELS = 64
"""Pixels of the side from which pHash computes its frequencies."""


@dataclass(frozen=True)
class Pair:
    """Two pictures that are the same, or look the same."""

    first: str
    second: str


@dataclass
class VerifyReport:
    """What is wrong with data sets, and what is worth knowing."""

    samples: int = 0
    """Samples read."""
    shards: int = 0
    """Shards read."""
    num_bytes: int = 0
    """Bytes of the tars."""
    labels: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict[str, dict[str, dict[str, int]]])
    """Samples of each class, by `URL split` and label; samples without the label under an empty name."""
    damage: list[str] = field(default_factory=list[str])
    """Tars, tables and pictures that are not what the index says, or cannot be decoded."""
    same_across: list[Pair] = field(default_factory=list[Pair])
    """The same bytes in different splits, of one set or of sets that are mixed."""
    near_across: list[Pair] = field(default_factory=list[Pair])
    """Pictures that look the same in different splits."""
    groups_across: list[str] = field(default_factory=list[str])
    """Groups (people) with samples in more than one split of a set."""
    same_within: list[Pair] = field(default_factory=list[Pair])
    """The same bytes twice in one split: wasteful, but no leak."""
    near_within: list[Pair] = field(default_factory=list[Pair])
    """Pictures of one split that look the same."""
    conflicts: list[str] = field(default_factory=list[str])
    """The same bytes twice with different labels: both samples, and the labels."""

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged, the splits are apart, and no picture has two labels."""
        return not (self.damage or self.same_across or self.near_across or self.groups_across or self.conflicts)


@dataclass(frozen=True)
class _Split:
    """A split of a data set."""

    url: str
    split: str


@dataclass(frozen=True)
class _Job:
    place: _Split
    shard: int


@dataclass(frozen=True)
class _Checked:
    """What was read from one shard; its rows are those of the side table."""

    task: _Job
    num_bytes: int
    damage: list[str]
    digests: NDArray[np.uint64]
    looks: NDArray[np.uint16]
    """Perceptual hashes [n, BANDS]."""
    readable: NDArray[np.bool_]
    groups: set[str]
    labels: dict[str, dict[str, int]]


def verify(
    urls: Sequence[str],
    *,
    num_workers: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> VerifyReport:
    """Read all of one or more data sets.

    Args:
        urls: the data sets; several are looked through for pictures they share.
        num_workers: processes that read shards.
        on_progress: called with the shards read and the shards in all.

    Raises:
        UserError: when there is no index to verify against.
    """
    urls = [url.rstrip("/") for url in urls]
    if len(set(urls)) != len(urls):
        raise UserError("a data set is named twice: name each once")
    places = [_Split(url, split) for url in urls for split in open_dataset(url).splits]
    tasks = [_Job(place, shard) for place in places for shard in range(len(_index(place)))]
    checked: list[_Checked] = []
    on_progress(0, len(tasks))
    for result in run_tasks(_check_shard, tasks, num_workers):
        checked.append(result)
        on_progress(len(checked), len(tasks))
    number = {task: order for order, task in enumerate(tasks)}
    checked.sort(key=lambda shard: number[shard.task])
    report = VerifyReport(
        samples=sum(len(shard.digests) for shard in checked),
        shards=len(checked),
        num_bytes=sum(shard.num_bytes for shard in checked),
        damage=[line for shard in checked for line in shard.damage],
        groups_across=_shared_groups(checked),
    )
    _add_labels(report, checked)
    _add_pairs(report, checked, places)
    return report


@lru_cache(maxsize=64)
def _index(place: _Split) -> ShardIndex:
    return open_index(place.url, place.split)


def _check_shard(task: _Job) -> _Checked:
    """Read one shard from end to end (in a worker process)."""
    index = _index(task.place)
    where = f"{task.place.url}/{index.names[task.shard]}"
    nothing = _Checked(
        task,
        0,
        [],
        np.empty(0, dtype=np.uint64),
        np.empty((0, BANDS), dtype=np.uint16),
        np.empty(0, dtype=np.bool_),
        set(),
        {},
    )
    try:
        table = index.samples(task.shard)
        with index.storage.open_read(index.names[task.shard]) as stream:
            reader = HashingReader(stream)
            damage, looks, readable = _check_pictures(reader, table, where)
            reader.finish()
    except UserError as error:
        nothing.damage.append(str(error))
        return nothing
    if reader.sha256.digest() != index.sha256[task.shard].tobytes():
        damage.insert(0, f"{where}: the tar is not the one that was indexed (SHA-256 differs)")
    if len(table) != index.num_samples[task.shard]:
        damage.insert(0, f"{where}: {len(table)} samples instead of {index.num_samples[task.shard]}")
    groups = {str(group) for group in table.group if group} if table.group is not None else set[str]()
    return _Checked(task, reader.size, damage, table.digest, looks, readable, groups, _histogram(index, table))


def _check_pictures(
    reader: HashingReader, table: SampleTable, where: str
) -> tuple[list[str], NDArray[np.uint16], NDArray[np.bool_]]:
    damage: list[str] = []
    looks = np.zeros((len(table), BANDS), dtype=np.uint16)
    readable = np.zeros(len(table), dtype=np.bool_)
    for row, data in _read_pictures(reader, table):
        key = f"{where} {table.key[row]}"
        if len(data) != table.length[row] or xxhash.xxh3_64_intdigest(data) != int(table.digest[row]):
            damage.append(f"{key}: the bytes are not those that were indexed")
            continue
        try:
            looks[row] = _look(data)
            readable[row] = True
        except DecodeError as error:
            damage.append(f"{key}: {error}")
    return damage, looks, readable


def _read_pictures(reader: HashingReader, table: SampleTable) -> Iterator[tuple[int, bytes]]:
    """The pictures in the order in which they lie in the tar, so that it is read once and never held."""
    for row in np.argsort(table.offset, kind="stable"):
        skipped = int(table.offset[row]) - reader.size
        reader.read(max(skipped, 0))
        yield int(row), reader.read(int(table.length[row])) if skipped >= 0 else b""


def _look(data: bytes) -> NDArray[np.uint16]:
    # The whole picture is decoded: this also shows that it can be.
    picture = Image.fromarray(decode(data)).reduce(1)
    hashed = imagehash.phash(picture, hash_size=_HASH_SIDE, highfreq_factor=_HASH_PIXELS // _HASH_SIDE)
    bits = cast(NDArray[np.bool_], cast(Any, hashed).hash)
    return np.packbits(bits.reshape(-1)).view(np.uint16)


def _histogram(index: ShardIndex, table: SampleTable) -> dict[str, dict[str, int]]:
    histogram: dict[str, dict[str, int]] = {}
    for name, one in index.header.fields.items():
        values = table.labels[name]
        if one.kind == "category":
            counts = np.bincount(values + 1, minlength=len(one.classes) + 1)
            histogram[name] = dict(zip(("", *one.classes), (int(each) for each in counts), strict=True))
        else:
            missing = int(np.isnan(values).sum())
            histogram[name] = {"": missing, "number": len(values) - missing}
    return histogram


def _add_labels(report: VerifyReport, checked: Sequence[_Checked]) -> None:
    for shard in checked:
        place = report.labels.setdefault(f"{shard.task.place.url} {shard.task.place.split}", {})
        for name, counts in shard.labels.items():
            total = place.setdefault(name, {})
            for label, number in counts.items():
                total[label] = total.get(label, 0) + number


def _shared_groups(checked: Sequence[_Checked]) -> list[str]:
    """Groups of one set in several splits; the same name in another set may be somebody else."""
    members: dict[str, dict[str, set[str]]] = {}
    for shard in checked:
        place = shard.task.place
        members.setdefault(place.url, {}).setdefault(place.split, set()).update(shard.groups)
    return [
        f"{url}: {group} is in {one} and in {other}"
        for url, splits in members.items()
        for one, other in combinations(splits, 2)
        for group in sorted(splits[one] & splits[other])
    ]


def _add_pairs(report: VerifyReport, checked: Sequence[_Checked], places: Sequence[_Split]) -> None:
    if not checked:
        return
    number = {place: order for order, place in enumerate(places)}
    sizes = [len(shard.digests) for shard in checked]
    splits = np.repeat([number[shard.task.place] for shard in checked], sizes)
    names = np.array([place.split for place in places])
    digests = np.concatenate([shard.digests for shard in checked])
    readable = np.flatnonzero(np.concatenate([shard.readable for shard in checked]))
    near = readable[near_pairs(np.concatenate([shard.looks for shard in checked])[readable])]
    near = near[digests[near[:, 0]] != digests[near[:, 1]]]

    row_of = locator([(_index(shard.task.place), shard.task.shard) for shard in checked], sizes)
    for pairs, across, within in (
        (same_pairs(digests), report.same_across, report.same_within),
        (near, report.near_across, report.near_within),
    ):
        for one, other in pairs.tolist():
            first, second = row_of(one), row_of(other)
            apart = names[splits[one]] != names[splits[other]]
            (across if apart else within).append(Pair(name_of(first), name_of(second)))
            if pairs is not near and (conflict := conflict_of(first, second)) is not None:
                report.conflicts.append(conflict)


def to_json(report: VerifyReport) -> Mapping[str, object]:
    """The report for scripts."""
    return {
        "sound": report.is_sound,
        "samples": report.samples,
        "shards": report.shards,
        "num_bytes": report.num_bytes,
        "labels": report.labels,
        "damage": report.damage,
        "groups_across_splits": report.groups_across,
        "same_across_splits": _pairs(report.same_across),
        "near_across_splits": _pairs(report.near_across),
        "same_within_split": _pairs(report.same_within),
        "near_within_split": _pairs(report.near_within),
        "different_labels": report.conflicts,
    }


def _pairs(pairs: Sequence[Pair]) -> list[list[str]]:
    return [[pair.first, pair.second] for pair in pairs]
