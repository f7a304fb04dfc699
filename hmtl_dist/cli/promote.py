"""`promote`: the better of two registered models becomes the champion."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from hmtl_dist.cli.export import AsJson

if TYPE_CHECKING:
    from rich.table import Table

    from hmtl_dist.launch.promote import Promotion

app = typer.Typer()


@app.command()
def promote(
    model_name: Annotated[str, typer.Argument(help="Registered model in MLflow.", metavar="MODEL_NAME")],
    head: Annotated[str | None, typer.Option(help="Head that decides; the champion's first one if empty.")] = None,
    alpha: Annotated[float, typer.Option(min=1e-6, max=0.5, help="Chance of a difference that is none.")] = 0.05,
    data: Annotated[str | None, typer.Option(help="Where the test set is now; where it was if empty.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Move the alias whatever is found.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let the alias champion move to the version called candidate, if that is better on the same test set.

    Ends with 0 where the candidate is champion now, 1 where it is not better, 2 where the two cannot be compared.
    """
    from dataclasses import asdict

    from hmtl_dist.console import Console
    from hmtl_dist.launch.promote import promote as promote_candidate
    from hmtl_dist.services.store import known_mlflow

    with Console() as console:
        found = promote_candidate(model_name, head=head, alpha=alpha, data=data, force=force, tracking=known_mlflow())
        if as_json:
            console.say(json.dumps(asdict(found)))
        else:
            if found.heads:
                console.show(_table(found))
            for one in found.heads:
                console.say(f"{one.head}: {one.evidence}")
            now = found.candidate if found.outcome == "moved" else found.champion
            console.say(f"{model_name}: champion is version {now} (before: {found.champion or 'none'}); {found.reason}")
        if found.outcome == "kept":
            raise typer.Exit(1)


def _table(found: "Promotion") -> "Table":
    from rich.table import Table

    table = Table("head", "figure", "of", "champion", "candidate", "verdict")
    for one in found.heads:
        metrics = f"{one.champion:.4f}", f"{one.candidate:.4f}"
        table.add_row(one.head, one.metric, f"{one.num_samples:,}", *metrics, one.verdict)
    return table
