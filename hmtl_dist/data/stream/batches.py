# pyright: reportUnknownMemberType=false
"""A plan and its shards as batches: the stream that training and evaluation read.

A stream is a webdataset pipeline whose source is the reader of a plan; the pipeline's samples are decoded into the
rows of batches, by data-loader processes or, with `num_workers=0`, by the process itself.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from torch import Tensor

from hmtl_dist.data.config import DataConfig
from hmtl_dist.data.storage.waits import waiting_for
from hmtl_dist.data.stream.loader import Damaged, Loader, LoaderJob, SampleTransform, StepReport
from hmtl_dist.data.stream.mixing import SampleIndex
from hmtl_dist.data.stream.pipeline import planned_samples
from hmtl_dist.data.stream.plan import Plan
from hmtl_dist.data.stream.ring import BatchLayout, Ring, Rows
from hmtl_dist.data.stream.worker import Workers, preload_workers
from hmtl_dist.errors import UserError

__all__ = ["Batch", "DataConfig", "SampleTransform", "Stream", "StreamStats", "preload_workers"]

JUDGED_SAMPLES = 1024
"""The share of damaged pictures is taken of at least so many (or an epoch, if less): a single early one is no sign."""


@dataclass(frozen=True)
class Batch:
    """One rank's samples of one step."""

    images: Tensor
    """RGB uint8 `[b, H, W, 3]`; as a stream gives it, in memory that is used again when the next batch is asked for."""
    labels: dict[str, Tensor]
    """Categories int64 `[b]` (-1 = missing), numbers float32 `[b]` (NaN = missing)."""
    weight: Tensor
    """float32 `[b]`; 0 for a damaged or padded sample, else 1."""
    positions: Tensor
    """Position of each sample in the epoch, int64 `[b]`: the key of its draws."""
    sample_ids: Tensor
    """Global sample ids, int64 `[b]`, -1 for a padded slot."""
    epoch: int
    step: int

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Return it with all that a step computes with changed; the sample ids, which only people read, stay."""
        return replace(
            self,
            images=change(self.images),
            labels={name: change(values) for name, values in self.labels.items()},
            weight=change(self.weight),
            positions=change(self.positions),
        )


@dataclass
class StreamStats:
    """What a stream has done so far, on this rank."""

    wait_seconds: float = 0.0
    """Time spent waiting for batches."""
    samples: int = 0
    """Slots delivered, padded ones included."""
    bytes_read: int = 0
    """Bytes read from the storage, by all data-loader processes."""
    retries: int = 0
    """Requests repeated, after a fault or for a digest that did not match."""
    damaged_samples: list[Damaged] = field(default_factory=list[Damaged])
    """Samples that could not be decoded."""

    @property
    def damaged(self) -> int:
        """Number of samples that could not be decoded."""
        return len(self.damaged_samples)


class Stream:
    """Batches of one rank, step after step; a context manager.

    Args:
        index: the shards.
        plan: their order; the ranks of a run, and its loader workers, must have equal ones.
        transform: decodes and transforms a picture.
        config: size of the pictures, labels, loader processes and bounds; what the plan was made of is not read again.
        rank: this rank.
        world_size: number of ranks, a divisor of the plan's lanes.
        start: first epoch and step.
        epochs: epochs to yield, that of `start` included; None for no end.

    Raises:
        UserError: the ranks do not divide the lanes, or a field is unknown.
    """

    def __init__(
        self,
        index: SampleIndex,
        plan: Plan,
        transform: SampleTransform,
        config: DataConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        start: tuple[int, int] = (0, 0),
        epochs: int | None = None,
    ) -> None:
        self.stats = StreamStats()
        self._index = index
        self._plan = plan
        self._max_bad_share = config.max_bad_share
        self._steps = plan.steps(start, epochs)
        lanes = plan.rank_lanes(rank, world_size)
        labels = label_types(index, config.fields)
        self._batch_size = len(lanes) * plan.per_lane
        layout = BatchLayout(self._batch_size, config.image_size, labels)
        jobs = [
            LoaderJob(
                index=index,
                plan=plan,
                transform=transform,
                fields=tuple(labels),
                lanes=part,
                first_row=(part.start - lanes.start) * plan.per_lane,
                start=start,
                epochs=epochs,
                lane_bytes=config.buffer_bytes // len(lanes),
                pipeline=planned_samples,
            )
            for part in _split(lanes, max(1, config.num_workers))
        ]
        self._ring = Ring(layout, config.prefetch_batches + 1 if config.num_workers else 1)
        self._images = [torch.from_numpy(self._ring.slot(number).images) for number in range(self._ring.slots)]
        self._reports = [StepReport(0, 0) for _ in jobs]
        self._delivered = 0
        self._workers: Workers | None = None
        self._loader: Loader | None = None
        self._closed = False
        try:
            if config.num_workers:
                self._workers = Workers(jobs, self._ring)
            else:
                self._loader = Loader(jobs[0])
        except BaseException:
            self.close()
            raise

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the data-loader processes."""
        return [] if self._workers is None else self._workers.pids

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Return the next batch; the pictures of the one before are gone.

        Raises:
            UserError: data cannot be read or too much of it is damaged, or a data-loader process died.
        """
        if self._closed:
            raise RuntimeError("the stream is closed")
        epoch, step = next(self._steps)
        begun = time.perf_counter()
        slot = self._delivered % self._ring.slots
        rows = self._ring.slot(slot)
        with waiting_for(self._index.url):
            if self._workers is not None:
                if self._delivered:
                    self._workers.release()
                self._reports = self._workers.receive()
            elif self._loader is not None:
                self._reports = [self._loader.load(epoch, step, rows)]
        self._delivered += 1
        self.stats.wait_seconds += time.perf_counter() - begun
        self._account()
        return _batch(rows, self._images[slot], epoch, step)

    def close(self) -> None:
        """End the stream: no process or thread of it is left, and its memory is freed with its last batch."""
        self._closed = True
        if self._workers is not None:
            self._workers.close()
        if self._loader is not None:
            self._loader.close()
        self._ring.close()
        self._images = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _account(self) -> None:
        stats = self.stats
        stats.samples += self._batch_size
        stats.bytes_read = sum(report.bytes_read for report in self._reports)
        stats.retries = sum(report.retries for report in self._reports)
        found = [damaged for report in self._reports for damaged in report.damaged]
        if not found:
            return
        stats.damaged_samples.extend(found)
        epoch = self._plan.steps_per_epoch * self._batch_size
        if stats.damaged > self._max_bad_share * max(stats.samples, min(epoch, JUDGED_SAMPLES)):
            last = found[-1]
            raise UserError(
                f"{stats.damaged} of {stats.samples} pictures cannot be decoded (the last: {last.key} in "
                f"{last.shard}: {last.reason}), more than data.max_bad_share={self._max_bad_share}: "
                f"run `hmtl-dist data verify {' '.join(part.url for part in self._index.parts)}`, "
                "or raise data.max_bad_share"
            )


def _batch(rows: Rows, images: Tensor, epoch: int, step: int) -> Batch:
    # All but the pictures is small: copied, so that it may be kept.
    return Batch(
        images=images,
        labels={name: torch.tensor(column) for name, column in rows.labels.items()},
        weight=torch.tensor(rows.weight),
        positions=torch.tensor(rows.positions),
        sample_ids=torch.tensor(rows.sample_ids),
        epoch=epoch,
        step=step,
    )


def label_types(index: SampleIndex, fields: Iterable[str] | None) -> dict[str, type[np.generic]]:
    """Say which labels a stream gives, and as what: classes as int64, -1 where missing, numbers as float32.

    Raises:
        UserError: The data have no such label.
    """
    known = index.header.fields
    names = list(known if fields is None else fields)
    for name in names:
        if name not in known:
            raise UserError(
                f"data.fields: no label {name!r} in {index.url}; there are {', '.join(known) or 'no labels at all'}"
            )
    return {name: np.int64 if known[name].kind == "category" else np.float32 for name in names}


def _split(lanes: range, parts: int) -> list[range]:
    """Split lanes into neighbouring parts of nearly equal number, none empty."""
    parts = min(parts, len(lanes))
    bounds = [lanes.start + len(lanes) * part // parts for part in range(parts + 1)]
    return [range(first, end) for first, end in pairwise(bounds)]
