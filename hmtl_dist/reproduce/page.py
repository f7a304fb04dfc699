"""The table of a suite as one HTML file that needs nothing else: its plots are in it."""
# pyright: reportUnknownMemberType=false

import base64
import html
from collections.abc import Sequence
from datetime import UTC, datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any

from hmtl_dist.reproduce.suite import Suite
from hmtl_dist.reproduce.table import COLUMNS, COST_COLUMNS, Line, as_cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 1200px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #d9dde2; padding: .35em .6em; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left; white-space: normal }
th { border-bottom: 2px solid #8a939d; font-weight: 600 }
img { max-width: 100%; height: auto; margin: 1em 0 }
p.note { color: #57606a }
@media (prefers-color-scheme: dark) { body { background: #14171a; color: #e6e9ec } img { background: #fff } }
"""
EXPLAINED = (
    "Every value is a run with another seed, which moves initialisation, sample order and augmentation. "
    "last: weights at the end of the run; best: of the best evaluation, chosen on the very pictures it is told of, so "
    "it flatters. Intervals are bootstrap 95 % (BCa) over seeds. p: two-sided exact sign-flip permutation test of the "
    "differences paired by seed, not corrected for the number of rows; with six seeds it cannot be below 0.031. "
    "P(better): share of pairs of runs in which the row beats its baseline. Cost counts what a run begins from."
)


def write_page(suite: Suite, lines: Sequence[Line]) -> str:
    """Return the page: plots of values and differences, the table, every single value, how to read it."""
    title = html.escape(suite.title)
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        f'<p class="note">{html.escape(suite.notes)}</p>' if suite.notes else "",
        _plot(_draw_values(suite, lines), "value of each run, mean and interval") if _some(lines) else "",
        _plot(_draw_differences(suite, lines), "paired difference to the baseline") if _compared(lines) else "",
        _table((*COLUMNS, *COST_COLUMNS), as_cells(lines)),
        "<h2>Single runs</h2>",
        _table(("row", "value by seed"), [(line.row.title, _values(line)) for line in lines]),
        f'<p class="note">{html.escape(EXPLAINED)}</p>',
        f'<p class="note">{datetime.now(UTC):%Y-%m-%d %H:%M} UTC</p>',
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def _values(line: Line) -> str:
    return "  ".join(f"{seed}: {value:.2f}" for seed, value in sorted(line.values.items()))


def _some(lines: Sequence[Line]) -> bool:
    return any(line.values for line in lines)


def _compared(lines: Sequence[Line]) -> bool:
    return any(line.against for line in lines)


def _figure(lines: Sequence[Line]) -> "tuple[Figure, Any]":
    from matplotlib.figure import Figure  # without pyplot: no global state

    figure = Figure(figsize=(9, 1.2 + 0.36 * len(lines)), dpi=110, layout="constrained")
    axes: Any = figure.add_subplot()
    axes.set_yticks(range(len(lines)), [line.row.title for line in lines])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    return figure, axes


def _draw_values(suite: Suite, lines: Sequence[Line]) -> "Figure":
    figure, axes = _figure(lines)
    for place, line in enumerate(lines):
        axes.plot(list(line.values.values()), [place] * len(line.values), "o", color="#7aa6d8", alpha=0.7, ms=5)
        if line.value is not None:
            axes.plot([line.value.mean], [place], "D", color="#1f4e8c", ms=6)
            if line.value.low is not None:
                axes.plot([line.value.low, line.value.high], [place, place], color="#1f4e8c", lw=2)
        if line.row.paper is not None:
            axes.plot([line.row.paper], [place], "x", color="#c0392b", ms=8, mew=2)
    paper = "; x the paper's" if any(line.row.paper is not None for line in lines) else ""
    axes.set_xlabel(f"{suite.metric}{', %' if suite.percent else ''} (dots: runs; diamond and bar: mean, 95 %{paper})")
    return figure


def _draw_differences(suite: Suite, lines: Sequence[Line]) -> "Figure":
    compared = [line for line in lines if line.against]
    figure, axes = _figure(compared)
    axes.axvline(0, color="#57606a", lw=1)
    for place, line in enumerate(compared):
        if line.against is None:
            continue
        difference = line.against.difference
        axes.plot([difference.mean], [place], "D", color="#1f4e8c", ms=6)
        if difference.low is not None:
            axes.plot([difference.low, difference.high], [place, place], color="#1f4e8c", lw=2)
    axes.set_yticks(range(len(compared)), [f"{line.row.title} - {line.row.baseline}" for line in compared])
    axes.set_xlabel(f"difference of {suite.metric}{', percentage points' if suite.percent else ''} (mean, 95 %)")
    return figure


def _plot(figure: "Figure", words: str) -> str:
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return f'<img alt="{words}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
