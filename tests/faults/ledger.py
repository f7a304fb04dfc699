"""`hmtl-dist` as it is, but for a note of the samples that every rank takes: `python -m tests.faults.ledger train …`.

Each rank appends a line a step to `samples.jsonl` in its folder: [step, ids of the samples].
"""

import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from hmtl_dist.data.stream.batches import Batch
from hmtl_dist.run_config import RunConfig
from hmtl_dist.train.base import Listener, Outcome, RankContext
from hmtl_dist.train.loop import RankBatch

SAMPLES = "samples.jsonl"

Ledger = dict[int, list[int]]
"""The samples of every step, in the order of the global batch."""


def train_noted(config: RunConfig, rank_context: RankContext, listener: Listener) -> Outcome:
    """Train one rank, as `train_rank` does, with the note."""
    from hmtl_dist.train.worker import Trainer, train_rank

    rank_batches = Trainer.rank_batches

    def noted(self: Trainer, batches: Iterable[Batch]) -> Iterator[RankBatch]:
        for batch in rank_batches(self, batches):
            ids = cast("list[int]", cast("Any", batch.sample_ids).tolist())
            line = [self.engine.global_step + 1, ids]
            with (rank_context.scratch / SAMPLES).open("a") as file:
                file.write(json.dumps(line) + "\n")
            yield batch

    Trainer.rank_batches = noted
    return train_rank(config, rank_context, listener)


def read_ledger(run: Path) -> Ledger:
    """Put the notes of all ranks together; a step that was taken again must have taken the same samples."""
    ranks: list[Ledger] = []
    for file in sorted(run.glob(f"rank-*/{SAMPLES}")):
        taken: Ledger = {}
        for line in file.read_text().splitlines():
            try:
                step, ids = json.loads(line)
            except ValueError:  # cut off by a kill; the step was taken again, on a line of its own
                continue
            assert taken.setdefault(step, ids) == ids, f"step {step} was taken again with other samples"
        ranks.append(taken)
    assert len({tuple(sorted(taken)) for taken in ranks}) == 1, "the ranks took different steps"
    return {step: [sample for taken in ranks for sample in taken[step]] for step in sorted(ranks[0])}


def planned(config: RunConfig) -> Ledger:
    """Return the samples that the plan gives to every step of a run."""
    from hmtl_dist.data.stream.selection import open_training
    from hmtl_dist.train.streams import make_plan, make_schedule

    plan = make_plan(config, open_training(config.data), shuffle=True)
    total = make_schedule(config, plan.steps_per_epoch).total_steps
    ledger: Ledger = {}
    for step in range(total):
        epoch, within = divmod(step, plan.steps_per_epoch)
        ledger[step + 1] = np.asarray(plan.epoch(epoch).batch_ids(within)).ravel().tolist()
    return ledger


def main() -> None:
    """Run the command line with the noting rank in the place of the usual one."""
    from hmtl_dist.cli import main as command_line
    from hmtl_dist.launch import ray_train
    from tests.faults.ledger import train_noted as importable  # the workers import it by this name

    ray_train.run_ray = partial(ray_train.run_ray, train=importable)
    command_line()


if __name__ == "__main__":
    main()
