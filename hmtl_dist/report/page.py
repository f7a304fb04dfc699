"""Writes a report: one HTML file that needs nothing else, reads well on a screen and prints well."""

import base64
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from hmtl_dist.progress import duration
from hmtl_dist.report.charts import Bar, draw_bars, draw_curves
from hmtl_dist.report.study import Confusion, Group, Picture, Study, SuiteTable, images_of
from hmtl_dist.tracking.history import RecordedRun, told_metrics

SUITE_COLUMNS = ("row", "seeds", "last [95 %]", "best", "paper", "difference [95 %]", "p", "images", "min", "cost")
MAX_GROUPS = 20
"""Groups of runs that have a line in a chart; more cannot be told apart."""


@dataclass(frozen=True)
class Chart:
    """A picture with what it shows in words."""

    words: str
    source: str
    """Data URL."""


@dataclass(frozen=True)
class Table:
    """Heads and rows of texts."""

    head: list[str]
    rows: list[list[str]]

    @classmethod
    def without_empty(cls, head: Sequence[str], rows: Sequence[Sequence[str]]) -> "Table":
        """Leave out the columns that no row has anything in."""
        kept = [number for number in range(len(head)) if any(row[number] for row in rows)]
        return cls([head[number] for number in kept], [[row[number] for number in kept] for row in rows])


