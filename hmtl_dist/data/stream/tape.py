"""What lies at each place of an epoch's tape: samples of one *pool*, or of several that alternate evenly.

A pool is what an epoch draws a fixed number of times from: a set of a mix, a class that is balanced, the chosen part of
a set. Its samples lie end to end on a tape of its own, in a drawn order of the shards and from a drawn starting point;
it goes round as often as its draws need, so each of its samples is drawn `draws // size` times or once more.

Shape legend: K pools, S shards, N samples, n places.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl_dist import rng
from hmtl_dist.errors import UserError

MAX_MIXED_DRAWS = 1 << 31
"""Draws of an epoch of several pools: their products must fit into 64 bits."""


@dataclass(frozen=True, eq=False)
class Pools:
    """Which samples an epoch draws, and how often.

    Costs 8 bytes a shard and pool, and one or two a sample where pools share shards.

    Raises:
        UserError: no pool is drawn from, a pool that is drawn from is empty, or there are too many draws.
    """

    draws: tuple[int, ...]
    """Draws of each pool in an epoch, above 0 [K]."""
    counts: NDArray[np.int64]
    """Samples of each pool in each shard [K, S]."""
    pool_of: NDArray[np.unsignedinteger[Any]] | None = None
    """Pool of each sample, K or more for none [N]; None when the samples of a shard are all in one pool or in none."""

    def __post_init__(self) -> None:
        if not self.draws or min(self.draws) < 1 or not self.counts.any(axis=1).all():
            raise UserError("nothing to draw: the part of the data set that was asked for holds no samples")
        if len(self.draws) > 1 and sum(self.draws) > MAX_MIXED_DRAWS:
            raise UserError(
                f"an epoch of {sum(self.draws):,} draws is too long for mixing or balancing: at most "
                f"{MAX_MIXED_DRAWS:,} are possible; lower the ratios in data.mix"
            )

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Samples of each pool [K]."""
        return self.counts.sum(axis=1)

    def rows(self, pool: int, samples: slice, nth: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which rows of a shard the nth samples of a pool in it are.

        Args:
            pool: the pool.
            samples: global ids of the shard's samples.
            nth: int64 `[n]`, counted from 0.
        """
        if self.pool_of is None:
            return nth
        return np.flatnonzero(self.pool_of[samples] == pool)[nth]

    def before(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many draws of each pool come before places of the epoch's tape: int64 `[K, n]`.

        The first pool is spread evenly over the tape (Bresenham's line), the second over what the first leaves, and so
        on: over any stretch a pool has its share of the places, give or take fewer than K. Found without walking.
        """
        counts = np.empty((len(self.draws), len(places)), dtype=np.int64)
        total, rest = sum(self.draws), places
        for pool, draws in enumerate(self.draws):
            counts[pool] = (rest * draws + total // 2) // total
            rest = rest - counts[pool]
            total -= draws
        return counts


class Tape:
    """The samples of one pool in one epoch, laid end to end; goes round without end.

    Args:
        offsets: global id of the first sample of each shard, and the number of samples, int64 `[S + 1]`.
        sizes: samples of the pool in each shard, int64 `[S]`.
        shards: shards to lay out, int64.
        draw: seed, epoch and pool, which decide order and starting point; None keeps the order of the index.
        pools: all pools, of which `pool` is this one; None when a pool holds whole shards.
    """

    def __init__(
        self,
        offsets: NDArray[np.int64],
        sizes: NDArray[np.int64],
        shards: NDArray[np.int64],
        draw: tuple[int, int, int] | None,
        pools: Pools | None,
        pool: int,
    ) -> None:
        self._offsets = offsets
        self._sizes = sizes
        self._pools = pools
        self._pool = pool
        self._order = shards
        self._rotation = 0
        if draw is not None:
            seed, epoch, key = draw
            position = np.array([key], dtype=np.int64)
            self._order = shards[rng.permutations(seed, epoch, position, rng.Purpose.SHARDS, len(shards))[0]]
            words = rng.draws(seed, epoch, position, rng.Purpose.ROTATION, 2)[0]
            # A rotated tape leaves other samples over in every epoch, even if there is only one shard.
            self._rotation = ((int(words[0]) << 32) | int(words[1])) % int(sizes.sum())
        self._ends = np.cumsum(sizes[self._order])
        self.size = int(self._ends[-1])
        """Samples of the pool."""

    def sample_ids(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the global ids of the samples at places of the tape, int64 `[n]`."""
        places = (places + self._rotation) % self.size
        at = np.searchsorted(self._ends, places, side="right")
        shards = self._order[at]
        # Counted from the end of the shard on the tape: one cumulative table is enough.
        nth = self._sizes[shards] - (self._ends[at] - places)
        if self._pools is not None and self._pools.pool_of is not None:
            for shard in np.unique(shards).tolist():
                here = np.flatnonzero(shards == shard)
                samples = slice(int(self._offsets[shard]), int(self._offsets[shard + 1]))
                nth[here] = self._pools.rows(self._pool, samples, nth[here])
        return self._offsets[shards] + nth

    def shard_draws(self, start: int, end: int) -> NDArray[np.int64]:
        """Return how often the places from `start` to `end` fall into each shard, int64 `[S]`."""
        laps, rest = divmod(end - start, self.size)
        first = (start + self._rotation) % self.size
        sizes = self._sizes[self._order]
        begins = self._ends - sizes
        drawn = sizes * laps
        for low, high in ((first, min(first + rest, self.size)), (0, first + rest - self.size)):
            drawn += np.clip(np.minimum(self._ends, high) - np.maximum(begins, low), 0, None)
        counts = np.zeros(len(self._sizes), dtype=np.int64)
        counts[self._order] = drawn
        return counts
