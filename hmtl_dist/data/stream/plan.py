"""Which sample is seen at which step on which rank: pure integer arithmetic, without I/O.

An epoch permutes the shards by (seed, epoch); their samples laid end to end, from a drawn starting point, form a
*tape*; the tape is cut into L equal *lanes*; inside a lane, samples are shuffled in *blocks*. A step takes B/L
consecutive samples from every lane, and rank r owns L/W neighbouring lanes. So the global batch of a step does not
depend on the world size W, every planned sample is seen exactly once an epoch, and the position of any step is found
without walking the epoch.

Memory is a few integers a shard. What lies at a place of the tape is the business of `tape.py`: with `pools` (a part of
the set, classes that are balanced, sets that are mixed) a place holds a *draw*, and a sample is drawn as often as its
pool needs; lanes, blocks and steps stay the same.

Shape legend: S shards, B samples of a global batch, L lanes, P = B / L samples a lane and step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hmtl_dist import rng
from hmtl_dist.data.stream.tape import Pools, Tape
from hmtl_dist.errors import UserError

PADDING = -1
"""The sample id of a slot of the last evaluation batch that holds no sample."""


@dataclass(frozen=True)
class Block:
    """Samples of one lane that are shuffled, and so needed, together."""

    lane: int
    step: int
    """Step that needs the first of them."""
    ids: NDArray[np.int64]
    """Global sample ids in the order in which they are consumed, without those before the step asked for."""


class Plan:
    """The order of all epochs of one data set.

    Args:
        shard_sizes: samples in each shard in index order, int64 `[S]`.
        batch_size: samples of a step over all ranks.
        lanes: a multiple of every world size between which a run should be able to move.
        seed: seed of the run.
        shuffle: False keeps the order of the index and pads the last batch instead of leaving samples out.
        block: samples of a lane shuffled together.
        pools: which samples an epoch draws, and how often; None draws each sample once.

    Raises:
        UserError: the lanes do not divide the batch, the set is empty, or smaller than a batch to be shuffled.
    """

    def __init__(
        self,
        shard_sizes: NDArray[np.int64],
        *,
        batch_size: int,
        lanes: int,
        seed: int,
        shuffle: bool,
        block: int,
        pools: Pools | None = None,
    ) -> None:
        if batch_size < 1 or lanes < 1 or block < 1:
            raise UserError(
                f"data.batch_size={batch_size}, data.lanes={lanes}, data.shuffle_block={block}: each must be 1 or more"
            )
        if batch_size % lanes:
            raise UserError(
                f"data.batch_size={batch_size} is not a multiple of data.lanes={lanes}: set data.batch_size "
                f"to {_nearest_multiple(batch_size, lanes)}, or data.lanes to a divisor of {batch_size}"
            )
        self.shard_sizes = np.ascontiguousarray(shard_sizes, dtype=np.int64)
        self.num_samples = int(self.shard_sizes.sum())
        if self.num_samples == 0:
            raise UserError("the data set holds no samples: build it again with `hmtl-dist data build`")
        self.pools = pools
        self.num_draws = self.num_samples if pools is None else sum(pools.draws)
        """Draws of an epoch: the samples of the set, unless pools say otherwise."""
        if shuffle and batch_size > self.num_draws:
            what = "the data set" if pools is None else "the chosen part of the data set, an epoch"
            raise UserError(
                f"data.batch_size={batch_size} is larger than {what} of {self.num_draws} samples: "
                f"set data.batch_size to {self.num_draws // lanes * lanes or 'less, with fewer data.lanes,'} or below"
            )
        self.batch_size = batch_size
        self.lanes = lanes
        self.seed = seed
        self.shuffle = shuffle
        self.block = block
        self.per_lane = batch_size // lanes
        """Samples that each lane gives to a step."""
        full_steps, rest = divmod(self.num_draws, batch_size)
        self.leftover = rest if shuffle else 0
        """Draws that an epoch leaves out, others in every epoch; 0 without shuffling."""
        self.padding = -self.num_draws % batch_size if not shuffle else 0
        """Empty slots at the end of the last batch; 0 when shuffling."""
        self.steps_per_epoch = full_steps + (1 if self.padding else 0)
        lane = np.arange(lanes + 1, dtype=np.int64)
        padded_rest = 0 if shuffle else rest
        self.lane_starts = lane * (full_steps * self.per_lane) + np.minimum(lane * self.per_lane, padded_rest)
        """Where each lane begins on the tape, and where the last one ends: int64 `[L + 1]`."""
        self.sample_offsets = np.concatenate(([0], np.cumsum(self.shard_sizes)))
        """Global id of the first sample of each shard, and the number of samples: int64 `[S + 1]`."""

    def epoch(self, epoch: int) -> "EpochPlan":
        """Return the order of one epoch (a few are kept, so that asking again costs nothing)."""
        return _epoch_plan(self, epoch)

    def rank_lanes(self, rank: int, world_size: int) -> range:
        """Return the lanes that a rank owns.

        Raises:
            UserError: the number of ranks does not divide the number of lanes.
        """
        if self.lanes % world_size:
            raise UserError(
                f"launch.num_workers={world_size} does not divide data.lanes={self.lanes}: set launch.num_workers to "
                f"one of {_divisors(self.lanes)}, or data.lanes to a multiple of {world_size}"
            )
        owned = self.lanes // world_size
        return range(rank * owned, (rank + 1) * owned)

    def samples_of(self, lane: int, step: int) -> int:
        """Return how many samples a lane gives to a step: P, or fewer where the last batch is padded."""
        length = int(self.lane_starts[lane + 1] - self.lane_starts[lane])
        return max(0, min(self.per_lane, length - step * self.per_lane))

    def epochs(self, start: tuple[int, int], epochs: int | None) -> Iterator[tuple[int, int]]:
        """Yield each epoch and its first step.

        Args:
            start: the first epoch and step; a step past the end of its epoch means the next epoch.
            epochs: how many epochs to go through, that of `start` included; None for no end.
        """
        epoch, step = start
        while epochs is None or epoch < start[0] + epochs:
            if step < self.steps_per_epoch:
                yield epoch, step
            epoch, step = epoch + 1, max(0, step - self.steps_per_epoch)

    def steps(self, start: tuple[int, int], epochs: int | None) -> Iterator[tuple[int, int]]:
        """Yield (epoch, step) for every step from `start` on; see `epochs`."""
        for epoch, first in self.epochs(start, epochs):
            for step in range(first, self.steps_per_epoch):
                yield epoch, step

    def locate(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the shard and the row in it of each global sample id."""
        shards = np.searchsorted(self.sample_offsets, ids, side="right") - 1
        return shards, ids - self.sample_offsets[shards]


