"""Batches in memory that is shared with other processes and used again and again.

The memory has no name: it is handed to the data-loader processes as an open file, so nothing is left behind whatever
process dies, and it does not count against the size of /dev/shm.
"""

import mmap
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
"""Bytes to which every array is aligned: a cache line."""


@dataclass(frozen=True)
class Rows:
    """Rows of one batch as arrays to write into or read from."""

    images: NDArray[np.uint8]
    """RGB `[n, H, W, 3]`."""
    labels: Mapping[str, NDArray[Any]]
    """Categories int64 `[n]` (-1 = missing), numbers float32 `[n]` (NaN = missing)."""
    weight: NDArray[np.float32]
    """`[n]`; 0 for a damaged or padded sample."""
    positions: NDArray[np.int64]
    """`[n]`."""
    sample_ids: NDArray[np.int64]
    """Global sample ids `[n]`, -1 for a padded slot."""

    def __getitem__(self, rows: slice) -> "Rows":
        labels = {name: column[rows] for name, column in self.labels.items()}
        return Rows(self.images[rows], labels, self.weight[rows], self.positions[rows], self.sample_ids[rows])


@dataclass(frozen=True)
class BatchLayout:
    """Shape of a rank's batch."""

    batch_size: int
    """Rows."""
    image_size: int
    """Height and width in pixels."""
    labels: Mapping[str, type[np.generic]]
    """Type of each label's column."""

    def columns(self) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
        """Return shape and type of every array of a batch by name; labels are under `label.NAME`."""
        n = self.batch_size
        return {
            "images": ((n, self.image_size, self.image_size, 3), np.uint8),
            "weight": ((n,), np.float32),
            "positions": ((n,), np.int64),
            "sample_ids": ((n,), np.int64),
            **{f"label.{name}": ((n,), dtype) for name, dtype in self.labels.items()},
        }

    def num_bytes(self) -> int:
        """Return the bytes of one batch."""
        return sum(_aligned(shape, dtype) for shape, dtype in self.columns().values())


class Ring:
    """A few batches of one layout in shared memory; pickled only to a process that is being started.

    Args:
        layout: shape of a batch.
        slots: number of batches.
    """

    def __init__(self, layout: BatchLayout, slots: int) -> None:
        self.slots = slots
        self._layout = layout
        self._file = _anonymous_file()
        os.ftruncate(self._file, slots * layout.num_bytes())
        self._map()

    def slot(self, number: int) -> Rows:
        """Return all rows of a batch."""
        return self._rows[number]

    def close(self) -> None:
        """Give up the memory; it is freed once no array or tensor shows it any more."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._rows = []

    def __getstate__(self) -> dict[str, Any]:
        return {"layout": self._layout, "slots": self.slots, "file": reduction.DupFd(self._file)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._layout, self.slots = state["layout"], state["slots"]
        self._file = state["file"].detach()
        self._map()

    def _map(self) -> None:
        memory = mmap.mmap(self._file, self.slots * self._layout.num_bytes())
        self._rows = [self._views(memory, slot * self._layout.num_bytes()) for slot in range(self.slots)]

    def _views(self, memory: mmap.mmap, offset: int) -> Rows:
        arrays: dict[str, NDArray[Any]] = {}
        for name, (shape, dtype) in self._layout.columns().items():
            count = int(np.prod(shape))
            arrays[name] = np.frombuffer(memory, dtype, count, offset).reshape(shape)
            offset += _aligned(shape, dtype)
        labels = {name: arrays.pop(f"label.{name}") for name in self._layout.labels}
        return Rows(labels=labels, **arrays)


def _aligned(shape: tuple[int, ...], dtype: type[np.generic]) -> int:
    num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("hmtl_dist-batches")
    with tempfile.TemporaryFile() as file:  # elsewhere than on Linux
        return os.dup(file.fileno())
