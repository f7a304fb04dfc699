"""The table of a suite: what its results say, row by row, as text, CSV and figures for tracking."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hmtl_dist.reproduce.results import Result
from hmtl_dist.reproduce.statistics import Comparison, Estimate, compare, estimate
from hmtl_dist.reproduce.suite import Row, Suite, metric_of, run_name
from hmtl_dist.train.best import AT_THE_END


@dataclass(frozen=True)
class Line:
    """One row of the table, in the unit of the table."""

    name: str
    row: Row
    values: dict[int, float] = field(default_factory=dict[int, float])
    """Figure at the end of each finished run, by seed."""
    bests: dict[int, float] = field(default_factory=dict[int, float])
    """Figure of each run's best evaluation, which flatters: it was chosen on the pictures that it is told of."""
    value: Estimate | None = None
    best: Estimate | None = None
    against: Comparison | None = None
    """Against its baseline, over the seeds that both have."""
    images: float = 0.0
    """Pictures a run was trained on, what it begins from included; the mean over seeds."""
    minutes: float = 0.0
    """Wall time of a run, what it begins from included; the mean over seeds."""
    samples_per_second: float = 0.0
    """Pictures a second, the mean over seeds."""
    cost: float = 0.0
    """What a run cost by `launch.node_hour_price`, what it begins from included; the mean over seeds, 0 without one."""
    failed: int = 0
    """Runs that failed."""


def build_table(suite: Suite, name: str, seeds: Sequence[int], results: Mapping[str, Result]) -> list[Line]:
    """Return a line for each shown row, whatever has finished of it.

    Args:
        suite: The suite.
        name: What the runs' names begin with.
        seeds: Seeds of the table.
        results: Results by run name.
    """
    scale = 100.0 if suite.percent else 1.0
    lines: dict[str, Line] = {}
    for row_name, row in suite.rows.items():
        if not row.shown:
            continue
        source = row.runs_of or row_name
        ran = {seed: result for seed in seeds if (result := results.get(run_name(name, source, seed)))}
        done = {seed: result for seed, result in ran.items() if result.status == "FINISHED"}
        metric = metric_of(suite, row)
        values = _metrics(done, [f"{kind}{metric}" for kind in AT_THE_END], scale)
        bests = _metrics(done, [f"best/{metric}"], scale)
        costs = [_with_predecessors(suite, name, source, seed, results) for seed in done]
        rates = [result.samples_per_second for result in done.values() if result.samples_per_second]
        lines[row_name] = Line(
            name=row_name,
            row=row,
            values=values,
            bests=bests,
            value=estimate(list(values.values())) if values else None,
            best=estimate(list(bests.values())) if bests else None,
            against=_against(suite, values, lines.get(row.baseline or "")),
            images=_mean([sum(result.images for result in cost) for cost in costs]),
            minutes=_mean([sum(result.seconds for result in cost) / 60 for cost in costs]),
            samples_per_second=_mean(rates),
            cost=_mean([sum(result.cost for result in cost) for cost in costs]),
            failed=sum(result.status == "FAILED" for result in ran.values()),
        )
    return list(lines.values())


HEADER = (
    *("row", "seeds", "mean", "low", "high", "best", "paper", "baseline", "difference", "difference_low"),
    *(
        "difference_high",
        "p_value",
        "improvement",
        "images",
        "minutes",
        "images_per_second",
        "cost",
        "failed",
        "values",
        "title",
    ),
)


