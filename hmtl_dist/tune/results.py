"""What came of a sweep, written down: leaderboard, pictures, `best.yaml`, and the winner's model as `candidate`."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hmtl_dist.config.dialect import one_line
from hmtl_dist.config.io import describe
from hmtl_dist.data.storage import open_storage
from hmtl_dist.errors import UserError
from hmtl_dist.launch.register import register_run
from hmtl_dist.tracking.config import TrackingConfig
from hmtl_dist.tune.analysis import importances
from hmtl_dist.tune.ledger import Record
from hmtl_dist.tune.page import as_csv, write_page
from hmtl_dist.tune.request import Request, as_yaml
from hmtl_dist.tune.trials import run_name

CANDIDATE = "candidate"
"""Alias of the winner's registered version."""


def write_results(
    request: Request, records: Sequence[Record], best: Record | None, retrained: Sequence[float]
) -> list[Path]:
    """Write leaderboard, pictures, space and winner, on this machine and into the sweep's folder.

    Args:
        request: The sweep.
        records: Its trials, in order.
        best: The winner, if there is one.
        retrained: The deciding figure of the winner trained again, by seed.

    Returns:
        The files on this machine.
    """
    from hmtl_dist.tune.plots import draw_curves, draw_importances, draw_parallel, draw_pareto

    space = request.space
    told = [record for record in records if space.metric in record.metrics]
    pictures: dict[str, tuple[str, bytes]] = {}
    if told:
        pictures["learning_curves.png"] = ("Learning curves", draw_curves(space, told))
        pictures["parallel_coordinates.png"] = ("Parallel coordinates", draw_parallel(space, told))
        if found := importances(space, told):
            pictures["importances.png"] = ("Parameter importances", draw_importances(found))
        if space.second is not None:
            pictures["pareto_front.png"] = ("Pareto front", draw_pareto(space, told))
    facts = _facts(request, records, best, retrained)
    page = write_page(request.name, space, records, dict(pictures.values()), facts)
    contents = {
        "leaderboard.csv": as_csv(space, records).encode(),
        "leaderboard.html": page.encode(),
        "space.yaml": as_yaml(space).encode(),
        **{name: data for name, (_, data) in pictures.items()},
    }
    if best is not None:
        contents["best.yaml"] = _best_yaml(request, best).encode()
    request.home.mkdir(parents=True, exist_ok=True)
    storage = open_storage(request.folder)
    for name, data in contents.items():
        (request.home / name).write_bytes(data)
        if "://" in request.folder:
            storage.write(name, data)
    return [request.home / name for name in contents]


def _facts(
    request: Request, records: Sequence[Record], best: Record | None, retrained: Sequence[float]
) -> dict[str, str]:
    space = request.space
    images = sum(record.images for record in records)
    whole = len(records) * request.steps[1] * request.config.data.batch_size * space.seeds
    counts = [f"{count(records, kind)} {kind.lower()}" for kind in ("FINISHED", "PRUNED", "FAILED", "STOPPED")]
    share = f" ({images / whole:.0%} of all trials to their end)" if whole else ""
    facts = {
        "figure": f"{space.metric} ({space.mode})",
        "trials": f"{len(records)}: {', '.join(count for count in counts if not count.startswith('0 '))}",
        "search, schedule": f"{space.search.method}, {space.schedule.type}",
        "pictures": f"{images:,}{share}",
        "data digest": request.selection.header.digest,
    }
    if cost := sum(record.cost for record in records):
        facts["cost of the trials"] = f"{cost:,.2f} ({cost / max(images, 1) * 1e6:,.2f} for a million pictures)"
    if best is not None:
        facts["winner"] = f"trial {best.number}: {best.metrics[space.metric]:.4f}"
    if retrained:
        facts["winner again"] = spread(retrained)
    return facts


def _best_yaml(request: Request, best: Record) -> str:
    config = request.winning_config(best.params, request.seeds[0])
    metric = request.space.metric
    lines = [
        f"# Trial {best.number} of the sweep '{request.name}': {metric} = {best.metrics[metric]:.6g}.",
        "# `hmtl-dist train best.yaml` trains it again: the same seed on the same kind of machine gives the same.",
    ]
    if len(request.seeds) > 1:
        lines.append(f"# The figure is the mean over the seeds {', '.join(map(str, request.seeds))}.")
    if best.adoptions:
        lines[1] = "# Its values changed while it trained, so that no constant ones repeat it; these are the last."
        for one in best.adoptions:
            values = " ".join(f"{path}={one_line(value)}" for path, value in one.params.items())
            lines.append(f"# From step {one.step}, with the weights of trial {one.donor}: {values}")
    return "\n".join(lines) + "\n" + describe(config)


def register_winner(request: Request, tracking: TrackingConfig, best: Record) -> str | None:
    """Register the winner's model and return its id; that it cannot be is told, and spoils nothing."""
    name, run_id = next(iter(best.runs.items()), ("", None))
    if run_id is None or not tracking.enabled:
        return None
    run = run_name(request.name, best.number, 0)
    folder = f"{request.folder.rstrip('/').removesuffix(request.name)}{run}"
    registered = request.config.tracking.register_model or request.name
    try:
        return register_run(folder, tracking, run_id, name=registered, alias=CANDIDATE)
    except UserError as error:
        print(f"{name}: {error}", flush=True)  # noqa: T201  (goes to the sweep's log)
        return None


def spread(values: Sequence[float]) -> str:
    """Say the mean of several runs, with its 95 % interval by Student's t."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.4f} (one seed)"
    from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs]

    quantile: Any = stdtrit(len(values) - 1, 0.975)
    half = float(quantile) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.4f} ± {half:.4f} ({len(values)} seeds, 95 %)"


def count(records: Sequence[Record], status: str) -> int:
    """Count the trials of a status."""
    return sum(record.status == status for record in records)
