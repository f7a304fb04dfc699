"""Means of a report window over hand-made losses, and its times on a hand-made clock."""

from types import SimpleNamespace

import pytest
import torch

from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.tasks.base import SingleRank
from hmtl_dist.tasks.classification import Classification, ClassificationConfig
from hmtl_dist.tasks.objective import Objective, StepLosses
from hmtl_dist.tasks.regression import Regression, RegressionConfig
from hmtl_dist.tasks.weighting import WeightingConfig
from hmtl_dist.train import window as window_module
from hmtl_dist.train.window import Window
from tests.tasks.batches import make_inputs

NAN = float("nan")


class Time:
    """A clock that goes when it is told to, and a stream that lets wait."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waited = 0.0

    def passes(self, seconds: float, *, waiting: float = 0.0) -> None:
        self.now += seconds
        self.waited += waiting


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(window_module, "time", SimpleNamespace(perf_counter=lambda: time.now))
    return time


def objective() -> Objective:
    fields = {"size": Field(kind="number")}
    tasks = [
        Classification("mood", ClassificationConfig(), ("calm", "glad"), ()),
        Regression("size", RegressionConfig(loss="l1"), fields),
    ]
    return Objective(tasks, WeightingConfig(), SingleRank())


def losses(tasks: Objective, moods: list[int], sizes: list[float]) -> StepLosses:
    """What a model says of a micro-batch that answers `calm` and 0 to everything."""
    size = len(moods)
    outputs = {
        "mood": {"clean": torch.tensor([[1.0, 0.0]]).repeat(size, 1)},
        "size": {"clean": torch.zeros(size, 1)},
    }
    inputs = make_inputs(num_samples=size, size=2, labels={"mood": torch.tensor(moods), "size": torch.tensor(sizes)})
    return tasks.losses(outputs, tasks.prepare(inputs)[1], inputs)


def started(tasks: Objective, time: Time) -> Window:
    """A window whose clock is the hand-made one from the start."""
    window = Window(tasks, lambda: time.waited)
    window.restart()
    return window


def test_means_weigh_every_labelled_sample_alike(time: Time) -> None:
    tasks = objective()
    window = started(tasks, time)
    window.add([losses(tasks, [0, 0, 0], [3.0, 6.0, NAN])])
    window.add([losses(tasks, [1, -1, -1], [NAN, NAN, 0.0])])
    metrics = window.read()
    assert metrics.losses["size"] == pytest.approx((3 + 6 + 0) / 3)
    assert metrics.metrics == {"mood/accuracy": 3 / 4, "size/mae_size": 3.0}


def test_the_total_is_the_mean_over_micro_batches(time: Time) -> None:
    tasks = objective()
    window = started(tasks, time)
    steps = [losses(tasks, [0, 1], [3.0, 5.0]), losses(tasks, [1, 1], [1.0, 2.0])]
    window.add(steps)
    assert window.read().losses["total"] == pytest.approx(sum(float(step.total) for step in steps) / 2)


def test_a_task_without_any_label_is_left_out(time: Time) -> None:
    tasks = objective()
    window = started(tasks, time)
    window.add([losses(tasks, [0, 1], [NAN, NAN])])
    metrics = window.read()
    assert set(metrics.losses) == {"mood", "total"}
    assert set(metrics.metrics) == {"mood/accuracy"}


def test_a_window_begins_empty(time: Time) -> None:
    tasks = objective()
    window = started(tasks, time)
    window.add([losses(tasks, [0], [50.0])])
    window.count(1)
    window.read()
    time.passes(2)
    window.add([losses(tasks, [1], [10.0])])
    window.count(4)
    metrics = window.read()
    assert (metrics.losses["size"], metrics.metrics["mood/accuracy"]) == (10.0, 0.0)
    assert metrics.samples_per_second == 2.0


def test_a_window_whose_steps_were_all_skipped_has_no_means() -> None:
    metrics = Window(objective(), lambda: 0.0).read()
    assert (metrics.losses, metrics.metrics) == ({}, {})


def test_wait_share_is_of_the_window_and_of_the_run(time: Time) -> None:
    tasks = objective()
    window = started(tasks, time)
    shares: list[float] = []
    for waiting in (3.0, 1.0):
        time.passes(4, waiting=waiting)
        window.add([losses(tasks, [0], [0.0])])
        window.count(8)
        shares.append(window.read().wait_share)
    assert shares == [0.75, 0.25]
    assert (window.run.wait_share, window.run.samples_per_second) == (0.5, 2.0)


def test_time_of_a_step_is_the_mean_of_the_window(time: Time) -> None:
    window = started(objective(), time)
    for seconds in (1.0, 3.0):
        time.passes(seconds)
        window.count(8)
    assert window.read().step_seconds == 2.0


def test_time_of_evaluating_and_saving_is_no_training_time(time: Time) -> None:
    tasks = objective()
    window = started(tasks, time)
    for _ in range(2):
        time.passes(4, waiting=1)
        window.add([losses(tasks, [0], [0.0])])
        window.count(8)
        metrics = window.read()
        time.passes(60, waiting=30)  # an evaluation
        window.restart()
        assert (metrics.samples_per_second, metrics.wait_share) == (2.0, 0.25)
    assert (window.run.samples_per_second, window.run.wait_share) == (2.0, 0.25)
