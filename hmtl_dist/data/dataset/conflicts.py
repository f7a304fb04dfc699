"""The same picture with different labels: one of them is wrong, and no reader of the set can tell which."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl_dist.data.dataset.duplicates import same_pairs
from hmtl_dist.data.dataset.index import ShardIndex, open_dataset, open_index

READS_IN_FLIGHT = 8
"""Side tables that are read at once."""

Row = tuple[ShardIndex, int, int]
"""An index, a shard of it, and a row of that shard's side table."""


def find_conflicts(url: str) -> list[str]:
    """Name the pairs of samples of a data set that are the same picture, byte by byte, and have different labels.

    Only the side tables are read, each once but for those of the samples that are named.

    Raises:
        UserError: a side table is missing or damaged.
    """
    indexes = [open_index(url, split) for split in open_dataset(url).splits]
    shards = [(index, shard) for index in indexes for shard in range(len(index))]
    if not shards:
        return []
    with ThreadPoolExecutor(READS_IN_FLIGHT, thread_name_prefix="conflicts") as pool:
        tables = list(pool.map(_columns, shards))
    digests = np.concatenate([digest for digest, _ in tables])
    pairs = same_pairs(digests)
    differ = np.zeros(len(pairs), dtype=np.bool_)
    for name in indexes[0].header.fields:  # numbered alike in all splits of a set
        one, other = np.concatenate([labels[name] for _, labels in tables])[pairs].T
        differ |= _is_there(one) & _is_there(other) & (one != other)
    row_of = locator(shards, [len(digest) for digest, _ in tables])
    told = (conflict_of(row_of(one), row_of(other)) for one, other in pairs[differ].tolist())
    return [one for one in told if one is not None]


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
