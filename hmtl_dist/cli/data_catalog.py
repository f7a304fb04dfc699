"""`data build NAME` for every set of the catalogue, and `data catalog`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from hmtl_dist.cli import data_views as views

if TYPE_CHECKING:
    from collections.abc import Callable

    from hmtl_dist.data.catalog.registry import DataSet

    Build = Callable[..., None]

Out = Annotated[str, typer.Argument(help="Where to: s3://BUCKET/PREFIX or a folder.")]
Seed = Annotated[int, typer.Option(help="Decides who falls to which split, and the order of the samples.")]
Name = Annotated[str | None, typer.Option(help="Name of the data set; the last part of OUT when not given.")]
ImageSize = Annotated[int | None, typer.Option(min=8, help="Shrink the shorter side to this many pixels.")]
JpegQuality = Annotated[int, typer.Option(min=1, max=100, help="Quality of JPEGs that are encoded anew.")]
ShardSamples = Annotated[int, typer.Option(min=1, help="Samples a shard.")]
ShardBytes = Annotated[int | None, typer.Option(min=1, help="About this many bytes a shard, instead of samples.")]
DropDuplicates = Annotated[
    bool,
    typer.Option("--drop-duplicates/--keep-duplicates", help="Leave out pictures whose file is the same as another."),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; the cores of this machine when not given.")]
Overwrite = Annotated[bool, typer.Option(help="Delete the other data set that OUT holds.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


class CatalogueGroup(TyperGroup):
    """The commands of `data build`: those written out, and one for every set of the catalogue, made when asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all."""
        return [*super().list_commands(ctx), *(name for name, one in _data_sets().items() if one.open is not None)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name, None when there is none."""
        command = super().get_command(ctx, cmd_name)
        data_set = _data_sets().get(cmd_name) if command is None else None
        return command if data_set is None or data_set.open is None else _command(data_set)


def _data_sets() -> "dict[str, DataSet]":
    from hmtl_dist.data.catalog.registry import data_sets

    return data_sets()


def _command(data_set: "DataSet") -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(data_set.name, help=_help(data_set))(_build_command(data_set))
    return typer.main.get_command(app)


def _help(data_set: "DataSet") -> str:
    options = [
        f"{name}={_shown(field.default)}: {field.description}" for name, field in data_set.options.model_fields.items()
    ]
    return "\n\n".join(
        [
            f"Build {data_set.title} from the folder its archives were unpacked into; call again to go on.",
            f"Labels: {', '.join(data_set.labels)}. Licence: {data_set.licence}. From {data_set.url}",
            *(["Options, given as KEY=VALUE after OUT, with what they are otherwise:", *options] if options else []),
        ]
    )


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _build_command(data_set: "DataSet") -> "Build":
    def build(  # noqa: PLR0913, PLR0917  # one parameter an option
        source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of the originals.")],
        out: Out,
        option: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Options of this set.")] = None,
        split: Annotated[
            str | None,
            typer.Option(
                help="Splits and their shares, adding up to 1, or `published` for the authors' own; when not given, "
                f"{data_set.splits}."
            ),
        ] = None,
        seed: Seed = 0,
        image_size: ImageSize = None,
        jpeg_quality: JpegQuality = 95,
        shard_samples: ShardSamples = 1000,
        shard_bytes: ShardBytes = None,
        drop_duplicates: DropDuplicates = True,
        name: Name = None,
        num_workers: Workers = None,
        overwrite: Overwrite = False,
        as_json: AsJson = False,
    ) -> None:
        from hmtl_dist.cli.data import build_and_print, last_part
        from hmtl_dist.data.catalog.registry import open_data_set
        from hmtl_dist.data.dataset.build import BuildSettings
        from hmtl_dist.data.dataset.split import parse_split

        adapter = open_data_set(data_set.name, source, option or [])
        shares = split or ("published" if adapter.splits else data_set.splits)
        settings = BuildSettings(
            dataset=name or last_part(out),
            splits={} if shares == "published" else parse_split(shares),
            seed=seed,
            image_size=image_size,
            jpeg_quality=jpeg_quality,
            shard_samples=shard_samples,
            shard_bytes=shard_bytes,
            drop_duplicates=drop_duplicates,
        )
        build_and_print(adapter, out, settings, num_workers, overwrite=overwrite, as_json=as_json)

    return build


def catalog(as_json: AsJson = False) -> None:
    """List the data sets that can be built: what they are labelled with, their licence, and where to ask for them."""
    from dataclasses import asdict

    if not as_json:
        views.print_catalogue(list(_data_sets().values()))
        return
    rows: list[dict[str, Any]] = []
    for one in _data_sets().values():
        row = asdict(one)
        del row["open"]
        row["options"] = {
            key: {"default": field.default, "help": field.description}
            for key, field in one.options.model_fields.items()
        }
        rows.append(row)
    views.print_json(rows)
