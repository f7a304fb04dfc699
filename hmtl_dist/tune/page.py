"""The leaderboard of a sweep as CSV, and as one HTML file that needs nothing else."""

import base64
import csv
import html
import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from hmtl_dist.tune.analysis import broken, pareto_front, ranked, short_names, shown, winner
from hmtl_dist.tune.ledger import Record
from hmtl_dist.tune.space import Space

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 1200px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #d9dde2; padding: .3em .7em; text-align: right; white-space: nowrap }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere }
th { border-bottom: 2px solid #8a939d; font-weight: 600 }
tr.best td { font-weight: 600; background: #eaf3ea }
tr.ended td { color: #57606a }
div.wide { overflow-x: auto }
img { max-width: 100%; height: auto; margin: .5em 0 1.5em }
p.note { color: #57606a }
@media (prefers-color-scheme: dark) {
  body { background: #14171a; color: #e6e9ec } img { background: #fff } tr.best td { background: #1f3a24 }
}
"""
EXPLAINED = (
    "The figure is that of the last evaluation of a trial, mean over its seeds. Trials that finished come first; those "
    "that were stopped early follow by how far they came, and their figures are of that step. It is chosen on the "
    "pictures it is told of, so the winner's figure flatters: train it again with other seeds."
)


def columns(space: Space, *, priced: bool) -> list[str]:
    """Return the heads of the table, with one for the cost where there is a price."""
    metrics = [metric.removeprefix("eval/") for metric, _ in space.metrics]
    names = short_names(list(space.params))
    spent = ["step", "images", "seconds", *(["cost"] if priced else []), "img/s"]
    return ["rank", "trial", "outcome", *metrics, *spent, *names.values()]


def cells(space: Space, rank: int, record: Record, *, priced: bool) -> list[str]:
    """Return a row of the table."""
    metrics = [f"{record.metrics[name]:.4f}" if name in record.metrics else "" for name, _ in space.metrics]
    outcome = record.status.lower() + (" (breaks a constraint)" if broken(space, record) else "")
    spent = [str(record.step), str(record.images), f"{record.seconds:.0f}"]
    spent += [f"{record.cost:.2f}"] if priced else []
    spent.append(f"{record.samples_per_second:.1f}")
    params = [shown(record.params[path]) if path in record.params else "" for path in space.params]
    return [str(rank), str(record.number), outcome, *metrics, *spent, *params]


def is_priced(records: Sequence[Record]) -> bool:
    """Say whether there is a price, and so a cost."""
    return any(record.cost for record in records)


def as_csv(space: Space, records: Sequence[Record]) -> str:
    """Return the leaderboard as CSV, with parameters by their whole paths and figures unrounded."""
    buffer = io.StringIO()
    rows = csv.writer(buffer, lineterminator="\n")
    metrics = [metric for metric, _ in space.metrics]
    rows.writerow(
        [
            "rank",
            "trial",
            "outcome",
            *metrics,
            "step",
            "images",
            "seconds",
            "cost",
            "samples_per_second",
            *space.params,
            "error",
        ]
    )
    for rank, record in enumerate(ranked(space, records), start=1):
        told = [record.metrics.get(name, "") for name in metrics]
        params = [record.params.get(path, "") for path in space.params]
        spent = [record.step, record.images, round(record.seconds, 1), record.cost or ""]
        spent.append(round(record.samples_per_second, 1))
        rows.writerow([rank, record.number, record.status.lower(), *told, *spent, *params, record.error])
    return buffer.getvalue()


def write_page(
    title: str, space: Space, records: Sequence[Record], pictures: Mapping[str, bytes], facts: Mapping[str, str]
) -> str:
    """Return the page: facts, leaderboard, pictures by their heading."""
    best = winner(space, records)
    front = {record.number for record in pareto_front(space, records)} if space.second is not None else set[int]()
    priced = is_priced(records)
    rows: list[str] = []
    for rank, record in enumerate(ranked(space, records), start=1):
        kind = "best" if best is not None and record.number == best.number else ""
        kind = kind or ("" if record.status == "FINISHED" else "ended")
        mark = " *" if record.number in front else ""
        row = cells(space, rank, record, priced=priced)
        row[1] += mark
        inner = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        why = f' title="{html.escape(record.error)}"' if record.error else ""
        rows.append(f'<tr class="{kind}"{why}>{inner}</tr>')
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns(space, priced=priced))
    told = "".join(f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>" for key, value in facts.items())
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        f'<table class="facts">{told}</table>',
        "<h2>Leaderboard</h2>",
        '<div class="wide"><table id="leaderboard">',
        f"<thead><tr>{head}</tr></thead>",
        f"<tbody>{''.join(rows)}</tbody></table></div>",
        '<p class="note">* on the Pareto front of both figures.</p>' if front else "",
        f'<p class="note">{html.escape(EXPLAINED)}</p>',
        *(_picture(heading, data) for heading, data in pictures.items()),
        f'<p class="note">{datetime.now(UTC):%Y-%m-%d %H:%M} UTC</p>',
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _picture(heading: str, data: bytes) -> str:
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return f'<h2>{html.escape(heading)}</h2><img alt="{html.escape(heading)}" src="{source}">'
