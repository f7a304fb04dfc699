"""Trainings for the launchers' tests: what a rank would do, without data, model or tracking."""

import os
import time
from pathlib import Path

import torch

from hmtl_dist.engine.ranks import TorchRanks
from hmtl_dist.errors import UserError
from hmtl_dist.run_config import RunConfig
from hmtl_dist.train.base import Listener, Outcome, Progress, RankContext

STEPS = 3


def total_of_ranks(rank_context: RankContext, value: float) -> float:
    """Add a value up over the ranks, waiting for all of them."""
    tensor = torch.tensor([value])
    return float(TorchRanks().all_reduce_sum(tensor) if rank_context.world_size > 1 else tensor)


def outcome(metrics: dict[str, float], global_step: int = STEPS, status: str = "FINISHED") -> Outcome:
    return Outcome(
        status=status,
        global_step=global_step,
        total_steps=STEPS,
        metrics=metrics,
        checkpoint=None,
        samples_per_second=1.0,
        wait_share=0.0,
    )


def line(global_step: int) -> Progress:
    return Progress(
        phase="train",
        global_step=global_step,
        total_steps=STEPS,
        epoch=0.0,
        samples_per_second=1.0,
        wait_share=0.0,
        learning_rate=0.1,
    )


def sum_of_ranks(config: RunConfig, rank_context: RankContext, listener: Listener) -> Outcome:
    """Add the ranks up over the process group, with progress and a report each step."""
    total = 0.0
    for step in range(1, STEPS + 1):
        total = total_of_ranks(rank_context, rank_context.rank + 1)
        if rank_context.rank == 0:
            listener.progress(line(step))
        listener.report(
            {"step": float(step)}, f"{rank_context.run.folder}/step-{step}" if rank_context.rank == 0 else None
        )
    (rank_context.scratch / "threads").write_text(str(torch.get_num_threads()))
    return outcome({"sum": total, "seed": float(config.seed)})


def until_stopped(config: RunConfig, rank_context: RankContext, listener: Listener) -> Outcome:
    """Step until a rank is asked to stop, as the loop does: the ranks agree on it once a step."""
    for step in range(1, 6001):
        stop = total_of_ranks(rank_context, float(listener.should_stop()))
        if rank_context.rank == 0:
            listener.progress(line(step))
        if stop > 0:
            return outcome({}, step, "STOPPED")
        time.sleep(0.01)
    raise TimeoutError("nobody asked for a stop")


def never_stops(config: RunConfig, rank_context: RankContext, listener: Listener) -> Outcome:
    """Go on whatever is asked."""
    listener.progress(line(1))
    time.sleep(600)
    return outcome({})


def user_mistake(config: RunConfig, rank_context: RankContext, listener: Listener) -> Outcome:
    """Meet a mistake of the user on the last rank, while the others wait for it."""
    if rank_context.rank == rank_context.world_size - 1:
        raise UserError("data.url: nothing there; build it first")
    total_of_ranks(rank_context, 0.0)
    return outcome({})


def bug(config: RunConfig, rank_context: RankContext, listener: Listener) -> Outcome:
    """Break on the last rank, while the others wait for it."""
    if rank_context.rank == rank_context.world_size - 1:
        raise ZeroDivisionError("by zero\nin the toy")
    total_of_ranks(rank_context, 0.0)
    return outcome({})


def dies(config: RunConfig, rank_context: RankContext, listener: Listener) -> Outcome:
    """End the process of the last rank."""
    if rank_context.rank == rank_context.world_size - 1:
        time.sleep(3)  # until Ray Train has seen everybody start
        os._exit(7)
    total_of_ranks(rank_context, 0.0)
    return outcome({})


def starts(rank_context: RankContext) -> int:
    """Count this start of a rank, and say which one it is."""
    with (rank_context.scratch / "starts").open("a") as file:
        file.write(".")
    return len((rank_context.scratch / "starts").read_text())


def dies_once(config: RunConfig, rank_context: RankContext, listener: Listener) -> Outcome:
    """End the process of the last rank, the first time."""
    count = starts(rank_context)
    if rank_context.rank == rank_context.world_size - 1 and count == 1:
        time.sleep(3)  # until Ray Train has seen everybody start
        os._exit(7)
    total = total_of_ranks(rank_context, 1.0)
    return outcome({"starts": float(count), "ranks": total})


def counted_mistake(config: RunConfig, rank_context: RankContext, listener: Listener) -> Outcome:
    """Meet a mistake of the user on the last rank, however often it is started."""
    starts(rank_context)
    return user_mistake(config, rank_context, listener)


def environment(config: RunConfig, rank_context: RankContext, listener: Listener) -> Outcome:
    """Report what a rank finds around it."""
    (rank_context.scratch / "environment").write_text(f"{Path.cwd()}\n{os.environ.get('AWS_ACCESS_KEY_ID')}")
    return outcome({})