def write_page(study: Study) -> str:
    """Return the page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("hmtl_dist.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        study=study,
        facts=_facts(study),
        suites=[(table, _suite_charts(table), _suite_table(table)) for table in study.suites],
        metrics=_metrics(study.groups),
        curves=list(_curves(study)),
        confusions=list(_confusions(study.groups)),
        pictures=[(group, [_shown(picture) for picture in group.pictures]) for group in study.groups if group.pictures],
        sweeps=[(sweep, [_shown(picture) for picture in sweep.pictures]) for sweep in study.sweeps],
        runs=[_run_cells(run) for run in study.runs],
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


def _facts(study: Study) -> list[tuple[str, str]]:
    statuses: dict[str, int] = {}
    for run in study.runs:
        statuses[run.status] = statuses.get(run.status, 0) + 1
    told = ", ".join(f"{count} {status.lower()}" for status, count in sorted(statuses.items()))
    facts = [("runs", f"{len(study.runs)}: {told}" if study.runs else "none")]
    if images := sum(map(images_of, study.runs)):
        facts.append(("pictures trained on", f"{images:,}"))
    if seconds := sum(run.seconds for run in study.runs):
        facts.append(("time of all runs", duration(seconds)))
    if price := sum(run.metrics.get("cost/run", 0.0) for run in study.runs):
        facts.append(("cost", f"{price:,.2f}"))
    if study.datasets:
        facts.append(("data", ", ".join(study.datasets)))
    return [*facts, ("MLflow", study.address)]


# --- suites --------------------------------------------------------------------------------------------------------


def _suite_table(table: SuiteTable) -> "Table":
    rows = [
        [
            _title(row),
            row["seeds"],
            _interval(row, "mean", "low", "high"),
            _number(row["best"]),
            _number(row["paper"]),
            _interval(row, "difference", "difference_low", "difference_high", sign="+"),
            _number(row["p_value"], 3),
            _number(row["images"], 0),
            _number(row["minutes"], 1),
            _number(row.get("cost", "")),
        ]
        for row in table.rows
    ]
    return Table.without_empty(SUITE_COLUMNS, rows)


def _suite_charts(table: SuiteTable) -> list[Chart]:
    told = [row for row in table.rows if row["mean"]]
    charts: list[Chart] = []
    if told:
        bars = [
            Bar(
                _title(row),
                float(row["mean"]),
                *_bounds(row, "low", "high"),
                values=[float(pair.partition(":")[2]) for pair in row["values"].split()],
                reference=float(row["paper"]) if row["paper"] else None,
            )
            for row in told
        ]
        paper = ", cross: the paper" if any(bar.reference is not None for bar in bars) else ""
        words = f"dots: runs, diamond and bar: mean and 95 % interval{paper}"
        charts.append(Chart(f"Each row's runs ({words})", _svg_url(draw_bars(words, bars))))
    if compared := [row for row in told if row["difference"]]:
        bars = [
            Bar(
                f"{_title(row)} - {row['baseline']}",
                float(row["difference"]),
                *_bounds(row, "difference_low", "difference_high"),
            )
            for row in compared
        ]
        words = "difference to the baseline, paired by seed: mean and 95 % interval"
        charts.append(Chart(words, _svg_url(draw_bars(words, bars, zero=True))))
    return charts


def _title(row: Mapping[str, str]) -> str:
    return row.get("title") or row["row"]  # tables of before had no titles


def _bounds(row: Mapping[str, str], low: str, high: str) -> tuple[float | None, float | None]:
    return (float(row[low]), float(row[high])) if row[low] and row[high] else (None, None)


def _interval(row: Mapping[str, str], mean: str, low: str, high: str, sign: str = "") -> str:
    if not row[mean]:
        return ""
    form = f"{sign}.2f"
    bounds = _bounds(row, low, high)
    told = "" if bounds[0] is None or bounds[1] is None else f" [{bounds[0]:{form}}, {bounds[1]:{form}}]"
    return f"{float(row[mean]):{form}}{told}"


def _number(text: str, digits: int = 2) -> str:
    return f"{float(text):,.{digits}f}" if text else ""


# --- groups of runs ------------------------------------------------------------------------------------------------


def _metrics(groups: Sequence[Group]) -> "Table":
    names = list(dict.fromkeys(name for group in groups for name in group.metrics()))
    rows: list[list[str]] = []
    for group in groups:
        found = group.metrics()
        cells = [_spread(found.get(name, [])) for name in names]
        images = statistics.fmean(images_of(run) for run in group.runs)
        rates = _values(group, "train/samples_per_second")
        seconds = statistics.fmean(run.seconds for run in group.runs)
        costs = _values(group, "cost/run")
        rows.append(
            [
                group.name,
                str(len(group.runs)),
                *cells,
                f"{images:,.0f}" if images else "",
                duration(seconds) if seconds else "",
                f"{statistics.fmean(rates):,.1f}" if rates else "",
                f"{statistics.fmean(costs):,.2f}" if costs else "",
            ]
        )
    names = [name.replace("_", " ") for name in names]
    return Table.without_empty(["run", "runs", *names, "images", "time", "img/s", "cost"], rows)


def _values(group: Group, name: str) -> list[float]:
    return [run.metrics[name] for run in group.runs if name in run.metrics]


def _spread(values: Sequence[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return ""
    spread = f" ± {statistics.stdev(known):.4f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.4f}{spread}"


def _curves(study: Study) -> Iterator[Chart]:
    for name in told_metrics(study.runs):
        lines = {group.name: group.curves[name] for group in study.groups if name in group.curves}
        lines = dict(list(lines.items())[:MAX_GROUPS])
        if lines:
            title = name.removeprefix("eval/").removeprefix("train/").replace("/", " ")
            words = f"{title} over steps in {len(lines)} groups of runs"
            yield Chart(words, _svg_url(draw_curves(title, lines)))


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix with the shade of each cell."""

    group: str
    task: str
    classes: tuple[str, ...]
    rows: list[tuple[str, list[tuple[int, float]], float]]
    """Class, its (count, share), its recall."""


def _confusions(groups: Sequence[Group]) -> Iterator[Matrix]:
    for group in groups:
        for task, confusion in group.confusions.items():
            yield Matrix(group.name, task, confusion.classes, list(_shares(confusion)))


def _shares(confusion: Confusion) -> Iterator[tuple[str, list[tuple[int, float]], float]]:
    for number, (name, counts) in enumerate(zip(confusion.classes, confusion.counts, strict=True)):
        total = max(sum(counts), 1)
        yield name, [(count, count / total) for count in counts], counts[number] / total


def _run_cells(run: RecordedRun) -> tuple[str, ...]:
    began = f"{datetime.fromtimestamp(run.began, UTC):%Y-%m-%d %H:%M}"
    commit = run.tags.get("mlflow.source.git.commit", "")[:10]
    seconds = duration(run.seconds) if run.seconds else ""
    return run.name, run.status.lower(), began, seconds, f"{images_of(run):,}", commit, run.run_id


# --- pictures ------------------------------------------------------------------------------------------------------


def _shown(picture: Picture) -> tuple[Picture, str]:
    return picture, f"data:image/{picture.kind};base64,{base64.b64encode(picture.data).decode()}"


def _svg_url(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
