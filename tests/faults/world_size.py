"""Parts of a run on one rank or two, each stopped at a step, with a note of the samples it took."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from hmtl_dist.data.stream.batches import Batch
from hmtl_dist.run_config import RunConfig
from hmtl_dist.train.base import Progress, RankContext, RunContext
from hmtl_dist.train.loop import RankBatch
from hmtl_dist.train.worker import Trainer, train_rank


class StopAt:
    """A listener that asks for a stop when so many steps have been taken."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.asked = 0

    def progress(self, progress: Progress) -> None:
        pass

    def note(self, line: str) -> None:
        pass

    def report(self, metrics: Mapping[str, float], checkpoint: str | None) -> None:
        self.asked = int(metrics["global_step"])

    def should_stop(self) -> bool:
        return self.asked + 1 >= self.step

    def should_save(self) -> bool:
        return False

    def hung(self, said: str) -> None:
        raise AssertionError(said)


def part(config: RunConfig, folder: Path, stop_at: int, *, rank: int = 0, world_size: int = 1) -> int:
    """Train from the last checkpoint to a step, and return it; samples go to `samples-RANK.jsonl`, one line a step."""
    rank_batches = Trainer.rank_batches
    ledger = folder / config.name / f"samples-{rank}.jsonl"
    ledger.parent.mkdir(parents=True, exist_ok=True)

    def noted(self: Trainer, batches: Iterable[Batch]) -> Iterator[RankBatch]:
        for batch in rank_batches(self, batches):
            step = self.engine.global_step + 1
            with ledger.open("a") as file:
                file.write(json.dumps([step, world_size, batch.sample_ids.tolist()]) + "\n")  # pyright: ignore[reportUnknownMemberType]
            yield batch

    own = folder / config.name
    rank_context = RankContext(rank, world_size, rank, "cpu", own / f"rank-{rank}", RunContext(str(own)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "rank_batches", noted)
        return train_rank(config, rank_context, StopAt(stop_at)).global_step


def two_ranks(rank: int, configs: list[RunConfig], folder: Path, stop_at: int) -> None:
    """Run the second parts, as one of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    for config in configs:
        part(config, folder, stop_at, rank=rank, world_size=2)
    dist.barrier()  # pyright: ignore[reportUnknownMemberType]
    os._exit(0)  # on a busy machine a thread of torch may outlive what it belongs to, and abort an orderly end
