"""What should be known of a set's labels: which samples lack one, and where one picture has different ones.

Of those one is wrong, and no reader of the set can tell which.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl_dist.data.dataset.duplicates import same_pairs
from hmtl_dist.data.dataset.index import ShardIndex, open_dataset, open_index

READS_IN_FLIGHT = 8
"""Side tables that are read at once."""

Row = tuple[ShardIndex, int, int]
"""An index, a shard of it, and a row of that shard's side table."""


@dataclass(frozen=True)
class Survey:
    """What should be known of a data set's labels."""

    conflicts: list[str]
    """The same picture, byte by byte, with different labels: both samples, and the labels."""
    unlabelled: dict[str, int]
    """Samples that have no value of a label, by its name; labels that all have are left out."""


def survey(url: str) -> Survey:
    """Look a data set's labels over.

    Only the side tables are read, each once but for those of the samples that are named.

    Raises:
        UserError: a side table is missing or damaged.
    """
    indexes = [open_index(url, split) for split in open_dataset(url).splits]
    shards = [(index, shard) for index in indexes for shard in range(len(index))]
    if not shards:
        return Survey([], {})
    with ThreadPoolExecutor(READS_IN_FLIGHT, thread_name_prefix="survey") as pool:
        tables = list(pool.map(_columns, shards))
    digests = np.concatenate([digest for digest, _ in tables])
    pairs = same_pairs(digests)
    differ = np.zeros(len(pairs), dtype=np.bool_)
    unlabelled: dict[str, int] = {}
    for name in indexes[0].header.fields:  # numbered alike in all splits of a set
        values = np.concatenate([labels[name] for _, labels in tables])
        there = _is_there(values)
        if not there.all():
            unlabelled[name] = int((~there).sum())
        (one, other), both = values[pairs].T, there[pairs].all(axis=1)
        differ |= both & (one != other)
    row_of = locator(shards, [len(digest) for digest, _ in tables])
    told = (conflict_of(row_of(one), row_of(other)) for one, other in pairs[differ].tolist())
    return Survey([one for one in told if one is not None], unlabelled)


def locator(shards: Sequence[tuple[ShardIndex, int]], sizes: Sequence[int]) -> Callable[[int], Row]:
    """Return what finds the row of a sample by its number, counted through all shards.

    Args:
        shards: an index and a shard of it, each.
        sizes: samples of each.
    """
    starts = np.concatenate([[0], np.cumsum(sizes)])

    def row_of(number: int) -> Row:
        place = int(np.searchsorted(starts, number, side="right")) - 1
        return (*shards[place], number - int(starts[place]))

    return row_of


def _columns(shard: tuple[ShardIndex, int]) -> tuple[NDArray[np.uint64], Mapping[str, NDArray[Any]]]:
    index, number = shard
    table = index.samples(number)
    return table.digest, table.labels


def _is_there(values: NDArray[Any]) -> NDArray[np.bool_]:
    return ~np.isnan(values) if values.dtype.kind == "f" else values >= 0


def conflict_of(one: Row, other: Row) -> str | None:
    """Say in which labels two samples differ that should not; None where they do not, or one lacks a label."""
    texts, others = dict(_texts(one)), dict(_texts(other))
    different = [f"{name} {text} and {others[name]}" for name, text in texts.items() if others.get(name, text) != text]
    return f"{name_of(one)} and {name_of(other)}: {', '.join(different)}" if different else None


def name_of(row: Row) -> str:
    """Say where a sample lies: its shard's URL and its key."""
    index, shard, number = row
    return f"{index.url}/{index.names[shard]} {index.samples(shard).key[number]}"


def _texts(row: Row) -> Iterator[tuple[str, str]]:
    """Labels that a sample has, as texts: the classes of two sets may be numbered differently."""
    index, shard, number = row
    table = index.samples(shard)
    for name, field in index.header.fields.items():
        value = table.labels[name][number]
        if field.kind == "category" and value >= 0:
            yield name, field.classes[int(value)]
        elif field.kind == "number" and not np.isnan(value):
            yield name, f"{value:.6g}"
