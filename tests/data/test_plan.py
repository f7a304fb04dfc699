"""The plan: exactly once, the same for every world size, resumable anywhere, and small."""

import subprocess
import sys
import textwrap
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hmtl_dist.data.plan import PADDING, EpochPlan, Plan
from hmtl_dist.errors import UserError


@st.composite
def plans(draw: st.DrawFn, *, shuffle: bool | None = None) -> Plan:
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any))
    lanes = draw(st.sampled_from([1, 2, 3, 4, 8, 12]))
    shuffled = draw(st.booleans()) if shuffle is None else shuffle
    if shuffled:
        while lanes > sum(sizes):
            lanes = lanes // 2 or 1
    most = max(1, sum(sizes) // lanes) if shuffled else 10
    return Plan(
        np.array(sizes),
        batch_size=lanes * draw(st.integers(1, most)),
        lanes=lanes,
        seed=draw(st.integers(0, 2**64 - 1)),
        shuffle=shuffled,
        block=draw(st.integers(1, 50)),
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


@given(plans(), st.integers(0, 3), st.data())
def test_ranks_of_every_world_size_read_together_the_global_batches_from_any_step(
    plan: Plan, epoch: int, data: st.DataObject
) -> None:
    world_size = data.draw(st.sampled_from([w for w in range(1, plan.lanes + 1) if plan.lanes % w == 0]))
    start = data.draw(st.integers(0, plan.steps_per_epoch))
    order = plan.epoch(epoch)
    together = [read_by_rank(order, rank, world_size, start) for rank in range(world_size)]
    expected = whole(order, start) if start < plan.steps_per_epoch else np.zeros((0, plan.batch_size), dtype=np.int64)
    assert np.array_equal(np.concatenate(together, axis=1), expected)


@given(plans(), st.data())
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
        import resource, time
        import numpy as np
        from hmtl_dist.data.plan import Plan
        begun = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        plan = Plan(np.full(1_000_000, 1_000), batch_size=4096, lanes=64, seed=1, shuffle=True, block=8192)
        epoch = plan.epoch(3)
        for step in (0, 123_456, plan.steps_per_epoch - 1):
            epoch.batch_ids(step)
        print(time.perf_counter() - begun, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
    """
    output = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=True, capture_output=True, text=True
    )
    seconds, megabytes = map(float, output.stdout.split())
    assert seconds < 3
    assert megabytes < 300
