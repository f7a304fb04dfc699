"""`runs`: what this machine has trained, side by side, and taking it away."""

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hmtl_dist.cli import completion
from hmtl_dist.cli.data_views import num_bytes_as_text
from hmtl_dist.cli.train import AsJson, metrics_table
from hmtl_dist.errors import UserError

if TYPE_CHECKING:
    from hmtl_dist.launch.kept import KeptRun

app = typer.Typer(no_args_is_help=True)

Patterns = Annotated[
    list[str] | None,
    typer.Argument(help="Names of runs; * stands for any letters.", metavar="[RUN]...", autocompletion=completion.runs),
]
Runs = Annotated[
    list[str],
    typer.Argument(help="Names of runs; * stands for any letters.", metavar="RUN...", autocompletion=completion.runs),
]


@app.command("ls")
def ls(runs: Patterns = None, as_json: AsJson = False) -> None:
    """List the runs that were started here, newest last."""
    from rich.table import Column, Table

    from hmtl_dist.console import Console
    from hmtl_dist.launch.kept import find_runs
    from hmtl_dist.progress import duration

    with Console() as console:
        found = find_runs(runs or (), console.warn)
        if as_json:
            console.say(json.dumps([_as_dict(run) for run in found], indent=2))
            return
        if not found:
            console.say("no runs here yet; `hmtl-dist demo` trains one")
            return
        whole = (Column("seen", no_wrap=True), "step", Column("size", no_wrap=True))
        table = Table("run", "status", "epoch", "metric", *whole, box=None, pad_edge=False)
        for run in found:
            ago = f"{duration(time.time() - run.seen)} ago"
            size = num_bytes_as_text(run.num_bytes)
            table.add_row(run.name, run.status, _epochs(run), _metric(run), ago, str(run.step), size)
        console.show(table, keep=4)


@app.command("show")
def show(
    run_name: Annotated[str, typer.Argument(help="Name of a run.", metavar="RUN", autocompletion=completion.runs)],
    as_json: AsJson = False,
) -> None:
    """Show one: how far it came, its metrics, its checkpoints, and how it goes on."""
    from hmtl_dist.console import Console
    from hmtl_dist.engine.checkpoint import checkpoint_at, complete_steps
    from hmtl_dist.launch.folders import log_file
    from hmtl_dist.launch.kept import find_runs
    from hmtl_dist.train.saving import checkpoints_folder

    with Console() as console:
        run, *others = find_runs([run_name])
        if others:
            raise UserError(f"{run_name}: {1 + len(others)} runs; give one, such as {run.name}")
        checkpoints = checkpoints_folder(run.folder)
        steps = complete_steps(checkpoints)
        if as_json:
            known = [checkpoint_at(checkpoints, step) for step in steps]
            console.say(json.dumps(_as_dict(run) | {"checkpoints": known, "url": run.url}, indent=2))
            return
        console.say(f"{run.name}: {run.status} at step {run.step}, epoch {_epochs(run)}")
        if run.metrics:
            console.show(metrics_table(run.metrics))
        console.say(f"data        {run.config.data.url}")
        console.say(f"tasks       {', '.join(run.config.tasks)}")
        for step in steps:
            console.say(f"checkpoint  {checkpoint_at(checkpoints, step)}")
        if run.url:
            console.say(f"MLflow      {run.url}")
        console.say(f"log         {log_file(run.name)}")
        console.say(f"size        {num_bytes_as_text(run.num_bytes)} here")
        if run.status not in ("finished", "training"):
            console.say(f"goes on by  hmtl-dist resume {run.name}")


@app.command("compare")
def compare(runs: Runs, as_json: AsJson = False) -> None:
    """Lay runs side by side: the settings in which they differ, and the metrics of their last evaluations."""
    from rich.table import Table

    from hmtl_dist.config.io import flatten
    from hmtl_dist.console import Console
    from hmtl_dist.launch.kept import find_runs

    with Console() as console:
        found = find_runs(runs, console.warn)
        if len(found) < 2:
            raise UserError(f"compare: {', '.join(runs)} is one run; give two or more")
        flat = {run.name: {key: value for key, value in flatten(run.config).items() if key != "name"} for run in found}
        keys = dict.fromkeys(key for one in flat.values() for key in one)
        settings = {
            key: {name: one.get(key) for name, one in flat.items()}
            for key in keys
            if len({one.get(key) for one in flat.values()}) > 1
        }
        names = sorted({name for run in found for name in run.metrics})
        metrics = {name: {run.name: run.metrics.get(name) for run in found} for name in names}
        if as_json:
            console.say(json.dumps({"settings": settings, "metrics": metrics}, indent=2))
            return
        table = Table("", *(run.name for run in found))
        table.add_row("status", *(run.status for run in found))
        table.add_row("epoch", *map(_epochs, found), end_section=True)
        for key, values in settings.items():
            table.add_row(key, *("-" if value is None else value for value in values.values()))
        table.add_section()
        for name, figures in metrics.items():
            row = ("-" if value is None else f"{value:.4f}" for value in figures.values())
            table.add_row(name.removeprefix("eval/"), *row)
        console.show(table)


@app.command("rm")
def rm(
    runs: Runs,
    tracked: Annotated[bool, typer.Option("--mlflow", help="Delete their MLflow runs too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove runs with their checkpoints, wherever these are; a run that is being trained is refused."""
    from hmtl_dist.console import Console
    from hmtl_dist.launch.kept import find_runs, remove_run

    with Console() as console:
        found = find_runs(runs, console.warn)
        for run in found:
            elsewhere = f" and {run.folder}" if "://" in run.folder else ""
            console.say(
                f"{run.name}  {run.status}, epoch {_epochs(run)}, {num_bytes_as_text(run.num_bytes)} here{elsewhere}"
            )
        if not yes:
            if not sys.stdin.isatty():
                raise UserError("nothing was removed: nobody is there to ask; say --yes")
            if console.ask(f"remove {len(found)} run(s)? [y/N] ").strip().lower() not in ("y", "yes"):
                console.say("nothing was removed")
                return
        for run in found:
            remove_run(run, tracked=tracked)
            console.say(f"removed {run.name}")


def _epochs(run: "KeptRun") -> str:
    return f"{run.epoch or 0:.3g}/{run.config.train.epochs}"


def _metric(run: "KeptRun") -> str:
    primary = run.primary
    return f"{primary[0].removeprefix('eval/')} {primary[1]:.4f}" if primary else ""


def _as_dict(run: "KeptRun") -> dict[str, Any]:
    return {
        "name": run.name,
        "status": run.status,
        "step": run.step,
        "epoch": run.epoch,
        "epochs": run.config.train.epochs,
        "metrics": dict(run.metrics),
        "folder": run.folder,
        "bytes": run.num_bytes,
        "seen": run.seen,
        "run_id": run.run_id,
    }
