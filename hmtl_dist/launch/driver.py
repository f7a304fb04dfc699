"""What the driver of a run does around its workers: one MLflow run, the right launcher, a true end."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from hmtl_dist.config.io import flatten
from hmtl_dist.engine.checkpoint import newest_manifest
from hmtl_dist.launch.place import run_folder
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tracking.config import resolve
from hmtl_dist.tracking.facts import code_tags
from hmtl_dist.tracking.mlflow import create_run, finish_run, run_url
from hmtl_dist.train.base import Outcome, Progress
from hmtl_dist.train.saving import checkpoints_folder


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


def drive(config: RunConfig, show: Callable[[Progress], None]) -> Finished:
    """Run a training to its end, going on where an earlier call with the same name stopped.

    Args:
        config: The resolved configuration.
        show: Called with every line of progress.

    Raises:
        UserError: Something the user can mend.
        TrainingError: Anything else broke in a worker.
    """
    folder = run_folder(config)
    if config.launch.kind != "local" or os.environ.get("RANK", "0") == "0":  # under torchrun every rank comes here
        config = _tracked(config, folder)
    run_id = config.tracking.run_id
    try:
        if config.launch.kind == "local":
            from hmtl_dist.launch.local import run_local

            outcome = run_local(config, show)
        else:
            from hmtl_dist.launch.ray_train import run_ray

            outcome = run_ray(config, show)
    except KeyboardInterrupt:
        finish_run(config.tracking, run_id, "KILLED")
        raise
    except Exception:
        finish_run(config.tracking, run_id, "FAILED")  # rank 0 may not have come so far as to say it
        raise
    return Finished(outcome, folder, run_id, run_url(config.tracking, run_id) if run_id else None)


def _tracked(config: RunConfig, folder: str) -> RunConfig:
    """Return the configuration with the MLflow run to record in: that of the last checkpoint, else a new one."""
    tracking = config.tracking
    if tracking.run_id is None and (manifest := newest_manifest(checkpoints_folder(folder))):
        tracking = tracking.model_copy(update={"run_id": manifest["run_id"]})
    run_id = create_run(tracking, name=config.name, params=flatten(config), tags=code_tags())
    return config.model_copy(update={"tracking": resolve(config.tracking, run_id)})
