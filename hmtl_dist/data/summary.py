"""What a data set holds, and what a plan makes each rank read."""

from dataclasses import dataclass

import numpy as np

from hmtl_dist.data.plan import Plan
from hmtl_dist.data.schema import IndexHeader
from hmtl_dist.data.shards import ShardIndex, open_dataset, open_index


@dataclass(frozen=True)
class RankShare:
    """What one rank reads in the first epoch."""

    rank: int
    samples: int
    shards: int
    """Shards it reads at least one sample of."""
    num_bytes: int
    """About how many bytes, by the mean size of a sample of each shard."""


@dataclass(frozen=True)
class PlanFigures:
    """The size of an epoch."""

    samples: int
    steps_per_epoch: int
    leftover: int
    """Samples that an epoch leaves out, others in every epoch."""
    ranks: list[RankShare]


def headers_of(url: str) -> list[IndexHeader]:
    """The header of every split.

    Raises:
        UserError: when there is no complete data set at `url`.
    """
    return [open_index(url, split).header for split in open_dataset(url).splits]


def plan_figures(
    index: ShardIndex, *, world_size: int, batch_size: int, lanes: int, seed: int, block: int
) -> PlanFigures:
    """Plan the first epoch of training and count what falls to each rank.

    Raises:
        UserError: when batch size, lanes and world size do not fit together, or the set is smaller than a batch.
    """
    plan = Plan(index.num_samples, batch_size=batch_size, lanes=lanes, seed=seed, shuffle=True, block=block)
    epoch = plan.epoch(0)
    mean_bytes = index.num_bytes / np.maximum(index.num_samples, 1)
    ranks: list[RankShare] = []
    for rank in range(world_size):
        counts = np.zeros(len(index), dtype=np.int64)
        for lane in plan.rank_lanes(rank, world_size):
            for part in epoch.lane_blocks(lane, 0):
                shards, numbers = np.unique(plan.locate(part.ids)[0], return_counts=True)
                counts[shards] += numbers
        ranks.append(
            RankShare(rank, int(counts.sum()), int(np.count_nonzero(counts)), round(float(counts @ mean_bytes)))
        )
    return PlanFigures(plan.num_samples, plan.steps_per_epoch, plan.leftover, ranks)
