"""Where a run's files are, the same for every launcher."""

from pathlib import Path

from hmtl_dist.config.io import home
from hmtl_dist.run_config import RunConfig

RECORD = "run.json"
"""File of a run's folder: how it was started last."""
LOG = "log.txt"
"""File of a run's folder here: what everybody but the progress has printed."""
ADOPTED = "adopted.txt"
"""File of a run's folder: the checkpoint of another run that it has taken last."""


def log_file(name: str) -> Path:
    """Return the log of a run of this name on this machine."""
    return home() / "runs" / name / LOG


def run_folder(config: RunConfig) -> str:
    """Return the `s3://` URL or absolute path of the run's folder, where its checkpoints are.

    Call it on the driver only and hand the result to the workers: their home folder may be another one.
    """
    storage = config.launch.storage
    if storage is None:
        return str(home() / "runs" / config.name)
    if "://" in storage:
        return f"{storage.rstrip('/')}/{config.name}"
    return str(Path(storage).expanduser().resolve() / config.name)


def scratch_folder(config: RunConfig, rank: int) -> Path:
    """Return (and make) a rank's own folder on this machine, the same again when the run is resumed here."""
    folder = rank_folder(config, rank)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def rank_folder(config: RunConfig, rank: int) -> Path:
    """Return a rank's own folder on this machine, there or not."""
    return home() / "runs" / config.name / f"rank-{rank}"
