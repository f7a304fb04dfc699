"""Samples into the rows of a batch: decoding, geometry, labels, and what happens to damaged pictures."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hmtl_dist.data.decode import DecodeError
from hmtl_dist.data.stream.mixing import SampleIndex
from hmtl_dist.data.stream.plan import PADDING, Plan
from hmtl_dist.data.stream.reader import Reader, Sample
from hmtl_dist.data.stream.ring import Rows

GREY = 127
"""Value of a picture that stands for a damaged one when its lane has no good one before it in the step."""


class SampleTransform(Protocol):
    """Encoded bytes to a picture of fixed size; picklable, and without state: every draw is keyed by position."""

    def draw(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Draw the parameters of samples: `[n, P]` for positions `[n]`."""
        ...

    def picture(self, encoded: bytes, params: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
        """Decode and transform one picture by its parameters `[P]` into `out`, RGB `[H, W, 3]`.

        Raises:
            DecodeError: the bytes cannot be decoded.
        """
        ...

    def labels(self, labels: dict[str, NDArray[Any]], params: NDArray[np.float32]) -> None:
        """Change labels `[n]` in place as the geometry of the pictures asks, by the parameters `[n, P]`."""
        ...


@dataclass(frozen=True)
class Damaged:
    """A sample whose bytes are as they were written, but no picture."""

    sample_id: int
    key: str
    shard: str
    """Its URL."""
    reason: str


@dataclass(frozen=True)
class StepReport:
    """What loading one step came to; the counters are those since the start."""

    bytes_read: int
    retries: int
    damaged: list[Damaged] = field(default_factory=list[Damaged])
    """Of this step alone."""


@dataclass(frozen=True)
class LoaderJob:
    """All that is needed to load some lanes of a rank; picklable."""

    index: SampleIndex
    plan: Plan
    transform: SampleTransform
    fields: tuple[str, ...]
    """Labels to load."""
    lanes: range
    first_row: int
    """Row of the rank's batch at which these lanes begin."""
    start: tuple[int, int]
    epochs: int | None
    lane_bytes: int
    """Most encoded bytes held for one lane."""
    pipeline: Callable[[Reader], Iterable[Sample]]
    """Makes the stream of samples out of the reader."""


class Loader:
    """Fills the rows of some lanes, step after step."""

    def __init__(self, job: LoaderJob) -> None:
        self._job = job
        self._reader = Reader(
            job.index,
            job.plan,
            lanes=job.lanes,
            start=job.start,
            epochs=job.epochs,
            fields=job.fields,
            lane_bytes=job.lane_bytes,
        )
        self._samples: Iterator[Sample] = iter(job.pipeline(self._reader))
        per_lane = job.plan.per_lane
        self._rows = slice(job.first_row, job.first_row + len(job.lanes) * per_lane)
        self._slots = np.arange(job.lanes.start * per_lane, job.lanes.stop * per_lane, dtype=np.int64)

    def load(self, epoch: int, step: int, batch: Rows) -> StepReport:
        """Fill this loader's rows of a rank's batch; steps must come in order.

        A damaged picture is replaced by the one before it in its lane and step (itself perhaps a replacement), by a
        grey one if there is none: that depends on the plan alone. It keeps its id and has weight 0.
        """
        job, rows = self._job, batch[self._rows]
        rows.positions[:] = step * job.plan.batch_size + self._slots
        params = job.transform.draw(epoch, rows.positions)
        rows.weight[:] = 1
        damaged: dict[int, Damaged] = {}
        values: dict[str, list[float]] = {name: [] for name in job.fields}
        for number, lane in enumerate(job.lanes):
            first = number * job.plan.per_lane
            count = job.plan.samples_of(lane, step)
            for row, sample in enumerate(islice(self._samples, count), first):
                rows.sample_ids[row] = sample["sample_id"]
                for name, value in sample["labels"].items():
                    values[name].append(value)
                try:
                    job.transform.picture(sample["jpg"], params[row], rows.images[row])
                except DecodeError as error:
                    damaged[row] = Damaged(sample["sample_id"], sample["__key__"], sample["__url__"], str(error))
            self._pad(rows[first + count : first + job.plan.per_lane], values)
        for name, column in rows.labels.items():
            column[:] = values[name]
        job.transform.labels(dict(rows.labels), params)
        for row in damaged:
            self._replace(rows, row)
        return StepReport(self._reader.bytes_read, self._reader.retries, list(damaged.values()))

    def close(self) -> None:
        """End the reader and its threads."""
        self._reader.close()

    def _pad(self, rows: Rows, values: dict[str, list[float]]) -> None:
        rows.images[:] = GREY
        rows.weight[:] = 0
        rows.sample_ids[:] = PADDING
        for name, column in rows.labels.items():
            values[name].extend([_missing(column)] * len(column))

    def _replace(self, rows: Rows, row: int) -> None:
        rows.weight[row] = 0
        if row % self._job.plan.per_lane:
            rows.images[row] = rows.images[row - 1]
            for column in rows.labels.values():
                column[row] = column[row - 1]
        else:
            rows.images[row] = GREY
            for column in rows.labels.values():
                column[row] = _missing(column)


def _missing(column: NDArray[Any]) -> float:
    return -1 if column.dtype.kind == "i" else float("nan")
