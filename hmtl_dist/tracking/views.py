# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
"""Saved views of MLflow's own page: which charts and columns compare the runs of an experiment.

MLflow keeps a view as a tag of the experiment, `mlflow.sharedViewState.KEY`: JSON with a name, a time and the state of
its page, deflated. A view is saved under the same key each time, so there is one of each.
"""

import base64
import json
import time
import zlib
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

from hmtl_dist.tracking.client import answering, open_client
from hmtl_dist.tracking.config import FOR_TRAINING, TrackingConfig
from hmtl_dist.tracking.history import History, RecordedRun, told_metrics

_PREFIX = "mlflow.sharedViewState."
_SECTIONS = {"eval": "Evaluation", "train": "Training", "pictures": "Pictures"}
_SHOWN_RUNS = 20
_COLUMNS = ["params.`recipe`", "tags.`tasks`", "params.`seed`", "attributes.`Dataset`"]
"""Columns beside the figures: by what runs are told apart."""
_AS_RECORDED = {"lineSmoothness": 0, "useGlobalLineSmoothing": True, "xAxisKey": "step", "useGlobalXaxisKey": True}
"""Of a line; MLflow smooths one that says nothing so much that its end is far from the last figure."""


@dataclass(frozen=True)
class View:
    """A way to look at an experiment's runs."""

    key: str
    name: str
    state: dict[str, Any]
    """State of MLflow's page."""


def views_of(history: History, runs: Sequence[RecordedRun]) -> list[View]:
    """Return the views for an experiment with these runs: one by run, and one by row where a suite has rows.

    Args:
        history: Where the names of pictures are looked up.
        runs: Of the experiment.
    """
    metrics = told_metrics(runs)
    pictured = [run for run in runs if "mlflow.loggedImages" in run.tags]
    pictures = sorted(history.pictures(pictured[-1].run_id)) if pictured else []
    # sorted by time, MLflow would fold the children of a suite or a sweep into their parent and chart nothing of them
    best = next((name for name in metrics if name.startswith("eval/")), None)
    order = {} if best is None else {"orderByKey": f"metrics.`{best}`", "orderByAsc": best.endswith("/mae")}
    losses = {name for run in runs for name in run.metrics if name.startswith("eval/") and name.endswith("/loss")}
    found = [View("hmtl-runs", "hmtl: runs", _state(metrics, losses, pictures, **order))]
    if any("row" in run.tags for run in runs):
        rows = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "row"}]}
        found.append(View("hmtl-rows", "hmtl: rows, mean over seeds", _state(metrics, losses, (), groupBy=rows)))
    return found


def save_views(config: TrackingConfig, experiment_id: str, views: Sequence[View]) -> None:
    """Save views in an experiment, over those of the same keys.

    Raises:
        UserError: MLflow does not answer, or refuses.
    """
    with answering(config):
        client = open_client(config)
        for view in views:
            packed = base64.b64encode(zlib.compress(json.dumps(view.state).encode())).decode()
            entry = {"name": view.name, "createdAt": int(1000 * time.time()), "state": f"deflate;{packed}"}
            client.set_experiment_tag(experiment_id, f"{_PREFIX}{view.key}", json.dumps(entry))


def view_url(address: str, experiment_id: str, view: View) -> str:
    """Return where a view is seen, on a server's page."""
    shown = f"viewStateShareKey={view.key}&compareRunsMode=CHART&{FOR_TRAINING}"
    return f"{address.rstrip('/')}/#/experiments/{experiment_id}/runs?{shown}"


def _state(metrics: Sequence[str], losses: Set[str], pictures: Sequence[str], **more: Any) -> dict[str, Any]:
    evaluated = [name for name in metrics if name.startswith("eval/")]
    sections = [{"uuid": key, "name": name, "display": True, "isReordered": True} for key, name in _SECTIONS.items()]
    return {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": [f"metrics.`{name}`" for name in evaluated] + _COLUMNS,
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": list(_charts(metrics, losses, pictures)),
        "compareRunSections": sections,
        "isAccordionReordered": True,
        "viewMaximized": False,
        "runListHidden": False,
        "groupBy": None,
        "groupsExpanded": {},
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    } | more


def _charts(metrics: Sequence[str], losses: Set[str], pictures: Sequence[str]) -> Iterator[dict[str, Any]]:
    for name in metrics:
        section = name.partition("/")[0]
        title = name.partition("/")[2].replace("/", " ")
        evaluated = f"eval/{name.removeprefix('train/loss/')}/loss"
        keys = [name, evaluated] if evaluated in losses else [name]
        yield _chart(
            "LINE", f"line {name}", section, metricKey=name, selectedMetricKeys=keys, displayName=title, **_AS_RECORDED
        )
        if section == "eval":
            yield _chart("BAR", f"bar {name}", section, metricKey=name, displayName=f"{title}, last")
    for name in pictures:
        yield _chart("IMAGE", f"image {name}", "pictures", imageKeys=[name], step=0, displayName=name)


def _chart(kind: str, uuid: str, section: str, **more: Any) -> dict[str, Any]:
    fixed = {"type": kind, "uuid": uuid, "metricSectionId": section, "runsCountToCompare": _SHOWN_RUNS}
    return fixed | {"deleted": False, "isGenerated": False} | more
