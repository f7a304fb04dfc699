"""What the driver of a run does around its workers: one MLflow run, the right launcher, a true end."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from hmtl_dist.data.storage.config import settings as storage_settings
from hmtl_dist.engine.checkpoint import complete_steps, newest_manifest
from hmtl_dist.launch.cost import Cost, account
from hmtl_dist.launch.discard import discard
from hmtl_dist.launch.folders import run_folder
from hmtl_dist.launch.lock import only_one
from hmtl_dist.launch.preflight import check
from hmtl_dist.launch.record import Record, begin_recording, check_place, read_record, write_record
from hmtl_dist.launch.sync import undelivered
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tracking.config import Recording, resolve
from hmtl_dist.tracking.runs import finish_run, record_metrics, run_url
from hmtl_dist.train.base import Callback, Listener, Outcome, Progress, RunContext
from hmtl_dist.train.saving import check_changes, checkpoints_folder, read_entries

Again = Literal["unchanged", "changed", "anew"]
"""How a run of the same name goes on: with the settings it was begun with, or else it is refused; with others, whatever
that does to it; or from nothing, its checkpoints removed."""


@dataclass(frozen=True)
class Finished:
    """A run that ended in order."""

    outcome: Outcome
    folder: str
    """Folder or URL of the run."""
    run_id: str | None
    """Its MLflow run, if there is one."""
    run_url: str | None
    """Where that can be looked at."""
    undelivered: int = 0
    """Events that wait for MLflow in the journal."""
    cost: Cost | None = None
    """What it has cost, where a price is given."""


def drive(
    config: RunConfig,
    show: Callable[[Progress], None],
    *,
    again: Again = "unchanged",
    on_stop: Callable[[], None] = lambda: None,
    listener: Listener | None = None,
    say: Callable[[str], None] = lambda text: None,
    parent: str | None = None,
    callbacks: Sequence[Callback] = (),
) -> Finished:
    """Run a training to its end, going on where an earlier call with the same name stopped.

    Args:
        config: The resolved configuration.
        show: Called with every line of progress.
        again: What becomes of a run of this name that was begun with other settings.
        on_stop: Called once, inside a signal's handler, when the user asks for an orderly stop; it may take no lock.
        listener: Who is told too, and may ask to stop, such as a search. With `launch.kind=local` it is told all that
            a rank has to say, instead of `show`; with Ray it is only asked whether to stop.
        say: Called with what the user should know of where it runs.
        parent: MLflow run that the run belongs to, if it has none of its own yet.
        callbacks: Told on every rank, in its training process; picklable, with Ray.

    Raises:
        UserError: Something the user can mend.
        TrainingError: Anything else broke in a worker.
    """
    folder = run_folder(config)
    if config.launch.kind == "local" and os.environ.get("RANK", "0") != "0":  # under torchrun every rank comes here
        return _run(config, RunContext(folder, callbacks=tuple(callbacks)), show, on_stop, listener, say)
    say("checking data, tasks and model")
    check(config)
    with storage_settings(config.storage), only_one(folder, config.name):
        check_place(config, folder)
        if again == "anew":
            discard(config)
        manifest = newest_manifest(checkpoints_folder(folder))
        if manifest and again == "unchanged":
            check_changes(manifest, config)
        run = replace(_begin(config, folder, manifest, parent, say), callbacks=tuple(callbacks))
        try:
            write_record(config, run)
        except BaseException:  # Ctrl-C too: nothing was trained, and the MLflow run is not to look as if it went on
            finish_run(run.recording, run.recording.run_id, "KILLED")
            raise
        price = config.launch.node_hour_price
        if price is None:
            return _run(config, run, show, on_stop, listener, say)
        begun, first_step = time.monotonic(), max(complete_steps(checkpoints_folder(folder)), default=0)
        finished = _run(config, run, show, on_stop, listener, say)
        images = (finished.outcome.global_step - first_step) * config.data.batch_size
        return _with_cost(finished, run.recording, price, time.monotonic() - begun, images)


def _begin(
    config: RunConfig,
    folder: str,
    manifest: Mapping[str, Any] | None,
    parent: str | None,
    say: Callable[[str], None],
) -> RunContext:
    """Find what the run was begun as, or begin it.

    A run that began while MLflow was away has no MLflow run in its first checkpoints, but in its record once it was
    synced.
    """
    record = read_record(folder) or Record(config={})
    run_id = record.run_id or (read_entries(manifest).run_id if manifest else None)
    parent = record.parent or parent
    recording = resolve(config.tracking, run_id, known=record.tracking_uri)
    return RunContext(folder, begin_recording(config, recording, parent, say), parent, attempt=record.attempt + 1)


def _run(
    config: RunConfig,
    run: RunContext,
    show: Callable[[Progress], None],
    on_stop: Callable[[], None],
    listener: Listener | None,
    say: Callable[[str], None],
) -> Finished:
    recording, run_id = run.recording, run.recording.run_id
    try:
        if config.launch.kind == "local":
            from hmtl_dist.launch.local import run_local

            outcome = run_local(config, show, run=run, on_stop=on_stop, listener=listener, say=say)
        else:
            from hmtl_dist.launch.ray_train import run_ray

            say("starting Ray")
            should_stop = listener.should_stop if listener else None
            outcome = run_ray(config, show, run=run, on_stop=on_stop, should_stop=should_stop, say=say)
    except KeyboardInterrupt:
        finish_run(recording, run_id, "KILLED")
        raise
    except Exception:
        finish_run(recording, run_id, "FAILED")  # rank 0 may not have come so far as to say it
        raise
    url = run_url(recording, run_id) if run_id else None
    return Finished(outcome, run.folder, run_id, url, undelivered(config))


def _with_cost(finished: Finished, recording: Recording, price: float, seconds: float, images: int) -> Finished:
    """Tell what a run has cost, and record it."""
    outcome = finished.outcome
    cost = account(price, finished.folder, nodes=outcome.nodes, seconds=seconds, images=images)
    metrics = {"cost/run": cost.run, "cost/node_hours": cost.node_hours}
    if cost.per_million_images is not None:
        metrics["cost/per_million_images"] = cost.per_million_images
    record_metrics(recording, finished.run_id, metrics, outcome.global_step)
    return replace(finished, cost=cost)
