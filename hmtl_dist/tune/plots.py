"""The pictures of a sweep, drawn by matplotlib when they are asked for."""
# pyright: reportUnknownMemberType=false

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast

from hmtl_dist.tune.analysis import Importances, pareto_front, short_names, shown
from hmtl_dist.tune.distributions import Choice, LogUniform, RandInt
from hmtl_dist.tune.ledger import Record
from hmtl_dist.tune.space import Space
from hmtl_dist.tune.suggest import values_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = "viridis"
LINE = {"FINISHED": 1.0, "PRUNED": 0.45, "STOPPED": 0.45, "RUNNING": 0.45, "FAILED": 0.3}
"""How strong the line of a trial is drawn."""


def draw_curves(space: Space, records: Sequence[Record]) -> bytes:
    """Draw the deciding figure of every trial over its steps; a dot is where one ended."""
    figure, axes = _figure(8, 4.2)
    colour = _colours(space, records)
    for record in records:
        points = [
            (report.step, report.metrics[space.metric]) for report in record.reports if space.metric in report.metrics
        ]
        if points:
            steps, values = zip(*points, strict=True)
            style: dict[str, Any] = {"color": colour(record), "alpha": LINE[record.status]}
            axes.plot(steps, values, lw=2 if record.status == "FINISHED" else 1.2, **style)
            axes.plot(steps[-1:], values[-1:], "o" if record.status == "FINISHED" else "x", ms=5, **style)
            axes.annotate(str(record.number), (steps[-1], values[-1]), (4, 2), textcoords="offset points", fontsize=7)
    axes.set(xlabel="optimizer step (dot: finished, cross: stopped early)", ylabel=space.metric)
    axes.grid(alpha=0.3)
    return _png(figure)


def draw_parallel(space: Space, records: Sequence[Record]) -> bytes:
    """Draw every trial as a line over the varied parameters to its figure."""
    paths = space.varied
    names = short_names(paths)
    drawn = [record for record in records if space.metric in record.metrics]
    figure, axes = _figure(max(6.0, 1.7 * (len(paths) + 1)), 4.2)
    values = [record.metrics[space.metric] for record in drawn]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    colour = _colours(space, drawn)
    for record in drawn:
        places = [_place(space, path, record.params.get(path)) for path in paths]
        height = (record.metrics[space.metric] - low) / (high - low) if high > low else 0.5
        line = [*places, height]
        kept = [(x, y) for x, y in enumerate(line) if y is not None]
        axes.plot(*zip(*kept, strict=True), color=colour(record), alpha=LINE[record.status], lw=1.6)
    for x, path in enumerate(paths):
        axes.axvline(x, color="#8a939d", lw=1)
        for height, text in _ticks(space, path):
            axes.annotate(text, (x, height), (3, 0), textcoords="offset points", fontsize=7, va="center")
    axes.axvline(len(paths), color="#8a939d", lw=1)
    for height, value in ((0.0, low), (1.0, high)):
        axes.annotate(f"{value:.4g}", (len(paths), height), (3, 0), textcoords="offset points", fontsize=7, va="center")
    labels = [names[path] for path in paths]
    axes.set_xticks(range(len(paths) + 1), [*labels, space.metric.removeprefix("eval/")], fontsize=8)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(paths) + 0.35)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    return _png(figure)


def draw_importances(found: Importances) -> bytes:
    """Draw the share of the variance that each parameter explains."""
    figure, axes = _figure(7, 1.2 + 0.35 * len(found.shares))
    paths = list(found.shares)
    axes.barh([short_names(paths)[path] for path in paths], list(found.shares.values()), color="#1f4e8c")
    axes.invert_yaxis()
    axes.set_xlabel(f"share of the variance (fANOVA, {found.num_trials} trials at step {found.step})")
    axes.set_xlim(0, 1)
    return _png(figure)


def draw_pareto(space: Space, records: Sequence[Record]) -> bytes:
    """Draw the finished trials by both figures, with the front."""
    figure, axes = _figure(6, 4.5)
    front = pareto_front(space, records)
    for record in records:
        values = values_of(space, record.metrics)
        if record.status != "FINISHED" or values is None:
            continue
        best = any(one.number == record.number for one in front)
        axes.plot(*([value] for value in values), "o", color="#c0392b" if best else "#7aa6d8", ms=7 if best else 5)
        axes.annotate(str(record.number), values, (5, 3), textcoords="offset points", fontsize=8)
    line = sorted(values for record in front if (values := values_of(space, record.metrics)) is not None)
    if line:
        axes.plot(*zip(*line, strict=True), color="#c0392b", lw=1, ls="--")
    (first, _), (second, _) = space.metrics
    axes.set(xlabel=first, ylabel=second)
    axes.grid(alpha=0.3)
    return _png(figure)


def _place(space: Space, path: str, value: Any) -> float | None:
    """Return the height of a value on its axis, in [0, 1]; None where the parameter was not drawn."""
    import math

    distribution = space.params[path]
    if value is None and not (isinstance(distribution, Choice) and distribution.holds(None)):
        return None
    if isinstance(distribution, Choice):
        place = next(place for place, one in enumerate(distribution.values) if one == value)
        return place / (len(distribution.values) - 1) if len(distribution.values) > 1 else 0.5
    low, high = distribution.extremes()
    if isinstance(distribution, LogUniform) or (isinstance(distribution, RandInt) and distribution.log):
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _ticks(space: Space, path: str) -> list[tuple[float, str]]:
    distribution = space.params[path]
    values = list(distribution.values) if isinstance(distribution, Choice) else distribution.extremes()
    return [(_place(space, path, value) or 0.0, shown(value)[:18]) for value in values]


def _colours(space: Space, records: Sequence[Record]) -> Any:
    from matplotlib import colormaps

    values = [record.metrics[space.metric] for record in records if space.metric in record.metrics]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)

    def colour(record: Record) -> Any:
        value = record.metrics.get(space.metric, low)
        share = (value - low) / (high - low) if high > low else 0.5
        return colormaps[COLOURS](0.9 * (share if space.mode == "max" else 1 - share))

    return colour


def _figure(width: float, height: float) -> "tuple[Figure, Any]":
    from matplotlib.figure import Figure  # without pyplot: no global state, safe in any thread

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    return figure, figure.add_subplot()


def _png(figure: "Figure") -> bytes:
    buffer = BytesIO()
    cast("Any", figure).savefig(buffer, format="png")
    return buffer.getvalue()
