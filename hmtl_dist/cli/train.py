"""`train`, `evaluate` and `config`."""

import json
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from hmtl_dist.console import Console
    from hmtl_dist.launch.driver import Finished
    from hmtl_dist.run_config import RunConfig
    from hmtl_dist.train.base import Progress as Step

app = typer.Typer()

Recipe = Annotated[str, typer.Argument(help="Recipe: a YAML file, or a shipped name (`hmtl-dist recipes ls`).")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings over the recipe's, such as tasks.puzzling.weight=0.5.", metavar="[KEY=VALUE]..."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON, progress left out.")]


@app.command()
def config(recipe: Recipe, overrides: Overrides = None) -> None:
    """Print the resolved configuration, with units and help."""
    from hmtl_dist.config.io import describe, load_tree
    from hmtl_dist.run_config import RunConfig

    typer.echo(describe(load_tree(RunConfig, recipe, overrides or ())), nl=False)


@app.command()
def train(recipe: Recipe, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Train a recipe; the same command again goes on where the run stopped."""
    from hmtl_dist.config.io import load_tree
    from hmtl_dist.console import Console
    from hmtl_dist.run_config import RunConfig

    tree = load_tree(RunConfig, recipe, overrides or ())
    with Console() as console:
        finished = run(tree, console, quiet=as_json)
        if as_json:
            console.say(json.dumps(_as_dict(finished)))
        else:
            tell(finished, console)
    if finished.outcome.status != "FINISHED":
        raise typer.Exit(130)


@app.command()
def evaluate(
    run_or_checkpoint: Annotated[
        str, typer.Argument(help="Name of a run, or folder or URL of a run or checkpoint.", metavar="RUN")
    ],
    split: Annotated[
        str | None, typer.Option(help="Split to evaluate on; the run's `data.eval_split` if empty.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Data set to evaluate on; the run's own if empty.")] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a trained run's last checkpoint in this process."""
    from hmtl_dist.console import Console
    from hmtl_dist.launch.evaluate import evaluate_run

    with Console() as console:
        evaluation, checkpoint = evaluate_run(run_or_checkpoint, split=split, data=data)
        if as_json:
            answer = {"checkpoint": checkpoint, "num_samples": evaluation.num_samples, "metrics": evaluation.figures}
            console.say(json.dumps(answer))
        else:
            console.say(f"{checkpoint}: {evaluation.num_samples} pictures")
            console.show(figures_table(evaluation.figures))


def run(config: "RunConfig", console: "Console", *, quiet: bool = False) -> "Finished":
    """Train, with progress on the console and everybody else's output in the run's log."""
    from hmtl_dist.config.io import home
    from hmtl_dist.launch.driver import drive
    from hmtl_dist.tracking.redact import redact

    log = home() / "runs" / config.name / "log.txt"
    with console.capture(log, redact):
        if quiet:
            return drive(config, lambda step: None)
        console.say(f"run {config.name}: {config.launch.num_workers} worker(s), log {log}")
        with _progress(console) as show:
            return drive(config, show)


@contextmanager
def _progress(console: "Console") -> "Generator[Callable[[Step], None]]":
    """Yield a function that shows a run's lines of progress; the bar appears with the first of them."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        bars: list[Any] = []

        def show(step: "Step") -> None:
            if not bars:
                bars.append(stack.enter_context(console.progress("train", step.total_steps)))
            bars[0].update(
                step.global_step,
                samples_per_second=step.samples_per_second,
                wait_share=step.wait_share,
                losses=step.losses,
                eta_seconds=step.eta_seconds,
            )
            if step.metrics:
                console.say(f"epoch {step.epoch:.4g}: {_headline(step.metrics)}")

        yield show


def _headline(metrics: Mapping[str, float]) -> str:
    wanted = ("/accuracy", "/balanced_accuracy", "/mae")
    shown = {name: value for name, value in metrics.items() if any(part in name for part in wanted)}
    return "  ".join(f"{name.removeprefix('eval/')} {value:.4g}" for name, value in shown.items())


def tell(finished: "Finished", console: "Console", again: str = "the same command") -> None:
    """Print how a run ended, and with what command a stopped one goes on."""
    outcome = finished.outcome
    if outcome.metrics:
        console.show(figures_table(outcome.metrics))
    if outcome.samples_per_second:
        console.say(f"{outcome.samples_per_second:,.1f} img/s, {outcome.wait_share:.0%} of the time waiting for data")
    if outcome.checkpoint:
        console.say(f"checkpoint {outcome.checkpoint}")
    if finished.run_url:
        console.say(f"MLflow     {finished.run_url}")
    if outcome.status == "FINISHED":
        console.say(f"finished at step {outcome.global_step}")
    else:
        console.say(f"stopped at step {outcome.global_step} of {outcome.total_steps}; {again} again goes on")


def figures_table(figures: Mapping[str, float]) -> "Table":
    """Lay evaluation figures out, one task a row."""
    from rich.table import Table

    table = Table("task", "figure", "value")
    for name, value in sorted(figures.items()):
        task, _, figure = name.removeprefix("eval/").partition("/")
        table.add_row(task, figure, f"{value:.4f}")
    return table


def _as_dict(finished: "Finished") -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(finished.outcome), "folder": finished.folder, "run_id": finished.run_id, "url": finished.run_url}
