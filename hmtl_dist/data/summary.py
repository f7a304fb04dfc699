"""What a data set holds, and what a plan makes each rank read."""

from dataclasses import dataclass

import numpy as np

from hmtl_dist.data.config import DataConfig
from hmtl_dist.data.dataset.index import open_dataset, open_index
from hmtl_dist.data.dataset.schema import IndexHeader
from hmtl_dist.data.stream.plan import Plan
from hmtl_dist.data.stream.selection import Source, open_training


@dataclass(frozen=True)
class RankReads:
    """What one rank reads in the first epoch."""

    rank: int
    samples: int
    shards: int
    """Shards it reads at least one sample of."""
    num_bytes: int
    """About how many bytes, by the mean size of a sample of each shard."""


@dataclass(frozen=True)
class PlanSummary:
    """The size of an epoch."""

    draws: int
    """Draws of an epoch: the samples, unless sets are mixed."""
    steps_per_epoch: int
    leftover: int
    """Draws that an epoch leaves out, others in every epoch."""
    sources: list[Source]
    """The sets, and what is drawn of each."""
    label_counts: dict[str, dict[str, int]]
    """Draws of each class of each category label in an epoch."""
    ranks: list[RankReads]


def headers_of(url: str) -> list[IndexHeader]:
    """The header of every split.

    Raises:
        UserError: when there is no complete data set at `url`.
    """
    return [open_index(url, split).header for split in open_dataset(url).splits]


def plan_summary(config: DataConfig, *, world_size: int, seed: int) -> PlanSummary:
    """Plan the first epoch of training and count what falls to each rank, without walking its blocks.

    Raises:
        UserError: when batch size, lanes and world size do not fit together, or the set is smaller than a batch.
    """
    training = open_training(config)
    index = training.index
    plan = Plan(
        index.num_samples,
        batch_size=config.batch_size,
        lanes=config.lanes,
        seed=seed,
        shuffle=True,
        block=config.shuffle_block,
        pools=training.pools,
    )
    epoch = plan.epoch(0)
    mean_bytes = index.num_bytes / np.maximum(index.num_samples, 1)
    ranks: list[RankReads] = []
    for rank in range(world_size):
        counts = epoch.lane_draws(plan.rank_lanes(rank, world_size))
        ranks.append(
            RankReads(rank, int(counts.sum()), int(np.count_nonzero(counts)), round(float(counts @ mean_bytes)))
        )
    header = training.header
    labels = {
        name: dict(zip(header.fields[name].classes, counts, strict=True))
        for name, counts in header.label_counts.items()
    }
    return PlanSummary(plan.num_draws, plan.steps_per_epoch, plan.leftover, list(training.sources), labels, ranks)
