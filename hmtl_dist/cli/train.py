"""`train`, `evaluate` and `config`."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hmtl_dist.cli import completion

if TYPE_CHECKING:
    from rich.table import Table

    from hmtl_dist.console import Console
    from hmtl_dist.data.storage.waits import Wait
    from hmtl_dist.launch.driver import Again, Finished
    from hmtl_dist.progress import ProgressBar
    from hmtl_dist.run_config import RunConfig
    from hmtl_dist.train.base import Progress as Step

app = typer.Typer()

Recipe = Annotated[
    str,
    typer.Argument(
        help="Recipe: a YAML file, or a shipped name (`hmtl-dist recipes ls`).", autocompletion=completion.recipes
    ),
]
RunName = Annotated[
    str,
    typer.Argument(help="Name of a run, or its folder or URL.", metavar="RUN", autocompletion=completion.runs),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings over the recipe's, such as tasks.puzzling.weight=0.5.", metavar="[KEY=VALUE]..."),
]
AllowChanges = Annotated[
    bool, typer.Option("--allow-changes", help="Go on although settings differ from those the run was begun with.")
]
Restart = Annotated[
    bool, typer.Option("--restart", help="Begin anew: remove the checkpoints that a run of this name has left.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON, progress left out.")]


class Weights(StrEnum):
    """Which of a run's weights to evaluate."""

    LAST = "last"
    EMA = "ema"
    BEST = "best"


@app.command()
def config(recipe: Recipe, overrides: Overrides = None) -> None:
    """Print the resolved configuration, with units and help."""
    from hmtl_dist.config.io import describe, load_tree
    from hmtl_dist.run_config import RunConfig

    typer.echo(describe(load_tree(RunConfig, recipe, overrides or ())), nl=False)


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    allow_changes: AllowChanges = False,
    restart: Restart = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe; the same command again goes on where the run stopped."""
    from hmtl_dist.config.io import load_tree
    from hmtl_dist.run_config import RunConfig

    _train(load_tree(RunConfig, recipe, overrides or ()), as_json, _again(restart=restart, allow_changes=allow_changes))


@app.command()
def resume(
    run_name: RunName,
    overrides: Overrides = None,
    allow_changes: AllowChanges = False,
    as_json: AsJson = False,
) -> None:
    """Go on with a run that stopped or was killed, with the settings it was begun with."""
    from hmtl_dist.launch.record import load_run

    _train(load_run(run_name, overrides or ()), as_json, _again(allow_changes=allow_changes))


@app.command()
def sync(
    run_name: RunName,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Deliver to MLflow what a run recorded while the server was away."""
    from hmtl_dist.console import Console
    from hmtl_dist.launch.folders import log_file
    from hmtl_dist.launch.record import load_run
    from hmtl_dist.launch.sync import sync_run
    from hmtl_dist.tracking.redact import redact

    config = load_run(run_name, overrides or ())
    log = log_file(config.name)
    with Console() as console:
        with console.capture(log, redact), console.counted("sync events", quiet=as_json) as show:
            synced = sync_run(config, show)
        if as_json:
            console.say(json.dumps(vars(synced)))
            return
        if synced.refused:
            console.warn(f"MLflow would not take {synced.refused} events; {log} names them")
        console.say(f"delivered  {synced.delivered} events")
        console.say(f"MLflow     {synced.run_url}")


def _again(*, restart: bool = False, allow_changes: bool = False) -> "Again":
    return "anew" if restart else "changed" if allow_changes else "unchanged"


def _train(tree: "RunConfig", as_json: bool, again: "Again") -> None:
    from hmtl_dist.console import Console

    speaks = os.environ.get("RANK", "0") == "0"  # under torchrun every rank comes here
    with Console() as console:
        finished = run(tree, console, quiet=as_json or not speaks, again=again)
        if not speaks:
            pass
        elif as_json:
            console.say(json.dumps(_as_dict(finished)))
        else:
            tell(finished, console, tree)
    if finished.outcome.status != "FINISHED":
        raise typer.Exit(130)


