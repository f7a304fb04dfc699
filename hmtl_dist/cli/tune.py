"""`tune`: a search over a recipe's settings."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from hmtl_dist.cli.train import AsJson, Overrides, Recipe
from hmtl_dist.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from hmtl_dist.console import Console
    from hmtl_dist.tune.request import Request
    from hmtl_dist.tune.sweep import Outcome

app = typer.Typer()

DRY_ROWS = 8
"""Trials that a dry run shows."""


@app.command()
def tune(
    space: Annotated[str, typer.Argument(help="Space: a YAML file, or a shipped name (`hmtl-dist spaces ls`).")],
    recipe: Recipe,
    overrides: Overrides = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE over the space, such as budget.trials=8; may be given again."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep; RECIPE-SPACE if empty.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show trials, resources and the time they take.")
    ] = False,
    retrain: Annotated[
        str | None, typer.Option(help="Seeds to train the winner with again, such as 1-5.", metavar="SEEDS")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search over a recipe's settings; the same command again goes on where the sweep stopped."""
    from pathlib import Path

    from hmtl_dist.console import Console
    from hmtl_dist.tune.request import Request
    from hmtl_dist.tune.space import load_space

    seeds = _seeds(retrain)
    request = Request.make(load_space(space, settings or ()), Path(space).stem, recipe, overrides or (), name)
    request.check()
    with Console() as console:
        if dry_run:
            _tell_plan(request, console, as_json=as_json)
            return
        outcome = _run(request, seeds, console, quiet=as_json)
        if as_json:
            console.say(json.dumps(_as_dict(request, outcome)))
        else:
            _tell(request, outcome, console)
    if outcome.stopped:
        raise typer.Exit(130)
    if outcome.best is None:
        raise typer.Exit(1)


def _run(request: "Request", seeds: list[int], console: "Console", *, quiet: bool) -> "Outcome":
    from hmtl_dist.cli.tune_view import SweepView
    from hmtl_dist.data.storage.waits import WaitNotice
    from hmtl_dist.tracking.redact import redact
    from hmtl_dist.tune.sweep import Onlooker, run_sweep

    log = request.home / "log.txt"
    with console.capture(log, redact):
        if quiet:
            return run_sweep(request, Onlooker(), retrain=seeds)
        console.say(f"sweep {request.name}: log {log}")
        _tell_left_out(request, console)
        view = SweepView(console, request.space)
        with WaitNotice(view.wait):
            return run_sweep(request, view, retrain=seeds)


def _tell(request: "Request", outcome: "Outcome", console: "Console") -> None:
    from hmtl_dist.progress import duration

    console.show(_leaderboard(request, outcome), keep=3 + len(request.space.metrics))
    images = sum(record.images for record in outcome.records)
    console.say(f"{len(outcome.records)} trials, {images:,} pictures, {duration(outcome.seconds)}")
    metric = request.space.metric
    if outcome.best is not None:
        console.say(f"winner     trial {outcome.best.number}: {metric} {outcome.best.metrics[metric]:.4f}")
    values = [metrics[metric] for metrics in outcome.retrained.values() if metric in metrics]
    if values:
        from hmtl_dist.tune.results import spread

        console.say(f"again      {spread(values)}")
    if outcome.model:
        console.say(f"model      {outcome.model}, alias candidate")
    console.say(f"results    {request.home}")
    if outcome.url:
        console.say(f"MLflow     {outcome.url}")
    if outcome.stopped:
        console.say("stopped; the same command again goes on")


def _tell_left_out(request: "Request", console: "Console") -> None:
    if request.left_out:
        console.say(f"left out, the recipe has no such section: {', '.join(request.left_out)}")


def _leaderboard(request: "Request", outcome: "Outcome") -> "Table":
    from rich.table import Table

    from hmtl_dist.tune.analysis import ranked
    from hmtl_dist.tune.page import cells, columns, is_priced

    left_out = {"images", "seconds", "img/s"}  # they are in the files
    priced = is_priced(outcome.records)
    heads = columns(request.space, priced=priced)
    kept = [place for place, head in enumerate(heads) if head not in left_out]
    table = Table(*(heads[place] for place in kept))
    for rank, record in enumerate(ranked(request.space, outcome.records)[:20], start=1):
        row = cells(request.space, rank, record, priced=priced)
        table.add_row(*(row[place] for place in kept))
    return table


