"""The commands of `hmtl-dist` put together, and how they fail."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hmtl_dist import __version__
from hmtl_dist.cli import data, demo, recipes, services, train
from hmtl_dist.errors import STORAGE_TROUBLE, UserError


class Commands(TyperGroup):
    """Ends in one line and an exit code for whatever a person can cause: 2 for a mistake, 130 for Ctrl-C."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
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
            raise typer.Exit(130) from None


def _fail(message: str) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(train.app)
app.add_typer(demo.app)
app.add_typer(data.app, name="data", help="Make, check and look at data sets.")
app.add_typer(services.app, name="services", help="Start and stop a local S3 and MLflow server.")
app.add_typer(recipes.recipes, name="recipes", help="List, print and copy the shipped recipes.")
app.add_typer(recipes.spaces, name="spaces", help="List, print and copy the shipped search spaces.")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hmtl-dist {__version__}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say the version and leave.")
    ] = False,
) -> None:
    """Train Hybrid Multi-Task Learning models for faces, from shards in object storage to a tracked model."""


@app.command()
def doctor(
    url: Annotated[
        str | None, typer.Argument(help="Data set or bucket that should be readable, such as s3://faces.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Say what is wrong with this machine and its servers, and how to mend it."""
    from hmtl_dist import doctor as checks

    found = checks.examine(url)
    typer.echo(checks.as_json(found) if as_json else checks.as_text(found))
    if any(check.status == "fail" for check in found):
        raise typer.Exit(1)
