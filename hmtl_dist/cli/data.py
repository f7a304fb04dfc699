"""`data`: build, draw, index, verify and look at data sets."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hmtl_dist.cli import data_catalog
from hmtl_dist.cli import data_views as views
from hmtl_dist.cli.data_catalog import AsJson, Group, Label, Strict, Workers
from hmtl_dist.errors import UserError

if TYPE_CHECKING:
    from hmtl_dist.data.dataset.adapter import Adapter
    from hmtl_dist.data.dataset.build import BuildReport, BuildSettings
    from hmtl_dist.data.dataset.foreign import ForeignReport

app = typer.Typer(cls=data_catalog.DataGroup, no_args_is_help=True)
build = typer.Typer(cls=data_catalog.BuildGroup, no_args_is_help=True)
app.add_typer(build, name="build", help="Build a data set from originals.")
app.command()(data_catalog.catalog)

Url = Annotated[str, typer.Argument(help="The data set: s3://BUCKET/PREFIX or a folder.")]


@app.command()
def index(
    url: Url,
    label: Label = None,
    group: Group = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split of the tars that lie in URL itself; what tells their names apart if empty."),
    ] = None,
    strict: Strict = False,
    num_workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Write the index of shards made elsewhere: tars with KEY.jpg (jpeg, png, webp) and KEY.json or KEY.cls.

    Texts become categories and numbers become numbers; --label says otherwise where that is wrong.
    """
    from hmtl_dist.data.dataset.foreign import index_shards
    from hmtl_dist.data.dataset.labels import parse_labels
    from hmtl_dist.data.dataset.pool import default_workers

    with _progress("indexing", "shards", quiet=as_json) as on_progress:
        report = index_shards(
            url,
            labels=parse_labels(label or []),
            group=group,
            split=split,
            num_workers=num_workers or default_workers(),
            on_progress=on_progress,
        )
    if as_json:
        views.print_json(views.index_json(report))
    else:
        views.print_indexed(report)
    _be_strict(report, strict=strict)


@app.command()
def verify(
    urls: Annotated[list[str], typer.Argument(metavar="URL...", help="Data sets; several that are to be mixed.")],
    num_workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Read every byte: digests, pictures, labels, duplicates and people on both sides of a split.

    Exit code 1 when something is damaged, or pictures or people of one split are in another.
    """
    from hmtl_dist.data.dataset.pool import default_workers
    from hmtl_dist.data.dataset.verify import to_json
    from hmtl_dist.data.dataset.verify import verify as read_all

    with _progress("verifying", "shards", quiet=as_json) as on_progress:
        report = read_all(urls, num_workers=num_workers or default_workers(), on_progress=on_progress)
    if as_json:
        views.print_json(to_json(report))
    else:
        views.print_verified(report)
    if not report.is_sound:
        raise typer.Exit(1)


@app.command()
def info(
    url: Url,
    sheet: Annotated[
        Path | None, typer.Option(help="Draw a contact sheet into this PNG file: pictures with their labels.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the contact sheet.")] = "train",
    samples: Annotated[int, typer.Option(min=1, max=1000, help="Pictures of the contact sheet.")] = 48,
    seed: Annotated[int, typer.Option(min=0, help="Decides which pictures.")] = 0,
    to_mlflow: Annotated[bool, typer.Option("--mlflow", help="Keep the contact sheet in MLflow.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a data set holds, without reading its shards; --sheet shows some of its pictures."""
    from hmtl_dist.data.summary import headers_of

    headers = headers_of(url)
    if sheet is not None or to_mlflow:
        from hmtl_dist.launch.sheet import keep_sheet

        kept = keep_sheet(url, headers, split, samples=samples, seed=seed, file=sheet, to_mlflow=to_mlflow)
        typer.echo(f"contact sheet of {split}: {kept}", err=as_json)
    if as_json:
        views.print_json({header.split: header.model_dump() for header in headers})
    else:
        views.print_headers(headers)


@app.command()
def plan(
    url: Url,
    world_size: Annotated[int, typer.Option(min=1, help="Training workers.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of a step over all workers.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings of the section data, such as data.subset=0.2.", metavar="[KEY=VALUE]..."),
    ] = None,
    lanes: Annotated[int, typer.Option(min=1, help="Reading lanes, as data.lanes.")] = 8,
    split: Annotated[str, typer.Option(help="Which split.")] = "train",
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 0,
    shuffle_block: Annotated[int, typer.Option(min=1, help="As data.shuffle_block.")] = 1024,
    as_json: AsJson = False,
) -> None:
    """Say what an epoch of training is: what is drawn of each set, steps, leftovers, and what each worker reads."""
    from dataclasses import asdict

    from hmtl_dist.config.base import Section
    from hmtl_dist.config.io import check_tree
    from hmtl_dist.data.config import DataConfig
    from hmtl_dist.data.summary import plan_summary

    class Tree(Section):
        data: DataConfig

    data = {"url": url, "train_split": split, "batch_size": batch_size, "lanes": lanes, "shuffle_block": shuffle_block}
    config = check_tree(Tree, {"data": data}, overrides or ())
    summary = plan_summary(config.data, world_size=world_size, seed=seed)
    if as_json:
        views.print_json(asdict(summary))
    else:
        views.print_plan(summary)


def build_and_print(
    adapter: "Adapter",
    out: str,
    settings: "BuildSettings",
    num_workers: int | None,
    *,
    overwrite: bool,
    strict: bool,
    as_json: bool,
) -> None:
    """Build a data set and print what was built."""
    from hmtl_dist.data.dataset.build import build as build_dataset
    from hmtl_dist.data.dataset.pool import default_workers

    with _progress("building", "samples", quiet=as_json) as on_progress:
        report = build_dataset(
            adapter,
            out,
            settings,
            num_workers=num_workers or default_workers(),
            overwrite=overwrite,
            on_progress=on_progress,
        )
    if as_json:
        views.print_json(views.build_json(report))
    else:
        views.print_built(report, out)
    _be_strict(report, strict=strict)


def _be_strict(report: "BuildReport | ForeignReport", *, strict: bool) -> None:
    if strict and report.told:
        raise UserError("--strict: something was left out, or labels are missing or differ; what it was stands above")


def last_part(url: str) -> str:
    """The name of a data set that was given none."""
    return url.rstrip("/").rpartition("/")[2] or "dataset"


@contextmanager
def _progress(title: str, unit: str, *, quiet: bool) -> Generator[Callable[[int, int], None]]:
    """Show the share done and the time left; the first call tells how much there is."""
    from hmtl_dist.console import Console
    from hmtl_dist.data.storage.waits import WaitNotice

    with (
        Console() as console,
        console.counted(f"{title} {unit}", quiet=quiet) as show,
        WaitNotice(lambda wait: show.wait(wait.what, wait.seconds)),
    ):
        yield show
