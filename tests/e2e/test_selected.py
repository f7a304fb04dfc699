"""Runs on a part of a set, with balanced classes and another set mixed in: as exact as on a whole one."""

import signal
from pathlib import Path

import pytest

from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.launch.driver import drive
from hmtl_dist.launch.evaluate import evaluate_run
from hmtl_dist.run_config import RunConfig
from hmtl_dist.train.base import Progress
from tests.data.stream.streaming import make_set
from tests.e2e.drawn import config, draw, weights


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """40 pictures with some of the drawn faces' expressions, and a label of its own."""
    folder = tmp_path_factory.mktemp("other")
    fields = {
        "expression": Field(kind="category", classes=("sad", "happy")),
        "wink": Field(kind="category", classes=("no", "left", "right")),
    }
    return make_set(
        str(folder / "set"),
        folder,
        [20, 20],
        fields=fields,
        labels=lambda n: {"expression": (None, "sad", "happy")[n % 3], "wink": ("no", "left", "right")[n % 3]},
    ).url


@pytest.mark.nightly
def test_a_stopped_run_goes_on_and_is_evaluated_on_the_fold_it_was_not_trained_on(other: str, tmp_path: Path) -> None:
    drawn = draw(str(tmp_path / "drawn"))

    def run(name: str, num_workers: int) -> RunConfig:
        data = {
            "folds": 3,
            "fold": 1,
            "stratify_by": "gender",
            "balance": "expression",
            "mix": [{"url": other, "ratio": 0.5}],
            "num_workers": num_workers,
        }
        return config(name, drawn, data=data, tasks={"wink": {"type": "classification", "class_weights": "index"}})

    whole = drive(run("whole", 0), lambda progress: None)
    assert (whole.outcome.status, whole.outcome.total_steps) == ("FINISHED", 12)

    def press(progress: Progress) -> None:
        if progress.global_step == 5:
            signal.raise_signal(signal.SIGINT)

    stopped = run("stopped", 2)
    assert drive(stopped, press).outcome.status == "STOPPED"
    resumed = drive(stopped, lambda progress: None)
    assert weights(resumed.outcome.checkpoint) == weights(whole.outcome.checkpoint)
    assert resumed.outcome.metrics == whole.outcome.metrics

    evaluation, _ = evaluate_run("whole")
    assert evaluation.num_samples == 24
    at_its_end = {name: value for name, value in whole.outcome.metrics.items() if name in evaluation.metrics}
    assert evaluation.metrics == pytest.approx(at_its_end, rel=1e-6, abs=1e-7)
    assert "eval/wink/accuracy" not in evaluation.metrics
    elsewhere, _ = evaluate_run("whole", split="train", data=other)
    assert elsewhere.num_samples == 40
    assert "eval/wink/accuracy" in elsewhere.metrics