@app.command()
def evaluate(
    run_or_checkpoint: Annotated[
        str,
        typer.Argument(
            help="Name of a run, or folder or URL of a run or checkpoint.",
            metavar="RUN",
            autocompletion=completion.runs,
        ),
    ],
    split: Annotated[
        str | None, typer.Option(help="Split to evaluate on; the run's `data.eval_split` if empty.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Data set to evaluate on; the run's own if empty.")] = None,
    weights: Annotated[
        Weights | None, typer.Option(help="Which weights; the averaged ones of a run that kept some if empty.")
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL[=ENDS]",
            help="Label whose groups are told apart, such as gender or age=20,40,60; may be given again; "
            "the run's `train.groups` if empty.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a trained run's last checkpoint in this process."""
    from hmtl_dist.console import Console
    from hmtl_dist.data.storage.waits import WaitNotice
    from hmtl_dist.launch.evaluate import evaluate_run

    with Console() as console:
        chosen: Any = None if weights is None else weights.value
        groups = _groups(group) if group else None
        with (
            console.counted("evaluate", quiet=as_json) as show,
            WaitNotice(lambda wait: show.wait(wait.what, wait.seconds)),
        ):
            evaluation, checkpoint = evaluate_run(
                run_or_checkpoint, split=split, data=data, weights=chosen, groups=groups, on_progress=show
            )
        if as_json:
            answer = {"checkpoint": checkpoint, "num_samples": evaluation.num_samples, "metrics": evaluation.metrics}
            console.say(json.dumps(answer))
        else:
            console.say(f"{checkpoint}: {evaluation.num_samples} pictures")
            console.show(metrics_table(evaluation.metrics))


def _groups(given: Sequence[str]) -> dict[str, list[float]]:
    """Read labels with where the groups of a number end."""
    from hmtl_dist.errors import UserError

    groups: dict[str, list[float]] = {}
    for text in given:
        label, equals, ends = text.partition("=")
        try:
            groups[label] = [float(end) for end in ends.split(",")] if equals else []
        except ValueError:
            raise UserError(f"--group: given '{text}', allowed LABEL or LABEL=20,40,60") from None
        if any(low >= high for low, high in pairwise(groups[label])):
            raise UserError(f"--group: given '{text}', the ends of the groups must ascend")
    return groups


def run(config: "RunConfig", console: "Console", *, quiet: bool = False, again: "Again" = "unchanged") -> "Finished":
    """Train, with progress on the console and everybody else's output in the run's log, which MLflow gets too."""
    from hmtl_dist.launch.sync import record_log, starts

    if os.environ.get("RANK", "0") != "0":  # under torchrun
        return _run(config, console, quiet=quiet, again=again)
    before = starts(config)
    try:
        finished = _run(config, console, quiet=quiet, again=again)
    except Exception:
        record_log(config, before)
        raise
    record_log(config, before)
    return finished


def _run(config: "RunConfig", console: "Console", *, quiet: bool, again: "Again") -> "Finished":
    from hmtl_dist.data.storage.waits import WaitNotice
    from hmtl_dist.launch.driver import drive
    from hmtl_dist.launch.folders import log_file
    from hmtl_dist.tracking.redact import redact

    log = log_file(config.name)
    with console.capture(log, redact):
        if quiet:
            return drive(config, lambda step: None, again=again)

        def stopping() -> None:
            console.interrupt("stopping in order, with a checkpoint; Ctrl-C again stops at once")

        workers = config.launch.num_workers
        how_many = "as many workers as there is room for" if workers == "auto" else f"{workers} worker(s)"
        console.say(f"run {config.name}: {how_many}, log {log}")
        with ExitStack() as stack:
            view = _View(console, stack)
            stack.enter_context(WaitNotice(view.wait))
            return drive(
                config,
                view.show,
                again=again,
                on_stop=stopping,
                say=console.say,
            )


class _View:
    """Shows how far a run is, and what it waits for; the bar appears with the first line of progress."""

    def __init__(self, console: "Console", stack: ExitStack) -> None:
        from hmtl_dist.console import Paced

        self._console = console
        self._stack = stack
        self._bar: ProgressBar | None = None
        self._waits = Paced(console)

    def show(self, step: "Step") -> None:
        """Show a line of progress."""
        from hmtl_dist.progress import duration

        bar = self._bar = self._bar or self._stack.enter_context(self._console.progress("train", step.total_steps))
        if step.phase == "resume":  # nothing has been measured yet
            bar.update(step.global_step)
        elif step.phase == "evaluating":
            left = "" if step.eta_seconds is None else f"  ETA {duration(step.eta_seconds)}"
            bar.tell(f"evaluating {step.share:.0%}{left}")
        else:
            bar.update(
                step.global_step,
                samples_per_second=step.samples_per_second,
                wait_share=step.wait_share,
                losses=step.losses,
                eta_seconds=step.eta_seconds,
            )
        if step.metrics:
            self._console.say_parts(f"epoch {step.epoch:.4g}:", _headline(step.metrics))

    def wait(self, wait: "Wait") -> None:
        """Show what is waited for."""
        self._waits.tell(self._bar, wait.what, wait.seconds)


def _headline(metrics: Mapping[str, float]) -> list[str]:
    from hmtl_dist.train.best import headline

    return [f"{name.removeprefix('eval/')} {value:.4g}" for name, value in headline(metrics).items()]


def tell(finished: "Finished", console: "Console", config: "RunConfig", again: str = "the same command") -> None:
    """Print how a run ended, what can be done with it next, and with what command a stopped one goes on."""
    from hmtl_dist.tasks.base import PretextConfig

    outcome = finished.outcome
    if outcome.metrics:
        console.show(metrics_table(outcome.metrics))
    if outcome.samples_per_second:
        console.say(f"{outcome.samples_per_second:,.1f} img/s, {outcome.wait_share:.0%} of the time waiting for data")
    if cost := finished.cost:
        each = "" if cost.per_million_images is None else f", {cost.per_million_images:,.2f} a million pictures"
        console.say(f"cost       {cost.run:,.2f}{each}; {cost.node_hours:,.3g} machine hours")
    if outcome.checkpoint:
        console.say(f"checkpoint {outcome.checkpoint}")
    if finished.run_url:
        console.say(f"MLflow     {finished.run_url}")
    if finished.undelivered:
        console.warn(f"{finished.undelivered} events wait for MLflow; `hmtl-dist sync {config.name}` delivers them")
    if outcome.status == "FINISHED":
        before = "" if outcome.samples_per_second else " before: nothing was left to train"
        console.say(f"finished at step {outcome.global_step}{before}")
        answers = any(not isinstance(task, PretextConfig) for task in config.tasks.values())
        steps = [f"predict {config.name} PICTURE.jpg"] * answers + [f"runs show {config.name}"]
        for step in steps:
            console.say(f"{'next' if step == steps[0] else '':<10} hmtl-dist {step}")
    else:
        console.say(f"stopped at step {outcome.global_step} of {outcome.total_steps}; {again} again goes on")


def metrics_table(metrics: Mapping[str, float]) -> "Table":
    """Lay evaluation figures out: a row a figure, with a column for last, averaged and best weights."""
    from rich.table import Table

    kinds = [kind for kind in ("last", "ema", "best") if any(name.startswith(f"{kind}/") for name in metrics)]
    table = Table("task", "metric", "value", *kinds)
    for name in sorted(name.removeprefix("eval/") for name in metrics if name.startswith("eval/")):
        task, _, metric = name.partition("/")
        values = [metrics.get(f"{kind}/{name}") for kind in ("eval", *kinds)]
        table.add_row(task, metric, *("" if value is None else f"{value:.4f}" for value in values))
    return table


def _as_dict(finished: "Finished") -> dict[str, Any]:
    from dataclasses import asdict

    told = {**asdict(finished.outcome), "folder": finished.folder, "run_id": finished.run_id, "url": finished.run_url}
    return told | ({"cost": asdict(finished.cost)} if finished.cost else {})
