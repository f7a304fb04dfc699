"""The views that are saved in MLflow: which charts and columns they have."""

from pathlib import Path
from typing import Any

import pytest

from hmtl_dist.tracking.config import TrackingConfig
from hmtl_dist.tracking.history import History, RecordedRun
from hmtl_dist.tracking.views import views_of

FIGURES = ("train/loss/mood", "train/loss/total", "eval/mood/accuracy", "eval/mood/loss")


@pytest.fixture
def state(tmp_path: Path) -> dict[str, Any]:
    run = RecordedRun(
        run_id="1" * 32,
        name="run",
        status="FINISHED",
        began=0.0,
        seconds=1.0,
        tags={},
        params={},
        metrics=dict.fromkeys(FIGURES, 0.5),
        steps=dict.fromkeys(FIGURES, 1),
        datasets=("drawn",),
    )
    (view,) = views_of(History(TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")), [run])
    return view.state


def lines(state: dict[str, Any]) -> list[dict[str, Any]]:
    return [chart for chart in state["compareRunCharts"] if chart["type"] == "LINE"]


def test_a_loss_in_training_and_in_evaluations_is_one_chart(state: dict[str, Any]) -> None:
    assert {chart["metricKey"]: chart["selectedMetricKeys"] for chart in lines(state)} == {
        "eval/mood/accuracy": ["eval/mood/accuracy"],
        "train/loss/mood": ["train/loss/mood", "eval/mood/loss"],
        "train/loss/total": ["train/loss/total"],
    }


def test_no_line_is_smoothed(state: dict[str, Any]) -> None:
    assert {chart["lineSmoothness"] for chart in lines(state)} == {0}


def test_the_columns_tell_runs_apart(state: dict[str, Any]) -> None:
    assert state["selectedColumns"] == [
        *("metrics.`eval/mood/accuracy`", "params.`recipe`", "tags.`tasks`", "params.`seed`", "attributes.`Dataset`")
    ]
