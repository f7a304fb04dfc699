"""The Grafana dashboard against Grafana's own types, Prometheus' grammar, and the metrics that a run has.

That a real run exports them all is shown in `tests/e2e/test_ray_job.py`.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import json
import re
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import promql_parser
import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from hmtl_dist.launch.ray_metrics import COUNTERS, GAUGES

FILE = Path(__file__).resolve().parents[2] / "cluster" / "grafana" / "runs.json"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text())
OWN = {f"ray_{name}" for name in GAUGES} | {f"ray_{name}_total" for name in COUNTERS}


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def lost(given: Any, found: Any, path: str = "") -> list[str]:
    """The paths of what is given and not found."""
    if isinstance(given, dict) and isinstance(found, dict):
        here, there = cast("dict[str, Any]", given), cast("dict[str, Any]", found)
        return [one for key, value in here.items() for one in lost(value, there.get(key), f"{path}.{key}")]
    if isinstance(given, list) and isinstance(found, list):
        pairs = zip_longest(cast("list[Any]", given), cast("list[Any]", found))
        return [one for at, (value, other) in enumerate(pairs) for one in lost(value, other, f"{path}[{at}]")]
    return [] if given == found else [path]


def test_grafanas_own_types_know_every_field() -> None:
    """What its generated types do not know would be lost on the way through them."""
    register_default_plugins()
    through = JSONEncoder(sort_keys=True).encode(Dashboard.from_json(DASHBOARD))
    assert lost(DASHBOARD, json.loads(through)) == []


@pytest.mark.parametrize("expression", expressions())
def test_expression_is_one_of_prometheus(expression: str) -> None:
    promql_parser.parse(expression.replace("$__rate_interval", "1m").replace("$__range", "1h"))


def test_every_metric_of_a_run_is_shown_and_none_that_it_has_not() -> None:
    shown = {name for text in expressions() for name in re.findall(r"ray_hmtl_\w+", text)}
    assert shown == OWN


def test_panels_do_not_cover_one_another() -> None:
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert (len(cells), max(x for x, _ in cells)) == (len(set(cells)), 23)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