class EpochPlan:
    """The order of one epoch; made by `Plan.epoch`."""

    def __init__(self, plan: Plan, epoch: int) -> None:
        self.plan = plan
        self.epoch = epoch
        pools = plan.pools
        sizes = plan.shard_sizes[None] if pools is None else pools.counts
        self._tapes = [
            Tape(
                plan.sample_offsets,
                sizes[pool],
                np.arange(len(plan.shard_sizes)) if pools is None else np.flatnonzero(sizes[pool]),
                (plan.seed, epoch, pool) if plan.shuffle else None,
                pools,
                pool,
            )
            for pool in range(len(sizes))
        ]

    def batch_ids(self, step: int) -> NDArray[np.int64]:
        """Return the global sample ids of a step, lane after lane: int64 `[B]`, `PADDING` in empty slots."""
        plan = self.plan
        ids = np.full((plan.lanes, plan.per_lane), PADDING, dtype=np.int64)
        for lane in range(plan.lanes):
            filled = 0
            for block in self.lane_blocks(lane, step):
                taken = min(len(block.ids), plan.per_lane - filled)
                ids[lane, filled : filled + taken] = block.ids[:taken]
                filled += taken
                if filled == plan.per_lane:
                    break
        return ids.reshape(-1)

    def lane_blocks(self, lane: int, start_step: int) -> Iterator[Block]:
        """Yield the blocks of a lane in the order of their consumption, from a step to the end of the epoch.

        Their ids laid end to end fill the lane's slots step by step; the padding at the end of an epoch without
        shuffling belongs to no block.
        """
        plan = self.plan
        lane_start, lane_end = int(plan.lane_starts[lane]), int(plan.lane_starts[lane + 1])
        length = lane_end - lane_start
        place = min(start_step * plan.per_lane, length)
        # Staggered: the lanes change blocks at different steps, so that reading is even over time.
        first = max(1, plan.block * (plan.lanes - lane) // plan.lanes)
        while place < length:
            number = 0 if place < first else 1 + (place - first) // plan.block
            start = 0 if number == 0 else first + (number - 1) * plan.block
            end = min(first if number == 0 else start + plan.block, length)
            inside = np.arange(end - start, dtype=np.int64)
            if plan.shuffle:
                key = np.array([(lane << 32) | number], dtype=np.int64)
                inside = rng.permutations(plan.seed, self.epoch, key, rng.Purpose.BLOCKS, end - start)[0]
            ids = self._sample_ids(lane_start + start + inside[place - start :])
            yield Block(lane=lane, step=place // plan.per_lane, ids=ids)
            place = end

    def lane_draws(self, lanes: range) -> NDArray[np.int64]:
        """Return how often some lanes draw from each shard, int64 `[S]`, without walking their blocks."""
        bounds = self._before(self.plan.lane_starts[[lanes.start, lanes.stop]])
        draws = (tape.shard_draws(*ends) for tape, ends in zip(self._tapes, bounds.tolist(), strict=True))
        return np.sum(list(draws), axis=0)

    def _sample_ids(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return what lies at places of the tape."""
        if len(self._tapes) == 1:
            return self._tapes[0].sample_ids(places)
        before = self._before(places)
        pool_of = np.argmax(self._before(places + 1) - before, axis=0)
        ids = np.empty_like(places)
        for pool, tape in enumerate(self._tapes):
            here = np.flatnonzero(pool_of == pool)
            ids[here] = tape.sample_ids(before[pool, here])
        return ids

    def _before(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many draws of each pool come before places of the tape: int64 `[K, n]`."""
        pools = self.plan.pools
        return places[None] if pools is None or len(pools.draws) == 1 else pools.before(places)


@lru_cache(maxsize=4)
def _epoch_plan(plan: Plan, epoch: int) -> EpochPlan:
    return EpochPlan(plan, epoch)


def _nearest_multiple(value: int, of: int) -> int:
    return max(of, round(value / of) * of)


def _divisors(value: int) -> str:
    return ", ".join(str(i) for i in range(1, value + 1) if value % i == 0)