def as_csv(lines: Sequence[Line]) -> str:
    """Write the table as CSV, a value a seed in its last column; nothing is rounded."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(HEADER)
    for line in lines:
        value, against = line.value, line.against
        difference = against.difference if against else None
        writer.writerow(
            [
                line.name,
                len(line.values),
                *(("", "", "") if value is None else (value.mean, _blank(value.low), _blank(value.high))),
                "" if line.best is None else line.best.mean,
                _blank(line.row.paper),
                line.row.baseline or "",
                *(
                    ("", "", "")
                    if difference is None
                    else (difference.mean, _blank(difference.low), _blank(difference.high))
                ),
                *(("", "") if against is None else (against.p_value, against.improvement)),
                *(line.images, line.minutes, line.samples_per_second, line.cost or "", line.failed),
                " ".join(f"{seed}:{metric!r}" for seed, metric in line.values.items()),
                line.row.title,
            ]
        )
    return file.getvalue()


def as_metrics(lines: Sequence[Line]) -> dict[str, float]:
    """Return the table as figures by name, for tracking."""
    metrics: dict[str, float] = {}
    for line in lines:
        if line.value is not None:
            metrics[f"{line.name}/mean"] = line.value.mean
            metrics |= _interval(line.name, line.value)
        if line.best is not None:
            metrics[f"{line.name}/best"] = line.best.mean
        if line.against is not None:
            metrics[f"{line.name}/difference"] = line.against.difference.mean
            metrics |= _interval(f"{line.name}/difference", line.against.difference)
            metrics[f"{line.name}/p_value"] = line.against.p_value
            metrics[f"{line.name}/improvement"] = line.against.improvement
        if line.minutes:
            metrics[f"{line.name}/minutes"] = line.minutes
            metrics[f"{line.name}/images"] = line.images
        if line.cost:
            metrics[f"{line.name}/cost"] = line.cost
    return metrics


def _interval(name: str, found: Estimate) -> dict[str, float]:
    if found.low is None or found.high is None:
        return {}
    return {f"{name}/low": found.low, f"{name}/high": found.high}


COLUMNS = ("row", "seeds", "last [95 %]", "best", "paper", "against", "difference [95 %]", "p", "P(better)")
COST_COLUMNS = ("images", "min", "img/s", "cost")


def as_text(lines: Sequence[Line]) -> str:
    """Write the table in plain columns, for a terminal of any width."""
    return aligned([(*COLUMNS, *COST_COLUMNS), *as_cells(lines)])


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Write rows of texts in plain columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    texts: list[str] = []
    for title, *cells in table:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        texts.append("  ".join([title.ljust(widths[0]), *padded]).rstrip())
    return "\n".join(texts)


def as_cells(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """Return the table as texts for people, under `COLUMNS` and `COST_COLUMNS`."""
    return [_cells(line) for line in lines]


def _cells(line: Line) -> tuple[str, ...]:
    against = line.against
    return (
        line.row.title,
        f"{len(line.values)}" + (f" ({line.failed} failed)" if line.failed else ""),
        shown(line.value),
        "" if line.best is None else f"{line.best.mean:.2f}",
        "" if line.row.paper is None else f"{line.row.paper:.2f}",
        line.row.baseline or "",
        "" if against is None else shown(against.difference, sign=True),
        "" if against is None else f"{against.p_value:.3f}",
        "" if against is None else f"{against.improvement:.2f}",
        f"{line.images:,.0f}" if line.images else "",
        f"{line.minutes:.1f}" if line.minutes else "",
        f"{line.samples_per_second:,.0f}" if line.samples_per_second else "",
        f"{line.cost:,.2f}" if line.cost else "",
    )


def shown(found: Estimate | None, *, sign: bool = False) -> str:
    """Write an estimate as `61.09 [60.80, 61.40]`."""
    if found is None:
        return ""
    form = "+.2f" if sign else ".2f"
    interval = "" if found.low is None or found.high is None else f" [{found.low:{form}}, {found.high:{form}}]"
    return f"{found.mean:{form}}{interval}"


def _metrics(done: Mapping[int, Result], names: Sequence[str], scale: float) -> dict[int, float]:
    found: dict[int, float] = {}
    for seed, result in done.items():
        value = next((result.metrics[name] for name in names if name in result.metrics), None)
        if value is not None:
            found[seed] = value * scale
    return found


def _against(suite: Suite, values: Mapping[int, float], baseline: Line | None) -> Comparison | None:
    if baseline is None:
        return None
    seeds = [seed for seed in values if seed in baseline.values]
    if not seeds:
        return None
    theirs = [baseline.values[seed] for seed in seeds]
    return compare([values[seed] for seed in seeds], theirs, higher_is_better=suite.higher_is_better)


def _with_predecessors(
    suite: Suite, name: str, row: str | None, seed: int, results: Mapping[str, Result]
) -> list[Result]:
    found: list[Result] = []
    while row is not None:
        if result := results.get(run_name(name, row, seed)):
            found.append(result)
        row = suite.rows[row].init_from
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _blank(value: float | None) -> float | str:
    return "" if value is None else value
