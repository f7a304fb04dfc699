"""`probe`: linear or non-linear evaluation of frozen features."""

import json
from enum import StrEnum
from typing import Annotated, Any

import typer

app = typer.Typer()


class HeadName(StrEnum):
    """What is learned on the features."""

    LINEAR = "linear"
    MLP = "mlp"


@app.command()
def probe(
    run_or_checkpoint: Annotated[
        str, typer.Argument(help="Name of a run, or folder or URL of a run or checkpoint.", metavar="RUN")
    ],
    data: Annotated[str | None, typer.Option(help="Data set; the run's own if empty.")] = None,
    label: Annotated[str, typer.Option(help="Category label to learn on the features.")] = "expression",
    split: Annotated[
        list[str] | None,
        typer.Option(help="Split to take; all of --data if none is given, the evaluated one of the run's own set."),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, max=250, help="Parts that share no person.")] = 10,
    head: Annotated[HeadName, typer.Option(help="linear, or mlp with one hidden layer.")] = HeadName.LINEAR,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the other folds.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Moves folds, initialisation and order.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Learn a small head on a run's frozen features, by folds of whole people."""
    from hmtl_dist.console import Console
    from hmtl_dist.launch.probe import probe_run
    from hmtl_dist.train.probe import ProbeSettings, percent

    settings = ProbeSettings(head=head.value, folds=folds, epochs=epochs, seed=seed)
    found = probe_run(run_or_checkpoint, settings, label=label, data=data, splits=tuple(split or ()))
    metrics = found.metrics
    with Console() as console:
        if as_json:
            answer: dict[str, Any] = {
                "status": "FINISHED",
                "checkpoint": found.checkpoint,
                "num_samples": found.num_samples,
                "metrics": {f"last/{label}/accuracy": metrics.last, f"best/{label}/accuracy": metrics.max},
                "folds": metrics.model_dump(mode="json"),
            }
            console.say(json.dumps(answer))
            return
        if not found.grouped:
            console.warn("the data set does not say who belongs together: one person may be in several folds")
        if found.seen:
            console.warn("the run was trained on some of these pictures: what is learned on its features flatters")
        kept = "kept from before" if found.cached else "extracted"
        console.say(f"{found.checkpoint}: features of {found.num_samples} pictures {kept}")
        console.say(f"last epoch  {100 * metrics.last:.2f} %   folds {percent(metrics.last_by_fold)}")
        console.say(f"max         {100 * metrics.max:.2f} %   folds {percent(metrics.max_by_fold)}")
        console.say("max takes the best epoch of each fold on that fold itself: it flatters, and is for comparison")
