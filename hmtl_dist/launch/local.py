"""Runs training in this process, without Ray: one rank alone, or one of the ranks that `torchrun` started."""

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from hmtl_dist.errors import UserError
from hmtl_dist.launch.folders import run_folder, scratch_folder
from hmtl_dist.launch.room import with_workers
from hmtl_dist.launch.signals import StopRequest
from hmtl_dist.launch.threads import num_threads, torch_threads
from hmtl_dist.run_config import LaunchConfig, RunConfig
from hmtl_dist.train.base import Listener, Outcome, Progress, RankContext, RunContext, TrainRank

_TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others in one collective: longer than a slow evaluation or save."""


class LocalListener:
    """The loop's listener in the process that also talks to the user."""

    def __init__(self, show: Callable[[Progress], None], stop: StopRequest, say: Callable[[str], None]) -> None:
        self._show = show
        self._say = say
        self._stop = stop

    def progress(self, progress: Progress) -> None:
        """Show a line of progress."""
        self._show(progress)

    def note(self, line: str) -> None:
        """Show a line."""
        self._say(line)

    def report(self, metrics: Mapping[str, float], checkpoint: str | None) -> None:
        """Do nothing: there is no scheduler that wants to know."""

    def should_stop(self) -> bool:
        """Whether this process was sent SIGINT or SIGTERM."""
        return self._stop.requested

    def hung(self, said: str) -> None:
        """Say so where the user looks."""
        os.write(2, f"error: {said}\n".encode())

    def should_save(self) -> bool:
        """Return False: nobody announces anything to this process but by a signal."""
        return False


def run_local(
    config: RunConfig,
    show: Callable[[Progress], None],
    train: TrainRank | None = None,
    *,
    run: RunContext | None = None,
    on_stop: Callable[[], None] = lambda: None,
    listener: Listener | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Train in this process and return how it ended.

    Under `torchrun` (RANK and WORLD_SIZE are set) this process is one rank of several and joins their process group,
    over gloo on the CPU and over nccl on GPUs. The first SIGINT or SIGTERM ends the run in order, with a checkpoint;
    the second raises KeyboardInterrupt.

    Args:
        config: The resolved configuration.
        show: Called with every line of progress, on rank 0 only.
        train: What to run instead of `train.worker.train_rank`.
        run: Which run it is; if empty, one that MLflow knows nothing of.
        on_stop: Called once, inside a signal's handler, when a stop is asked for.
        listener: Who is told instead, and may ask to stop, such as a search.
        say: Called with what the user should know, on rank 0 only.

    Raises:
        UserError: The configuration asks for workers or GPUs that this process does not have.
    """
    if train is None:
        from hmtl_dist.train.worker import train_rank as train

    config = check_local(config)
    rank, world_size, local_rank = _place()
    rank_context = RankContext(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        device=_device(config.launch, local_rank),
        scratch=scratch_folder(config, rank),
        run=run or RunContext(run_folder(config)),
        node=int(os.environ.get("GROUP_RANK", "0")),
        nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")),
    )
    with StopRequest(on_stop) as stop, torch_threads(num_threads(config.launch)), _process_group(rank_context):
        return train(config, rank_context, listener or LocalListener(show, stop, say))


def check_local(config: RunConfig) -> RunConfig:
    """See that this process, alone or as `torchrun` started it, has the workers and GPUs that are asked for.

    Returns:
        The configuration with the number of workers, where it said `auto`.

    Raises:
        UserError: It has not.
    """
    _, world_size, local_rank = _place()
    config = with_workers(config, world_size)
    if config.launch.world_size != world_size:
        raise UserError(_wrong_size(config.launch.world_size, world_size))
    if config.launch.gpus_per_worker:
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if local_rank >= found:
            raise UserError(
                f"launch.gpus_per_worker: {config.launch.gpus_per_worker:g} given, but torch finds {found} GPUs for "
                f"{local_rank + 1} workers here; use launch.gpus_per_worker=0 to train on the CPU"
            )
    return config


def _place() -> tuple[int, int, int]:
    """This process's rank, the number of ranks, and the rank on this machine, as `torchrun` says."""
    rank, world_size, local_rank = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    return rank, world_size, local_rank


def _wrong_size(num_workers: int, world_size: int) -> str:
    if world_size == 1:
        return (
            f"launch.num_workers: {num_workers} given, but launch.kind=local trains in this one process; "
            f"use launch.num_workers=1, launch.kind=ray, or `torchrun --nproc-per-node {num_workers}`"
        )
    return f"launch.num_workers: {num_workers} given, but torchrun started {world_size}; give the same number to both"


def _device(launch: LaunchConfig, local_rank: int) -> str:
    if launch.gpus_per_worker == 0:
        return "cpu"
    torch.cuda.set_device(local_rank)
    return f"cuda:{local_rank}"


@contextmanager
def _process_group(rank_context: RankContext) -> Generator[None]:
    if rank_context.world_size == 1:
        yield
        return
    backend = "gloo" if rank_context.device == "cpu" else "nccl"
    dist.init_process_group(backend, rank=rank_context.rank, world_size=rank_context.world_size, timeout=_TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()
