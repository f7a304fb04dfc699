"""What the originals of a build were when they were read: a build that goes on reads those again that have changed.

Shape legend: n samples.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from hmtl_dist.data.dataset.adapter import Adapter
from hmtl_dist.data.dataset.pool import run_tasks
from hmtl_dist.data.dataset.spool import Spool, read_refs
from hmtl_dist.data.dataset.tables import decode_table, encode_table
from hmtl_dist.data.storage import ObjectMissingError, Storage

_JOB_SAMPLES = 1024


@dataclass(frozen=True)
class _Job:
    adapter: Adapter
    spool: Path
    offsets: NDArray[np.int64]


def stamps_of(adapter: Adapter, spool: Path, offsets: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The stamps of originals as 64 bits each, [n]; they are looked up and not read."""
    stamps = [adapter.stamp(ref).encode() for ref in read_refs(spool, offsets)]
    return np.array([xxhash.xxh3_64_intdigest(stamp) for stamp in stamps], dtype=np.uint64)


def all_stamps(adapter: Adapter, spool: Spool, num_workers: int) -> NDArray[np.uint64]:
    """The stamps of all originals of a build, [n]."""
    parts = [*run_tasks(_stamps, _jobs(adapter, spool), num_workers)]
    return np.concatenate([stamps for _, stamps in sorted(parts, key=lambda part: part[0])])


def write_stamps(storage: Storage, table: str, stamps: NDArray[np.uint64]) -> None:
    """Note the stamps of a shard's originals beside its side table.

    Not in it: what is built of the same pictures is the same, whenever these were copied to where they are.
    """
    storage.write(_key(table), encode_table({"stamps": stamps}))


def are_unchanged(storage: Storage, table: str, stamps: NDArray[np.uint64]) -> bool:
    """Whether a shard's originals have the stamps that were noted; False where none were."""
    try:
        return np.array_equal(decode_table(storage.read(_key(table)))["stamps"], stamps)
    except (ObjectMissingError, ValueError, KeyError):
        return False


def _key(table: str) -> str:
    return table.removesuffix(".npz") + ".sources.npz"


def _jobs(adapter: Adapter, spool: Spool) -> Iterator[_Job]:
    for first in range(0, len(spool.offsets), _JOB_SAMPLES):
        yield _Job(adapter, spool.path, spool.offsets[first : first + _JOB_SAMPLES])


def _stamps(job: _Job) -> tuple[int, NDArray[np.uint64]]:
    return int(job.offsets[0]), stamps_of(job.adapter, job.spool, job.offsets)
