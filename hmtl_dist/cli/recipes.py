"""`recipes` and `spaces`: find and copy what is shipped."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hmtl_dist.errors import UserError

if TYPE_CHECKING:
    from hmtl_dist.config.io import Kind

Name = Annotated[str, typer.Argument(help="Name as `ls` shows it.")]


def _summary(path: Path) -> str:
    """Return the comment that a shipped file opens with."""
    with path.open(encoding="utf-8") as file:
        first = file.readline()
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _commands(kind: "Kind") -> typer.Typer:
    app = typer.Typer(no_args_is_help=True)

    @app.command("ls")
    def ls(as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False) -> None:
        """List names and what each is for."""
        from hmtl_dist.config.io import find_shipped, list_shipped

        shipped = {name: _summary(find_shipped(kind, name)) for name in list_shipped(kind)}
        if as_json:
            typer.echo(json.dumps(shipped, indent=2))
            return
        width = max(map(len, shipped), default=0)
        for name, summary in shipped.items():
            typer.echo(f"{name:<{width}}  {summary}".rstrip())

    @app.command("cat")
    def cat(name: Name) -> None:
        """Print one."""
        from hmtl_dist.config.io import find_shipped

        typer.echo(find_shipped(kind, name).read_text(encoding="utf-8"), nl=False)

    @app.command("cp")
    def cp(
        name: Name,
        to: Annotated[Path, typer.Argument(help="File or folder to copy it to.")] = Path(),
    ) -> None:
        """Copy one, to change it."""
        from hmtl_dist.config.io import find_shipped
        from hmtl_dist.data.storage.local import replace_file

        source = find_shipped(kind, name)
        target = to / source.name if to.is_dir() else to
        if target.exists():
            raise UserError(f"{target}: exists already; name another file, or remove it first")
        if not target.parent.is_dir():
            raise UserError(f"{target.parent}: no such folder; make it first")
        replace_file(target, lambda file: file.write(source.read_bytes()))
        typer.echo(str(target))

    return app


recipes = _commands("recipes")
spaces = _commands("tune_spaces")
