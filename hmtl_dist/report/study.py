"""Gathers what a report shows: suites, sweeps, and groups of runs that differ by their seed alone."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from hmtl_dist.errors import UserError
from hmtl_dist.tracking.history import METRICS, History, RecordedRun, told_metrics
from hmtl_dist.train.best import AT_THE_END

COLUMNS = (*METRICS, "balanced_accuracy", "macro_f1")
"""Figures of an evaluation that have a column, in this order."""
MAX_PICTURES = 8

Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Picture:
    """A picture that a run has recorded."""

    name: str
    step: int
    kind: str
    """`webp` or `png`."""
    data: bytes = field(repr=False)
    run: str = ""


@dataclass(frozen=True)
class Confusion:
    """Counts of a classification task; over all runs of a group."""

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    """Rows are true classes, columns predicted ones."""


@dataclass
class Group:
    """Runs that differ by their seed alone: a row of a suite, or one run."""

    name: str
    runs: list[RecordedRun]
    curves: dict[str, list[Curve]] = field(default_factory=dict[str, list[Curve]])
    """History of a figure in each run, by its name."""
    confusions: dict[str, Confusion] = field(default_factory=dict[str, Confusion])
    pictures: list[Picture] = field(default_factory=list[Picture])

    def metrics(self) -> dict[str, list[float]]:
        """Return the figures at the end of its runs as `TASK METRIC`, a value a run."""
        found: dict[str, list[float]] = {}
        for run in self.runs:
            for name in _evaluated(run):
                value = next((run.metrics[key] for kind in AT_THE_END if (key := f"{kind}{name}") in run.metrics), None)
                if value is not None:
                    found.setdefault(name.replace("/", " "), []).append(value)
        return found


@dataclass(frozen=True)
class SuiteTable:
    """The table of a suite, a dictionary a row, as `hmtl-dist reproduce` recorded it."""

    name: str
    title: str
    rows: list[dict[str, str]]


@dataclass(frozen=True)
class Sweep:
    """What a search has come to."""

    name: str
    status: str
    leaderboard: list[dict[str, str]]
    pictures: list[Picture]


@dataclass
class Study:
    """All that a page shows."""

    name: str
    address: str
    suites: list[SuiteTable] = field(default_factory=list[SuiteTable])
    sweeps: list[Sweep] = field(default_factory=list[Sweep])
    groups: list[Group] = field(default_factory=list[Group])
    runs: list[RecordedRun] = field(default_factory=list[RecordedRun])
    """Every training, trials of a search too; without the runs that only hold others together."""

    @property
    def datasets(self) -> list[str]:
        """Names of all data sets, in the order of their first use."""
        return list(dict.fromkeys(name for run in self.runs for name in run.datasets))


def find_study(name: str, history: History) -> Study:
    """Find what MLflow has of a name: an experiment, a suite's table, a sweep, or all of these together.

    The groups of runs that it returns hold no curves and pictures yet; `read_groups` reads them.

    Args:
        name: Of an experiment, of a suite's table (`hmtl-dist reproduce --name`), or of a sweep.
        history: Where to look.

    Raises:
        UserError: There is nothing of this name, or MLflow does not answer.
    """
    parts = (history.of_experiment(name), history.tagged("suite", name), history.tagged("sweep", name))
    found = {run.run_id: run for runs in parts for run in runs}
    if not found:
        known = ", ".join(history.experiments()) or "none"
        raise UserError(
            f"{name}: MLflow at {history.address} has no runs of an experiment, suite or sweep of this name; "
            f"its experiments: {known}"
        )
    study = Study(name=name, address=history.address)
    grouped: dict[str, Group] = {}
    for run in found.values():
        if run.tags.get("kind") == "sweep":
            study.sweeps.append(_sweep(history, run))
        elif "suite" in run.tags and run.parent is None and "row" not in run.tags:
            if table := _suite(history, run):
                study.suites.append(table)
        else:
            study.runs.append(run)
            if "trial" not in run.tags:
                label = run.tags.get("row") or run.name
                grouped.setdefault(label, Group(label, [])).runs.append(run)
    study.groups = list(grouped.values())
    return study


def read_groups(study: Study, history: History) -> Iterator[int]:
    """Read the curves, confusion matrices and pictures of a study's groups, yielding how many are read."""
    names = told_metrics(study.runs)
    for number, group in enumerate(study.groups, start=1):
        _fill(history, group, names)
        yield number


