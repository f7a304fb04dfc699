"""How the commands of `data` print what they found."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from hmtl_dist.data.catalog.registry import DataSet
    from hmtl_dist.data.dataset.build import BuildReport
    from hmtl_dist.data.dataset.foreign import ForeignReport
    from hmtl_dist.data.dataset.schema import IndexHeader
    from hmtl_dist.data.dataset.survey import Survey
    from hmtl_dist.data.dataset.verify import Pair, VerifyReport
    from hmtl_dist.data.summary import PlanSummary

_SHOWN = 5
"""Lines of each kind of finding that are printed; the rest is in the JSON answer or in a file."""


def print_json(answer: object) -> None:
    """Print an answer for scripts."""
    typer.echo(json.dumps(answer, indent=1))


def build_json(report: "BuildReport") -> object:
    """What a build did, for scripts."""
    return {
        "splits": {split: header.model_dump() for split, header in report.headers.items()},
        "kept_shards": report.kept_shards,
        "rejected": [[row.name, row.reason] for row in report.rejected],
        "different_labels": report.survey.conflicts,
        "unlabelled": report.survey.unlabelled,
    }


def index_json(report: "ForeignReport") -> object:
    """What indexing found, for scripts."""
    return {
        "splits": {split: header.model_dump() for split, header in report.headers.items()},
        "left_out": dict(report.left_out),
        "without_picture": report.without_picture,
        "without_labels": report.without_labels,
        "passed_over": dict(report.passed_over),
        "doubled": list(report.doubled),
        "others": dict(report.others),
        "different_labels": report.survey.conflicts,
        "unlabelled": report.survey.unlabelled,
    }


def print_built(report: "BuildReport", out: str) -> None:
    """Print what a build did."""
    print_headers(list(report.headers.values()))
    if report.kept_shards:
        typer.echo(f"{report.kept_shards} shards were there from an earlier call")
    if report.rejected:
        typer.echo(f"{len(report.rejected):,} samples were left out, all in {out.rstrip('/')}/rejected.csv:")
        reasons = Counter(row.reason for row in report.rejected)
        names = {row.reason: row.name for row in reversed(report.rejected)}
        for reason, count in reasons.most_common(_SHOWN):
            typer.echo(f"  {names[reason]}{f' and {count - 1:,} more' if count > 1 else ''}: {reason}")
        if len(reasons) > _SHOWN:
            typer.echo("  …")
    _print_survey(report.survey)


def _print_survey(survey: "Survey") -> None:
    for name, count in sorted(survey.unlabelled.items()):
        typer.echo(f"no {name}: {count:,} samples")
    _print_findings("pictures that are there twice, with different labels", survey.conflicts)


def print_catalogue(data_sets: "Sequence[DataSet]") -> None:
    """Print what data sets can be built."""
    from rich.table import Column, Table

    table = Table("name", "labels", Column("licence, and where to ask for it", overflow="fold"), show_lines=True)
    for one in data_sets:
        table.add_row(one.name, ", ".join(one.labels), f"{one.title}\n{one.licence}\n{one.url}".strip())
    _show(table)
    typer.echo("hmtl-dist data build NAME SRC OUT; the options of a set: hmtl-dist data build NAME --help")


def print_indexed(report: "ForeignReport") -> None:
    """Print what indexing found."""
    print_headers(list(report.headers.values()))
    for entry, reason in report.left_out.items():
        typer.echo(f"not a label: {entry} {reason}")
    for key, reason in list(report.passed_over.items())[:_SHOWN]:
        typer.echo(f"not read: {key} {reason}")
    if len(report.passed_over) > _SHOWN:
        typer.echo(f"not read: {len(report.passed_over) - _SHOWN:,} more")
    if report.without_picture:
        typer.echo(f"{report.without_picture:,} samples have no jpg, jpeg, png or webp and are left out")
    if report.without_labels:
        typer.echo(f"{report.without_labels:,} samples have neither KEY.json nor KEY.cls: they are in, without labels")
    if report.doubled:
        more = f" and {len(report.doubled) - 1:,} more" if len(report.doubled) > 1 else ""
        typer.echo(f"left out, for its sample has one already: {report.doubled[0]}{more}")
    if report.others:
        counts = ", ".join(f"{count:,} .{ending}" for ending, count in report.others.most_common(_SHOWN))
        typer.echo(f"neither pictures nor labels, and left alone: {counts}")
    _print_survey(report.survey)


def print_headers(headers: "Sequence[IndexHeader]") -> None:
    """Print what the splits of a data set hold."""
    from rich.table import Table

    table = Table("split", "samples", "shards", "bytes", "digest")
    for header in headers:
        table.add_row(
            header.split,
            f"{header.num_samples:,}",
            f"{header.num_shards:,}",
            num_bytes_as_text(header.num_bytes),
            header.digest[:16],
        )
    _show(table)
    if not headers:
        return
    labels = Table("label", "kind", *(header.split for header in headers))
    for name, one in headers[0].fields.items():
        if one.kind == "number":
            labels.add_row(name, f"number {one.unit}".strip(), *("" for _ in headers))
        else:
            counts = [
                ", ".join(
                    f"{label} {count:,}" for label, count in zip(one.classes, header.label_counts[name], strict=True)
                )
                for header in headers
            ]
            labels.add_row(name, "category", *counts)
    _show(labels)
    if headers[0].group:
        typer.echo(f"samples are grouped by {headers[0].group}")


def print_plan(summary: "PlanSummary") -> None:
    """Print the size of an epoch."""
    from rich.table import Table

    typer.echo(
        f"{summary.draws:,} draws: {summary.steps_per_epoch:,} steps an epoch, "
        f"{summary.leftover:,} left over (others in every epoch)"
    )
    sources = Table("set", "split", "samples", "chosen", "draws an epoch", "of each sample")
    sources.columns[0].overflow = "fold"
    for source in summary.sources:
        numbers = (f"{number:,}" for number in (source.samples, source.chosen, source.draws))
        sources.add_row(source.url, source.split, *numbers, f"{source.draws / source.chosen:.4g}")
    _show(sources)
    labels = Table("label", "draws of each class in an epoch")
    for name, counts in summary.label_counts.items():
        labels.add_row(name, ", ".join(f"{label} {count:,}" for label, count in counts.items()))
    if summary.label_counts:
        _show(labels)
    table = Table("rank", "samples", "shards", "about")
    for share in summary.ranks:
        table.add_row(str(share.rank), f"{share.samples:,}", f"{share.shards:,}", num_bytes_as_text(share.num_bytes))
    _show(table)


def print_verified(report: "VerifyReport") -> None:
    """Print what verifying found."""
    from rich.table import Table

    labels = Table("split", "label", "samples")
    for place, fields in report.labels.items():
        for name, counts in fields.items():
            text = ", ".join(f"{label or 'none'} {count:,}" for label, count in counts.items() if count)
            labels.add_row(place, name, text)
    _show(labels)
    typer.echo(
        f"{report.samples:,} samples in {report.shards:,} shards, {num_bytes_as_text(report.num_bytes)}, were read"
    )
    _print_findings("damaged", report.damage)
    _print_findings("groups in more than one split", report.groups_across)
    _print_findings("pictures of one split that are also in another", _pairs(report.same_across))
    _print_findings("pictures that look like one of another split", _pairs(report.near_across))
    _print_findings("pictures that are there twice, with different labels", report.conflicts)
    _print_findings("note: pictures that are twice in one split", _pairs(report.same_within))
    _print_findings("note: pictures that look like another of their split", _pairs(report.near_within))
    sound = "sound: nothing is damaged, the splits are apart, and no picture has different labels"
    typer.echo(sound if report.is_sound else "NOT sound")


def _pairs(pairs: "list[Pair]") -> list[str]:
    return [f"{pair.first} = {pair.second}" for pair in pairs]


def _print_findings(title: str, findings: "Sequence[str]") -> None:
    if not findings:
        return
    typer.echo(f"{title}: {len(findings):,}")
    for line in findings[:_SHOWN]:
        typer.echo(f"  {line}")
    if len(findings) > _SHOWN:
        typer.echo("  … (all of them with --json)")


def _show(table: "Table") -> None:
    from hmtl_dist.console import Console

    with Console() as console:
        console.show(table)


def num_bytes_as_text(num_bytes: int) -> str:
    """Write a number of bytes with the largest unit that leaves at least 1."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"
