"""The samples of a build on disk, a line each, with what deciding their places needs of each in memory."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from hmtl_dist.data.dataset.adapter import Adapter, Box, Rejected, SampleRef


@dataclass
class Spool:
    """The samples [n] of an adapter, in its order."""

    path: Path
    offsets: NDArray[np.int64]
    """Where each sample's line begins."""
    groups: NDArray[np.uint64]
    """Seeded hash of each sample's group."""
    orders: NDArray[np.uint64]
    """Seeded hash of each sample, to shuffle by."""
    splits: NDArray[np.int64]
    """Number of each sample's published split, -1 for none."""
    digest: str
    """SHA-256 over all lines."""
    rejected: list[Rejected] = field(default_factory=list[Rejected])


def _as_utf8(text: str) -> str:
    """The text with a question mark for what cannot be written."""
    return text.encode(errors="replace").decode()


def write_spool(adapter: Adapter, path: Path, seed: int) -> Spool:
    """Write what an adapter names to a file."""
    offsets: list[int] = []
    groups: list[int] = []
    orders: list[int] = []
    splits: list[int] = []
    rejected: list[Rejected] = []
    digest = hashlib.sha256()
    hash_seed = xxhash.xxh3_64_intdigest(str(seed).encode())
    published = adapter.splits
    with path.open("wb") as file:
        for ref in adapter.refs():
            if isinstance(ref, Rejected):
                rejected.append(Rejected(_as_utf8(ref.name), _as_utf8(ref.reason)))
                continue
            if (name := _as_utf8(ref.name)) != ref.name:  # as other systems name files
                rejected.append(Rejected(name, "its name is no UTF-8"))
                continue
            line = _line(ref)
            offsets.append(file.tell())
            # A sample without a group is a group of its own.
            group = f"group {ref.group}" if ref.group is not None else f"sample {ref.name}"
            groups.append(xxhash.xxh3_64_intdigest(group.encode(), hash_seed))
            orders.append(xxhash.xxh3_64_intdigest(f"{len(offsets)} {ref.name}".encode(), hash_seed))
            splits.append(published.index(ref.split or "") if published else -1)
            digest.update(line)
            file.write(line)
    return Spool(
        path,
        np.array(offsets, dtype=np.int64),
        np.array(groups, dtype=np.uint64),
        np.array(orders, dtype=np.uint64),
        np.array(splits, dtype=np.int64),
        digest.hexdigest(),
        rejected,
    )


def read_refs(path: Path, offsets: NDArray[np.int64]) -> Iterator[SampleRef]:
    """The samples whose lines begin at `offsets`."""
    with path.open("rb") as file:
        for offset in offsets:
            file.seek(int(offset))
            name, labels, group, *more = json.loads(file.readline())
            split, box = more or (None, None)
            yield SampleRef(name, labels, group, split, Box(*box) if box else None)


def _line(ref: SampleRef) -> bytes:
    values: list[Any] = [ref.name, ref.labels, ref.group]
    # Only where there are some: sets that have neither keep their digest.
    if ref.split is not None or ref.box is not None:
        box = ref.box
        values += [ref.split, [box.left, box.top, box.width, box.height] if box else None]
    return json.dumps(values).encode() + b"\n"