def images_of(run: RecordedRun) -> int:
    """Return how many pictures a run was trained on, repetitions counted; 0 if it does not say."""
    batch_size = run.params.get("data.batch_size", "")
    return run.steps.get("train/epoch", 0) * int(batch_size) if batch_size.isdigit() else 0


def _evaluated(run: RecordedRun) -> list[str]:
    """Return `TASK/METRIC` of what a run was evaluated by."""
    names = [name.partition("/")[2] for name in run.metrics if name.startswith("eval/")]
    return [name for metric in COLUMNS for name in names if name.endswith(f"/{metric}") and name.count("/") == 1]


def _fill(history: History, group: Group, names: Sequence[str]) -> None:
    for name in names:
        curves = [history.curve(run.run_id, name) for run in group.runs if name in run.metrics]
        if curves := [curve for curve in curves if curve]:
            group.curves[name] = curves
    for run in group.runs:
        for task, confusion in _confusions(history, run).items():
            known = group.confusions.get(task)
            group.confusions[task] = confusion if known is None else _added(known, confusion)
        if not group.pictures:
            group.pictures = _pictures(history, run)


def _confusions(history: History, run: RecordedRun) -> dict[str, Confusion]:
    """Return the confusion matrices of a run's last evaluation, by task."""
    steps = history.files(run.run_id, "evaluation")
    if not steps:
        return {}
    found: dict[str, Confusion] = {}
    for path in history.files(run.run_id, max(steps)):
        if match := re.fullmatch(r"confusion_(.+)\.csv", PurePosixPath(path).name):
            header, *rows = csv.reader(io.StringIO(history.read(run.run_id, path).decode()))
            counts = tuple(tuple(int(cell) for cell in row[1:]) for row in rows)
            found[match[1]] = Confusion(tuple(header[1:]), counts)
    return found


def _added(one: Confusion, other: Confusion) -> Confusion:
    """Add the counts of two runs; those of other classes are left out."""
    if one.classes != other.classes:
        return one
    pairs = zip(one.counts, other.counts, strict=True)
    return Confusion(one.classes, tuple(tuple(map(sum, zip(a, b, strict=True))) for a, b in pairs))


def _pictures(history: History, run: RecordedRun) -> list[Picture]:
    """Return the newest of each of a run's pictures, the learning curves left out."""
    return [
        Picture(name, step, "webp", history.read(run.run_id, path), run.name)
        for name, (step, path) in list(history.pictures(run.run_id).items())[:MAX_PICTURES]
    ]


def _suite(history: History, run: RecordedRun) -> SuiteTable | None:
    if "table.csv" not in history.files(run.run_id):
        return None
    rows = _rows(history, run, "table.csv")
    name = run.tags["suite"]
    return SuiteTable(name, run.tags.get("title", name), rows)


def _rows(history: History, run: RecordedRun, path: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(history.read(run.run_id, path).decode())))


def _sweep(history: History, run: RecordedRun) -> Sweep:
    files = history.files(run.run_id)
    rows = _rows(history, run, "leaderboard.csv") if "leaderboard.csv" in files else []
    pictures = [
        Picture(PurePosixPath(path).stem.replace("_", " "), 0, "png", history.read(run.run_id, path), run.name)
        for path in files
        if path.endswith(".png")
    ]
    return Sweep(run.tags.get("sweep", run.name), run.status, rows, pictures)
