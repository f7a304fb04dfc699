"""Where a run's files are and how many threads a rank computes with, the same for every launcher."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import torch

from hmtl_dist.config.io import home
from hmtl_dist.run_config import LaunchConfig, RunConfig
from hmtl_dist.train.base import Listener, Outcome, Place

TrainRank = Callable[[RunConfig, Place, Listener], Outcome]
"""What a launcher runs on every rank: `train.worker.train_rank`, or a test's own function."""


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


def num_threads(launch: LaunchConfig) -> int:
    """Return with how many threads one rank computes."""
    return max(1, int(launch.cpus_per_worker))


@contextmanager
def torch_threads(count: int) -> Generator[None]:
    """Compute with so many threads inside the block: exact repetition needs the same count everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
