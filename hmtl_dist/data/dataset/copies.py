"""Samples whose originals are the same, byte by byte: all but one of them are left out of a build."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from hmtl_dist.data.dataset.adapter import Adapter, Rejected, RejectedError
from hmtl_dist.data.dataset.duplicates import same_pairs
from hmtl_dist.data.dataset.pool import run_tasks
from hmtl_dist.data.dataset.spool import Spool, read_refs

_TASK_SAMPLES = 256


@dataclass(frozen=True)
class _Job:
    adapter: Adapter
    spool: Path
    first: int
    offsets: NDArray[np.int64]


def find_copies(
    adapter: Adapter, spool: Spool, num_workers: int, on_progress: Callable[[int], None]
) -> NDArray[np.int64]:
    """Pairs [m, 2] of a sample to leave out and the one to keep; reads every original once.

    Of samples in different published splits the one of the latest split is kept, so that the pictures one trains on are
    left out rather than those the set is evaluated with; else the first.

    Args:
        adapter: loads the originals.
        spool: its samples.
        num_workers: processes.
        on_progress: called with the samples done.
    """
    digests = np.zeros(len(spool.offsets), dtype=np.uint64)
    readable = np.zeros(len(spool.offsets), dtype=bool)
    done = 0
    for first, values, loaded in run_tasks(_digest, _tasks(adapter, spool), num_workers):
        digests[first : first + len(values)] = values
        readable[first : first + len(values)] = loaded
        done += len(values)
        on_progress(done)
    numbers = np.flatnonzero(readable)
    numbers = numbers[np.argsort(-spool.splits[numbers], kind="stable")]
    pairs = numbers[same_pairs(digests[numbers])]
    return pairs[np.argsort(pairs[:, 1], kind="stable")][:, ::-1]


def as_rejected(spool: Spool, copies: NDArray[np.int64]) -> list[Rejected]:
    """The samples that are left out, with the reason."""
    rows: list[Rejected] = []
    pairs = zip(
        read_refs(spool.path, spool.offsets[copies[:, 0]]),
        read_refs(spool.path, spool.offsets[copies[:, 1]]),
        strict=True,
    )
    for copy, kept in pairs:
        where = f" in {kept.split}" if kept.split != copy.split else ""
        other = "" if kept.labels == copy.labels else ", which has other labels"
        rows.append(Rejected(copy.name, f"the same picture as {kept.name}{where}{other}"))
    return rows


def _tasks(adapter: Adapter, spool: Spool) -> Iterator[_Job]:
    for first in range(0, len(spool.offsets), _TASK_SAMPLES):
        yield _Job(adapter, spool.path, first, spool.offsets[first : first + _TASK_SAMPLES])


def _digest(task: _Job) -> tuple[int, NDArray[np.uint64], NDArray[np.bool_]]:
    values = np.zeros(len(task.offsets), dtype=np.uint64)
    readable = np.zeros(len(task.offsets), dtype=bool)
    for row, ref in enumerate(read_refs(task.spool, task.offsets)):
        try:
            original = task.adapter.load(ref)
        except RejectedError:
            continue  # said when its shard is written
        digest = xxhash.xxh3_64(original)
        digest.update(repr(ref.box).encode())
        values[row], readable[row] = digest.intdigest(), True
    return task.first, values, readable
