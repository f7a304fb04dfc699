"""The plan: exactly once, the same for every world size, resumable anywhere, and small."""

import hashlib
import subprocess
import sys
import textwrap
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hmtl_dist.data.stream.plan import PADDING, EpochPlan, Plan
from hmtl_dist.data.stream.tape import Pools
from hmtl_dist.errors import UserError


@st.composite
def pools_of(draw: st.DrawFn, sizes: list[int]) -> Pools:
    """Up to three pools: whole shards, or samples of any shard, some in none."""
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    whole_shards = draw(st.booleans())
    choices = np.array(draw(st.lists(st.integers(0, 3), min_size=sum(sizes), max_size=sum(sizes))))
    chosen = choices[shard_of] if whole_shards else choices
    known = np.unique(chosen)[: draw(st.integers(1, 3))]
    pool_of = np.full(len(chosen), len(known), dtype=np.uint8)
    for pool, choice in enumerate(known):
        pool_of[chosen == choice] = pool
    counts = np.stack([np.bincount(shard_of[pool_of == pool], minlength=len(sizes)) for pool in range(len(known))])
    draws = tuple(draw(st.integers(1, 99)) for _ in known)
    return Pools(draws, counts, None if whole_shards else pool_of)


@st.composite
def plans(draw: st.DrawFn, *, shuffle: bool | None = None, pooled: bool = False) -> Plan:
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any))
    lanes = draw(st.sampled_from([1, 2, 3, 4, 8, 12]))
    shuffled = draw(st.booleans()) if shuffle is None else shuffle
    drawn = draw(pools_of(sizes)) if pooled else None
    num_draws = sum(drawn.draws) if drawn else sum(sizes)
    if shuffled:
        while lanes > num_draws:
            lanes = lanes // 2 or 1
    most = max(1, num_draws // lanes) if shuffled else 10
    return Plan(
        np.array(sizes),
        batch_size=lanes * draw(st.integers(1, most)),
        lanes=lanes,
        seed=draw(st.integers(0, 2**64 - 1)),
        shuffle=shuffled,
        block=draw(st.integers(1, 50)),
        pools=drawn,
    )


def whole(epoch: EpochPlan, start: int = 0) -> NDArray[np.int64]:
    steps = epoch.plan.steps_per_epoch
    return np.stack([epoch.batch_ids(step) for step in range(start, steps)] or [np.zeros(0, dtype=np.int64)])


def read_by_rank(epoch: EpochPlan, rank: int, world_size: int, start: int) -> NDArray[np.int64]:
    """Return `[steps, B/W]` ids as a rank's reader meets them: lane by lane, block by block."""
    plan = epoch.plan
    steps = plan.steps_per_epoch - start
    lanes: list[NDArray[np.int64]] = []
    for lane in plan.rank_lanes(rank, world_size):
        ids = np.concatenate([np.zeros(0, np.int64), *(block.ids for block in epoch.lane_blocks(lane, start))])
        padded = np.full(steps * plan.per_lane, PADDING, dtype=np.int64)
        padded[: len(ids)] = ids
        lanes.append(padded.reshape(steps, plan.per_lane))
    return np.concatenate(lanes, axis=1)


@given(plans(shuffle=True), st.integers(0, 5))
def test_a_shuffled_epoch_sees_every_planned_sample_exactly_once(plan: Plan, epoch: int) -> None:
    ids = whole(plan.epoch(epoch)).reshape(-1)
    assert len(np.unique(ids)) == len(ids) == plan.num_samples - plan.leftover
    assert ids.min() >= 0
    assert ids.max() < plan.num_samples
    assert plan.leftover == plan.num_samples % plan.batch_size


@given(plans(shuffle=False))
def test_evaluation_sees_every_sample_once_and_pads_only_the_end_of_the_last_batch(plan: Plan) -> None:
    batches = whole(plan.epoch(0))
    seen = batches[batches != PADDING]
    assert np.array_equal(np.sort(seen), np.arange(plan.num_samples))
    assert (batches[:-1] != PADDING).all()
    padded = batches[-1] == PADDING
    assert padded.sum() == plan.padding == plan.steps_per_epoch * plan.batch_size - plan.num_samples < plan.batch_size
    assert (np.diff(padded.astype(int)) >= 0).all()


@given(plans() | plans(pooled=True), st.integers(0, 3), st.data())
def test_ranks_of_every_world_size_read_together_the_global_batches_from_any_step(
    plan: Plan, epoch: int, data: st.DataObject
) -> None:
    world_size = data.draw(st.sampled_from([w for w in range(1, plan.lanes + 1) if plan.lanes % w == 0]))
    start = data.draw(st.integers(0, plan.steps_per_epoch))
    order = plan.epoch(epoch)
    together = [read_by_rank(order, rank, world_size, start) for rank in range(world_size)]
    expected = whole(order, start) if start < plan.steps_per_epoch else np.zeros((0, plan.batch_size), dtype=np.int64)
    assert np.array_equal(np.concatenate(together, axis=1), expected)


@given(plans(shuffle=True, pooled=True), st.integers(0, 5))
def test_an_epoch_of_pools_draws_each_sample_of_a_pool_equally_often_or_once_more(plan: Plan, epoch: int) -> None:
    pools = plan.pools
    assert pools is not None
    times = np.bincount(whole(plan.epoch(epoch)).reshape(-1), minlength=plan.num_samples)
    planned = plan.num_draws - plan.leftover
    assert times.sum() == planned
    drawn = pools.before(np.array([planned]))[:, 0]
    shard_of = np.repeat(np.arange(len(plan.shard_sizes)), plan.shard_sizes)
    for pool, (number, draws) in enumerate(zip(drawn.tolist(), pools.draws, strict=True)):
        inside = pools.counts[pool, shard_of] > 0 if pools.pool_of is None else pools.pool_of == pool
        assert times[inside].sum() == number
        assert set(times[inside]) <= {number // inside.sum(), number // inside.sum() + 1}
        assert abs(number - draws * planned / plan.num_draws) < len(pools.draws)
        times[inside] = 0
    assert not times.any()


@given(st.lists(st.integers(1, 10**8), min_size=1, max_size=12), st.data())
def test_pools_alternate_evenly_over_any_stretch_of_an_epoch(draws: list[int], data: st.DataObject) -> None:
    pools = Pools(tuple(draws), np.ones((len(draws), 1), dtype=np.int64))
    start = data.draw(st.integers(0, sum(draws)))
    end = data.draw(st.integers(start, sum(draws)))
    before = pools.before(np.array([0, start, end, sum(draws)]))
    assert before[:, 0].tolist() == [0] * len(draws)
    assert before[:, 3].tolist() == draws
    stretch = before[:, 2] - before[:, 1]
    assert stretch.sum() == end - start
    assert (np.abs(stretch - np.array(draws) * ((end - start) / sum(draws))) < len(draws) + 1e-6).all()
    steps = np.diff(pools.before(np.arange(start, min(end, start + 200) + 1)), axis=1)
    assert ((steps == 0) | (steps == 1)).all()
    assert (steps.sum(axis=0) == 1).all()


@given(plans(shuffle=True) | plans(shuffle=True, pooled=True), st.data())
def test_what_lanes_draw_of_each_shard_is_known_without_walking_them(plan: Plan, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, plan.lanes - 1))
    lanes = range(first, data.draw(st.integers(first, plan.lanes)))
    order = plan.epoch(2)
    ids = [block.ids for lane in lanes for block in order.lane_blocks(lane, 0)]
    shards = plan.locate(np.concatenate([np.zeros(0, dtype=np.int64), *ids]))[0]
    assert np.array_equal(order.lane_draws(lanes), np.bincount(shards, minlength=len(plan.shard_sizes)))


@pytest.mark.parametrize(
    ("shuffle", "digest"),
    [
        (True, "f759dbac7ba66b8cb7ac016be142e7c21f0534afd4c713115df9596e5f956bfd"),
        (False, "8ad6492970f7997d3224a5d3916f057819c30eaf77ac6d96502ebe9af9e030bc"),
    ],
)
def test_the_order_of_a_whole_set_never_changes(shuffle: bool, digest: str) -> None:
    """Runs that have begun go on: another order would be another run."""
    plan = Plan(np.array([30, 0, 1, 45, 24, 60, 0]), batch_size=24, lanes=6, seed=2**40 + 7, shuffle=shuffle, block=16)
    order = hashlib.sha256(b"".join(whole(plan.epoch(epoch)).astype("<i8").tobytes() for epoch in range(3)))
    assert order.hexdigest() == digest


@given(plans() | plans(pooled=True), st.data())
def test_blocks_come_in_the_order_of_the_steps_that_need_them(plan: Plan, data: st.DataObject) -> None:
    lane = data.draw(st.integers(0, plan.lanes - 1))
    start = data.draw(st.integers(0, plan.steps_per_epoch - 1))
    place = start * plan.per_lane
    for block in plan.epoch(1).lane_blocks(lane, start):
        assert block.step == place // plan.per_lane
        assert 0 < len(block.ids) <= plan.block
        place += len(block.ids)


@given(plans())
def test_located_samples_lie_in_their_shard(plan: Plan) -> None:
    ids = np.arange(plan.num_samples)
    shards, rows = plan.locate(ids)
    assert (rows >= 0).all()
    assert (rows < plan.shard_sizes[shards]).all()
    assert np.array_equal(plan.sample_offsets[shards] + rows, ids)


@pytest.mark.parametrize("sizes", [[1000], [100] * 10, [1] * 1000])
def test_what_is_left_over_differs_from_epoch_to_epoch(sizes: list[int]) -> None:
    plan = Plan(np.array(sizes), batch_size=96, lanes=4, seed=0, shuffle=True, block=64)
    left = [frozenset(range(1000)) - set(whole(plan.epoch(e)).reshape(-1).tolist()) for e in range(4)]
    assert len(set(left)) == 4


def test_the_order_depends_on_the_seed_and_the_epoch() -> None:
    def order(seed: int, epoch: int) -> NDArray[np.int64]:
        plan = Plan(np.full(20, 50), batch_size=40, lanes=4, seed=seed, shuffle=True, block=100)
        return whole(plan.epoch(epoch))

    assert np.array_equal(order(1, 0), order(1, 0))
    assert not np.array_equal(order(1, 0), order(1, 1))
    assert not np.array_equal(order(1, 0), order(2, 0))


def test_a_batch_mixes_samples_of_many_shards() -> None:
    plan = Plan(np.full(32, 64), batch_size=64, lanes=8, seed=0, shuffle=True, block=128)
    shards = [len(np.unique(plan.locate(batch)[0])) for batch in whole(plan.epoch(0))]
    assert min(shards) >= 8


def test_evaluation_lanes_read_the_index_in_order() -> None:
    plan = Plan(np.array([3, 4]), batch_size=4, lanes=2, seed=0, shuffle=False, block=2)
    assert whole(plan.epoch(0)).tolist() == [[0, 1, 4, 5], [2, 3, 6, PADDING]]


def test_lanes_do_not_change_blocks_at_the_same_step() -> None:
    plan = Plan(np.array([8000]), batch_size=8, lanes=8, seed=0, shuffle=True, block=80)
    changes = [{block.step for block in plan.epoch(0).lane_blocks(lane, 0)} - {0} for lane in range(8)]
    assert all(not first & second for first, second in pairwise(changes))


def test_lanes_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.batch_size=30 is not a multiple of data\.lanes=8"):
        Plan(np.array([100]), batch_size=30, lanes=8, seed=0, shuffle=True, block=10)


def test_ranks_that_do_not_divide_the_lanes_are_refused() -> None:
    plan = Plan(np.array([100]), batch_size=16, lanes=8, seed=0, shuffle=True, block=10)
    with pytest.raises(UserError, match=r"launch\.num_workers=3 does not divide data\.lanes=8: .*1, 2, 4, 8"):
        plan.rank_lanes(0, 3)


def test_a_batch_larger_than_the_set_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.batch_size=64 is larger than the data set of 50 samples.* 48 or below"):
        Plan(np.array([50]), batch_size=64, lanes=8, seed=0, shuffle=True, block=10)


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(UserError, match="holds no samples"):
        Plan(np.array([0, 0]), batch_size=8, lanes=8, seed=0, shuffle=False, block=10)


def test_a_billion_samples_in_a_million_shards_are_planned_in_3_seconds_and_300_mb() -> None:
    program = """
        import re, time
        from pathlib import Path
        import numpy as np
        from hmtl_dist.data.stream.plan import Plan
        def peak():  # VmHWM, because ru_maxrss also counts the process that started this one
            return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
        begun, before = time.perf_counter(), peak()
        plan = Plan(np.full(1_000_000, 1_000), batch_size=4096, lanes=64, seed=1, shuffle=True, block=8192)
        epoch = plan.epoch(3)
        for step in (0, 123_456, plan.steps_per_epoch - 1):
            epoch.batch_ids(step)
        epoch.lane_draws(range(32))
        print(time.perf_counter() - begun, (peak() - before) / 1024)
    """
    output = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=True, capture_output=True, text=True
    )
    seconds, megabytes = map(float, output.stdout.split())
    assert seconds < 3
    assert megabytes < 300
