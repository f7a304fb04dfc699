"""`report`: what MLflow holds, as one page."""

from pathlib import Path
from typing import Annotated

import typer

from hmtl_dist.errors import UserError

app = typer.Typer()


@app.command()
def report(
    name: Annotated[str, typer.Argument(help="MLflow experiment, suite of `reproduce`, or sweep of `tune`.")],
    out: Annotated[Path, typer.Option(help="File to write; replaced if it is there.", dir_okay=False)] = Path(
        "report.html"
    ),
) -> None:
    """Write what MLflow holds of an experiment, a suite or a sweep as one page that needs nothing else."""
    from hmtl_dist.console import Console
    from hmtl_dist.data.storage.local import replace_file
    from hmtl_dist.report.page import write_page
    from hmtl_dist.report.study import find_study, read_groups
    from hmtl_dist.services.store import known_mlflow, looked_up
    from hmtl_dist.tracking.history import History

    if not out.parent.is_dir():
        raise UserError(f"--out: there is no folder '{out.parent}'")
    with Console() as console:
        tracking = known_mlflow()
        history = History(tracking)
        with looked_up(tracking):
            study = find_study(name, history)
        with console.progress("report", len(study.groups)) as bar:
            for done in read_groups(study, history):
                bar.update(done)
        replace_file(out, lambda file: file.write(write_page(study).encode()))
        console.say(f"{len(study.runs)} runs, {len(study.suites)} suites, {len(study.sweeps)} sweeps: {out}")
