"""The same picture with different labels: one of them is wrong, and no reader of the set can tell which."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

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

    Only the side tables are read.

    Raises:
        UserError: a side table is missing or damaged.
    """
    indexes = [open_index(url, split) for split in open_dataset(url).splits]
    shards = [(index, shard) for index in indexes for shard in range(len(index))]
    with ThreadPoolExecutor(READS_IN_FLIGHT, thread_name_prefix="conflicts") as pool:
        digests = list(pool.map(_digests, shards))
    starts = np.concatenate([[0], np.cumsum([len(each) for each in digests])])
    every = np.concatenate(digests) if digests else np.empty(0, dtype=np.uint64)

    def row_of(number: int) -> Row:
        place = int(np.searchsorted(starts, number, side="right")) - 1
        return (*shards[place], number - int(starts[place]))

    pairs = [(row_of(one), row_of(other)) for one, other in same_pairs(every).tolist()]
    return [told for one, other in pairs if (told := conflict_of(one, other)) is not None]


def _digests(shard: tuple[ShardIndex, int]) -> NDArray[np.uint64]:
    index, number = shard
    return index.samples(number).digest


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