def _as_dict(request: "Request", outcome: "Outcome") -> dict[str, object]:
    return {
        "sweep": request.name,
        "status": "STOPPED" if outcome.stopped else "FINISHED",
        "folder": outcome.folder,
        "best": None if outcome.best is None else outcome.best.model_dump(mode="json"),
        "trials": [record.model_dump(mode="json", exclude={"searcher"}) for record in outcome.records],
        "files": [str(path) for path in outcome.files],
        "run_id": outcome.parent,
        "url": outcome.url,
        "model": outcome.model,
        "retrained": dict(outcome.retrained),
        "seconds": outcome.seconds,
    }


def _tell_plan(request: "Request", console: "Console", *, as_json: bool) -> None:
    """Show the first trials, what one takes, and how long all would."""
    import os

    from hmtl_dist.launch.ray_cluster import cluster_address
    from hmtl_dist.progress import duration
    from hmtl_dist.tune.analysis import shown
    from hmtl_dist.tune.ledger import Ledger
    from hmtl_dist.tune.request import estimate
    from hmtl_dist.tune.room import places
    from hmtl_dist.tune.suggest import suggest

    space, launch = request.space, request.config.launch
    known = Ledger(request.folder).in_order()
    drawn = list(known[:DRY_ROWS])
    while len(drawn) < min(DRY_ROWS, space.num_trials) and (record := suggest(space, drawn, len(drawn))):
        drawn.append(record)
    rates = [record.samples_per_second for record in known if record.samples_per_second]
    cost = estimate(request, sum(rates) / len(rates) if rates else None)
    elsewhere = cluster_address(launch)
    here = places([{"CPU": len(os.sched_getaffinity(0)), "GPU": _gpus()}], launch)
    at_once = max(1, min(space.concurrency or max(here, 1), space.num_trials))
    per_epoch, total = request.steps
    if as_json:
        told = {"sweep": request.name, "trials": space.num_trials, "steps": total, "steps_per_epoch": per_epoch}
        told |= {"images_at_most": cost.images_at_most, "images_expected": cost.images_expected}
        told |= {"left_out": request.left_out, "concurrency": at_once, "samples_per_second": cost.rate}
        told |= {"seconds": cost.seconds(cost.images_expected, at_once)}
        console.say(json.dumps(told | {"first": [record.params for record in drawn]}))
        return
    console.say(
        f"sweep {request.name}: {space.num_trials} trials of {total} steps ({per_epoch} an epoch), {space.metric}"
    )
    _tell_left_out(request, console)
    for record in drawn:
        params = "  ".join(f"{path}={shown(value)}" for path, value in record.params.items())
        console.say(f"  trial {record.number}: {params}")
    if space.num_trials > len(drawn):
        console.say(f"  … {space.num_trials - len(drawn)} more, chosen by what these come to")
    what = f"{launch.world_size} worker(s) with {launch.cpus_per_worker:g} CPU, {launch.gpus_per_worker:g} GPU"
    where = f"as many as {elsewhere} has room for" if elsewhere else f"{at_once} at a time on this machine"
    console.say(f"a trial takes {what}; {where}")
    console.say(f"pictures: {cost.images_expected:,} expected, {cost.images_at_most:,} at most, evaluations left out")
    seconds, most = (cost.seconds(images, at_once) for images in (cost.images_expected, cost.images_at_most))
    if seconds is None or most is None:
        console.say("time: unknown, no run like this was measured here yet; `hmtl-dist train` one for a few steps")
        return
    console.say(
        f"time: about {duration(seconds)}, {duration(most)} at most, at {cost.rate:.1f} img/s of {cost.measured_on}"
    )


def _gpus() -> float:
    import torch

    return float(torch.cuda.device_count()) if torch.cuda.is_available() else 0.0


def _seeds(text: str | None) -> list[int]:
    """Read `3`, `0-4` or `1,3,5`."""
    if text is None:
        return []
    found: list[int] = []
    try:
        for part in text.split(","):
            low, _, high = part.partition("-")
            found += range(int(low), int(high or low) + 1)
    except ValueError:
        found = []
    if not found or min(found) < 0 or max(found) >= 100_000 or len(found) > 100:
        raise UserError(f"--retrain: given '{text}', allowed seeds such as 3, 0-4 or 1,3,5")
    return list(dict.fromkeys(found))
