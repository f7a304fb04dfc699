"""Charts of a report as SVG: small, sharp in print, their text is text. `matplotlib` is imported when one is drawn."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = Sequence[tuple[int, float]]

MAX_POINTS = 200
"""Points of a curve that are drawn; a longer one is drawn by the means of as many stretches."""
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "hmtl_dist", "font.family": "sans-serif", "font.size": 9}
_PALETTE = (
    "#1f4e8c",
    "#c0392b",
    "#2e7d32",
    "#8e5ea2",
    "#d98a00",
    "#00838f",
    "#6d4c41",
    "#ad1457",
    "#546e7a",
    "#9e9d24",
)
_DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Bar:
    """A mean with its interval, for the chart of a table."""

    label: str
    mean: float
    low: float | None = None
    high: float | None = None
    values: Sequence[float] = ()
    """Single values."""
    reference: float | None = None
    """What somebody else has published."""


def draw_curves(title: str, groups: Mapping[str, Sequence[Curve]]) -> str:
    """Draw a figure over steps, a line a group: the mean of its runs, with a band from the least to the greatest."""
    figure, axes = _figure(7.2, 3.4)
    for number, (name, curves) in enumerate(groups.items()):
        steps, mean, low, high = _band(curves)
        colour, dash = _PALETTE[number % len(_PALETTE)], _DASHES[number // len(_PALETTE) % len(_DASHES)]
        axes.plot(steps, mean, dash, color=colour, lw=1.6, marker="." if len(steps) < 2 else "", label=name)
        if len(curves) > 1:
            axes.fill_between(steps, low, high, color=colour, alpha=0.12, lw=0)
    axes.set(title=title, xlabel="step")
    axes.grid(alpha=0.25)
    if len(groups) > 1:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return _svg(figure)


def draw_bars(label: str, bars: Sequence[Bar], *, zero: bool = False) -> str:
    """Draw means with their intervals one below the other; `zero` marks where there is no difference."""
    figure, axes = _figure(7.2, 0.9 + 0.34 * len(bars))
    for place, bar in enumerate(bars):
        axes.plot(bar.values, [place] * len(bar.values), "o", color="#7aa6d8", alpha=0.7, ms=4.5)
        if bar.low is not None and bar.high is not None:
            axes.plot([bar.low, bar.high], [place, place], color="#1f4e8c", lw=2)
        axes.plot([bar.mean], [place], "D", color="#1f4e8c", ms=5.5)
        if bar.reference is not None:
            axes.plot([bar.reference], [place], "x", color="#c0392b", ms=8, mew=2)
    if zero:
        axes.axvline(0, color="#57606a", lw=1)
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.25)
    axes.set_xlabel(label)
    return _svg(figure)


def _band(curves: Sequence[Curve]) -> tuple[Any, Any, Any, Any]:
    """Return steps, and over the curves the mean, the least and the greatest value there."""
    values: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            values.setdefault(step, []).append(value)
    steps = np.array(sorted(values), dtype=np.float64)
    bands = np.array([(np.mean(found), min(found), max(found)) for _, found in sorted(values.items())])
    if len(steps) > MAX_POINTS:
        parts = np.array_split(np.arange(len(steps)), MAX_POINTS)
        steps = np.array([steps[part].mean() for part in parts])
        bands = np.array([bands[part].mean(axis=0) for part in parts])
    return steps, bands[:, 0], bands[:, 1], bands[:, 2]


def _figure(width: float, height: float) -> "tuple[Figure, Any]":
    from matplotlib.figure import Figure  # without pyplot: no global state

    figure = Figure(figsize=(width, height), layout="constrained")
    axes: Any = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _svg(figure: "Figure") -> str:
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context(_STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
