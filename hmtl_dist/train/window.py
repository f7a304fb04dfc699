"""What the loop gathers between two reports: sums of losses on the device, samples and seconds on the host."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from hmtl_dist.tasks.objective import Objective, StepLosses


@dataclass(frozen=True)
class WindowMeans:
    """The means of a window, read from the device at once."""

    losses: dict[str, float]
    """Global mean loss of each task, and `total`."""
    metrics: dict[str, float]
    """Global means as `TASK/METRIC`, without those that nothing counted for."""
    samples_per_second: float
    wait_share: float
    """Share of the window's time in which the loop waited for data."""
    step_seconds: float
    """Mean time of a step, waiting included."""


@dataclass
class Clock:
    """Time spent training, without what is spent evaluating and saving."""

    waited: Callable[[], float]
    """Seconds that the stream has made the loop wait so far."""
    samples: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    _started: float = field(default_factory=time.perf_counter)
    _waited_before: float = 0.0

    def lap(self, samples: int) -> None:
        """Add the time since the last lap or restart, in which `samples` were trained on."""
        now, waited = time.perf_counter(), self.waited()
        self.samples += samples
        self.seconds += now - self._started
        self.wait_seconds += waited - self._waited_before
        self._started, self._waited_before = now, waited

    def restart(self) -> None:
        """Leave out the time since the last lap."""
        self._started, self._waited_before = time.perf_counter(), self.waited()

    @property
    def samples_per_second(self) -> float:
        """Pictures a second of training time, over all ranks."""
        return self.samples / max(self.seconds, 1e-9)

    @property
    def wait_share(self) -> float:
        """Share of training time spent waiting for data."""
        return self.wait_seconds / max(self.seconds, 1e-9)


class Window:
    """Sums of one report window; adding to it never waits for the device."""

    def __init__(self, objective: Objective, waited: Callable[[], float]) -> None:
        self._objective = objective
        self._clock = Clock(waited)
        self.run = Clock(waited)
        """The whole run's training time so far."""
        self._sums: Tensor | None = None
        self._total: Tensor | None = None
        self._micro_batches = 0
        self._samples = 0
        self._steps = 0

    def add(self, step: Iterable[StepLosses]) -> None:
        """Add the losses of a step's micro-batches."""
        for losses in step:
            total = losses.total.detach().double()
            self._sums = losses.sums if self._sums is None else self._sums + losses.sums
            self._total = total if self._total is None else self._total + total
            self._micro_batches += 1

    def count(self, samples: int) -> None:
        """Count the samples of one global batch."""
        self._samples += samples
        self._steps += 1

    def read(self) -> WindowMeans:
        """Read the means with one wait for the device, and begin the next window; none where all steps were skipped."""
        losses, metrics = self._means()
        self._clock.lap(self._samples)
        self.run.lap(self._samples)
        read = WindowMeans(
            losses=losses,
            metrics=metrics,
            samples_per_second=self._clock.samples_per_second,
            wait_share=self._clock.wait_share,
            step_seconds=self._clock.seconds / max(self._steps, 1),
        )
        self._sums = self._total = None
        self._micro_batches = self._samples = self._steps = 0
        self._clock = Clock(self._clock.waited)
        self._clock.restart()
        return read

    def _means(self) -> tuple[dict[str, float], dict[str, float]]:
        if self._sums is None or self._total is None:
            return {}, {}
        means = self._objective.means(self._sums)
        names = [*means.losses, *means.metrics]
        present = torch.stack([means.present[name] for name in names])
        found = torch.stack([*means.losses.values(), *means.metrics.values()])
        total = (self._total / self._micro_batches)[None]
        values = cast("list[float]", cast(Any, torch.cat([found, present, total.to(found)])).tolist())
        by_name = {name: values[i] for i, name in enumerate(names) if values[len(names) + i] > 0}
        losses = {name: by_name[name] for name in means.losses if name in by_name} | {"total": values[-1]}
        return losses, {name: by_name[name] for name in means.metrics if name in by_name}

    def restart(self) -> None:
        """Leave out the time since the last read, which was spent on something else than training."""
        self._clock.restart()
        self.run.restart()
