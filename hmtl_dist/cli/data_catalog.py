"""`data build NAME` for every set of the catalogue, and `data catalog`."""

from inspect import Parameter as SignatureParameter
from inspect import Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from hmtl_dist.cli import data_views as views

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic.fields import FieldInfo

    from hmtl_dist.data.catalog.registry import DataSet

    Build = Callable[..., None]
    Parameter = tuple[Any, Any]
    """Annotation and default of a command's parameter."""

Label = Annotated[
    list[str] | None,
    typer.Option("--label", help="NAME, NAME:category:CLASS,CLASS or NAME:number[:UNIT]; may be given several times."),
]
Group = Annotated[str | None, typer.Option(help="Entry that says whom a picture belongs to.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; the cores of this machine when not given.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="Fail if anything was left out, a label has no value, or a picture has different ones."
    ),
]


class BuildGroup(TyperGroup):
    """The commands of `data build`: one for every set of the catalogue, made when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all."""
        return [*super().list_commands(ctx), *_data_sets()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name, None when there is none."""
        data_set = _data_sets().get(cmd_name)
        return super().get_command(ctx, cmd_name) if data_set is None else _command(data_set)


class DataGroup(TyperGroup):
    """The commands of `data`; `synth` is short for `build synth`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all."""
        return [*super().list_commands(ctx), SYNTH]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name, None when there is none."""
        return _command(_data_sets()[SYNTH]) if cmd_name == SYNTH else super().get_command(ctx, cmd_name)


SYNTH = "synth"


def _data_sets() -> "dict[str, DataSet]":
    from hmtl_dist.data.catalog.registry import data_sets

    return data_sets()


def _command(data_set: "DataSet") -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(data_set.name, help=_help(data_set))(_build_command(data_set))
    return typer.main.get_command(app)


def _help(data_set: "DataSet") -> str:
    place = {"folder": " from the folder its archives were unpacked into", "url": "", "none": ""}[data_set.source]
    source = f" From {data_set.url}" if data_set.url else ""
    return (
        f"Build {data_set.title}{place}; call again to go on.\n\n"
        f"Labels: {', '.join(data_set.labels)}. Licence: {data_set.licence}.{source}\n\n"
        "Samples that cannot be used are left out and listed in OUT/rejected.csv."
    )


def _build_command(data_set: "DataSet") -> "Build":
    """Make the command of a set: the options that its section states, and those of every build beside them.

    An option of both is the set's own; its `seed` is that of the splits too.
    """
    own = data_set.options.model_fields
    parameters = {name: _own_option(name, field) for name, field in own.items()}
    common = {name: one for name, one in _common_options(data_set).items() if name not in parameters}

    def build(**given: Any) -> None:
        from hmtl_dist.cli.data import build_and_print, last_part
        from hmtl_dist.data.catalog.registry import open_data_set
        from hmtl_dist.data.dataset.build import BuildSettings
        from hmtl_dist.data.dataset.split import parse_split

        values = {name: _value(name, own[name], given[name]) for name in own if given[name] is not None}
        adapter = open_data_set(data_set.name, given.get("source"), values)
        shares = given["split"] or ("published" if adapter.splits else data_set.splits)
        out: str = given["out"]
        settings = {
            name: given[name] for name in common if name in BuildSettings.model_fields and given[name] is not None
        }
        settings |= {"seed": values["seed"]} if "seed" in values else {}
        settings |= {"dataset": given["name"] or last_part(out)}
        settings |= {"splits": {} if shares == "published" else parse_split(shares)}
        build_and_print(
            adapter,
            out,
            BuildSettings.model_validate(settings),
            given["num_workers"],
            overwrite=given["overwrite"],
            strict=given["strict"],
            as_json=given["as_json"],
        )

    arguments: dict[str, tuple[Any, Any]] = {}
    if data_set.source != "none":
        kind = (
            "Folder of the originals"
            if data_set.source == "folder"
            else "Folder of the pictures, or s3://BUCKET/PREFIX"
        )
        arguments["source"] = (Annotated[str, typer.Argument(metavar="SRC", help=f"{kind}.")], Signature.empty)
    arguments["out"] = (
        Annotated[str, typer.Argument(help="Where to: s3://BUCKET/PREFIX or a folder.")],
        Signature.empty,
    )
    every = arguments | parameters | common
    function: Any = build
    function.__annotations__ = {name: annotation for name, (annotation, _) in every.items()}
    function.__signature__ = Signature(
        [
            SignatureParameter(name, SignatureParameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in every.items()
        ]
    )
    return build


def _own_option(name: str, field: "FieldInfo") -> "Parameter":
    """Return the option of a field of a set's section; it is not given unless somebody gives it."""
    flag, kind = name.replace("_", "-"), field.annotation
    default = field.default
    shown = str(default) if default not in (None, (), "") and not isinstance(default, bool) else None
    told = " ".join((field.description or "").split())
    if kind is bool:
        option = typer.Option(f"--{flag}/--no-{flag}", help=told, show_default=flag if default else f"no-{flag}")
        return Annotated[bool | None, option], None
    if kind == tuple[str, ...]:
        return Annotated[list[str] | None, typer.Option(f"--{flag}", help=told)], None
    return Annotated[str | None, typer.Option(f"--{flag}", help=told, show_default=shown or False)], None


def _value(name: str, field: "FieldInfo", given: Any) -> Any:
    """Return what was given for a field: a text for a text, else what it is as YAML."""
    from hmtl_dist.config.dialect import parse

    kind: object = field.annotation
    is_text = any(kind == one for one in (str, str | None, Path | None))
    return given if is_text or not isinstance(given, str) else parse(given, name)


def _common_options(data_set: "DataSet") -> "dict[str, Parameter]":
    """Return the options of every build, by parameter."""
    usual = data_set.splits
    if data_set.source == "url":
        usual = f"those that SRC names, else {usual}"
    split = f"Splits and their shares, adding up to 1, or `published` for the set's own; if empty, {usual}."
    text, number, flag = str | None, int | None, bool
    return {
        "split": (Annotated[text, typer.Option(help=split)], None),
        "seed": (
            Annotated[int, typer.Option(help="Decides who falls to which split, and the order of the samples.")],
            0,
        ),
        "image_size": (
            Annotated[number, typer.Option(min=8, help="Shrink the shorter side to this many pixels.")],
            None,
        ),
        "jpeg_quality": (
            Annotated[int, typer.Option(min=1, max=100, help="Quality of JPEGs that are encoded anew.")],
            95,
        ),
        "shard_samples": (Annotated[int, typer.Option(min=1, help="Samples a shard.")], data_set.shard_samples),
        "shard_bytes": (
            Annotated[number, typer.Option(min=1, help="About this many bytes a shard, instead of samples.")],
            None,
        ),
        "drop_duplicates": (
            Annotated[
                flag,
                typer.Option(
                    "--drop-duplicates/--keep-duplicates", help="Leave out pictures whose file is the same as another."
                ),
            ],
            data_set.source != "none",
        ),
        "name": (
            Annotated[text, typer.Option(help="Name of the data set; the last part of OUT when not given.")],
            None,
        ),
        "num_workers": (Workers, None),
        "overwrite": (
            Annotated[flag, typer.Option(help="Delete the data set that OUT holds and build anew.")],
            False,
        ),
        "strict": (Strict, False),
        "as_json": (AsJson, False),
    }


def catalog(as_json: AsJson = False) -> None:
    """List the data sets that can be built: what they are labelled with, their licence, and where to ask for them."""
    from dataclasses import asdict

    if not as_json:
        views.print_catalogue(list(_data_sets().values()))
        return
    rows: list[dict[str, Any]] = []
    for one in _data_sets().values():
        row = asdict(one)
        del row["open"], row["source"], row["shard_samples"]
        row["options"] = {
            key: {"default": field.default, "help": field.description}
            for key, field in one.options.model_fields.items()
        }
        rows.append(row)
    views.print_json(rows)
