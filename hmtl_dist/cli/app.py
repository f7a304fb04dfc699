"""The commands of `hmtl-dist` put together, and how they fail."""

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hmtl_dist import __version__
from hmtl_dist.cli import (
    data,
    demo,
    export,
    predict,
    probe,
    promote,
    recipes,
    report,
    reproduce,
    runs,
    serve,
    services,
    submit,
    train,
    tune,
    ui,
)
from hmtl_dist.config.addresses import ask_no_proxy_here
from hmtl_dist.errors import STORAGE_TROUBLE, UserError
from hmtl_dist.launch.signals import as_interrupt


class Commands(TyperGroup):
    """Ends in one line and an exit code for whatever a person can cause: 2 for a mistake, 130 for Ctrl-C or SIGTERM."""

    interrupted = False
    """Whether Ctrl-C was pressed by somebody who does not want to wait."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the options that stand before the command."""
        with _mistakes():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            with _mistakes(), as_interrupt():
                return super().invoke(ctx)
        except UserError as error:
            _fail(str(error))
            raise typer.Exit(2) from error
        except OSError as error:
            if error.errno not in STORAGE_TROUBLE:
                raise
            where = f"{error.filename}: " if error.filename else ""
            _fail(f"{where}{STORAGE_TROUBLE[error.errno]}; mend that, or set HMTL_HOME to a folder with room")
            raise typer.Exit(2) from error
        except KeyboardInterrupt:
            Commands.interrupted = True
            _say("stopped; the same command again goes on from what is kept")
            raise typer.Exit(130) from None


@contextmanager
def _mistakes() -> Generator[None]:
    """End in one line for an option, argument or command that is not there; without any command the help is shown."""
    try:
        yield
    except _USAGE_ERROR as error:
        text = error.format_message()
        if type(error).__name__ == "NoArgsIsHelpError" or error.ctx is None:
            raise
        text = text.replace(" Value error, ", " ")  # how typer begins what an enumeration does not have
        _fail(f"{text.rstrip('.')}{_as_setting(error)}; see `{error.ctx.command_path} --help`")
        raise typer.Exit(2) from error


def _as_setting(error: Any) -> str:
    """Say how a setting is given that somebody takes for an option."""
    command = error.ctx.command
    if type(error).__name__ != "NoSuchOption" or not any(one.name == "overrides" for one in command.params):
        return ""
    from hmtl_dist.config.schema import paths_named
    from hmtl_dist.run_config import RunConfig

    paths = [*paths_named(RunConfig, error.option_name.lstrip("-").replace("-", "_"))]
    return f"; a setting is given without dashes, as {' or '.join(f'{path}=VALUE' for path in paths)}" if paths else ""


_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # typer names it in public only by what is derived from it


def _fail(message: str) -> None:
    _say(f"error: {' '.join(message.split())}")


def _say(line: str) -> None:
    with suppress(OSError):  # of a terminal that was closed
        typer.echo(line, err=True)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(train.app)
app.add_typer(demo.app)
app.add_typer(export.app)
app.add_typer(predict.app)
app.add_typer(serve.app)
app.add_typer(promote.app)
app.add_typer(probe.app)
app.add_typer(tune.app)
app.add_typer(reproduce.app)
app.add_typer(report.app)
app.add_typer(ui.app)
app.add_typer(submit.app)
app.add_typer(data.app, name="data", help="Make, check and look at data sets.")
app.add_typer(services.app, name="services", help="Start and stop a local S3 and MLflow server.")
app.add_typer(runs.app, name="runs", help="List, show, compare and remove what was trained here.")
app.add_typer(recipes.recipes, name="recipes", help="List, print and copy the shipped recipes.")
app.add_typer(recipes.spaces, name="spaces", help="List, print and copy the shipped search spaces.")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hmtl-dist {__version__}")
        raise typer.Exit


OWN_STORES = frozenset({"config", "demo", "recipes", "services", "spaces", "submit"})
"""Commands that read and write nothing in S3 and MLflow, or know by themselves where they are."""


@app.callback()
def root(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say the version and leave.")
    ] = False,
) -> None:
    """Train Hybrid Multi-Task Learning models for faces, from shards in object storage to a tracked model."""
    ask_no_proxy_here(os.environ)
    if context.invoked_subcommand in OWN_STORES or context.resilient_parsing:
        return
    from hmtl_dist.config.io import home

    if (home() / "services").exists():  # else nothing of them has to be imported
        from hmtl_dist.services.store import use_local

        if used := use_local():
            typer.echo(f"using the local {' and '.join(used)} (`hmtl-dist services stop` ends them)", err=True)


@app.command()
def doctor(
    url: Annotated[
        str | None, typer.Argument(help="Data set or bucket that should be readable, such as s3://faces.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Look at every node of this Ray cluster instead, such as http://head:8265.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
    every_node: Annotated[bool, typer.Option("--every-node", hidden=True)] = False,
) -> None:
    """Say what is wrong with this machine and its servers, or with a cluster, and how to mend it."""
    from hmtl_dist import doctor as checks

    if every_node:  # the job of `doctor --address`
        from hmtl_dist.doctor_cluster import report

        typer.echo(report(url))
        return
    if address:
        from hmtl_dist.doctor_cluster import examine
        from hmtl_dist.launch.submit import find_address

        found = examine(find_address(address, os.environ), url)
    else:
        found = checks.examine(url)
    typer.echo(checks.as_json(found) if as_json else checks.as_text(found))
    if any(check.status == "fail" for check in found):
        raise typer.Exit(1)
