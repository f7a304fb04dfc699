"""The simulation of large clusters agrees with arithmetic where arithmetic can say it."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import scale_fit
from benchmarks.scale import World, explain, fitted, lost_share, read_world, simulate

PERFECT = World(
    step_spread=0.0,
    decode_per_second=math.inf,
    s3_worker_mb=math.inf,
    s3_total_mb=math.inf,
    s3_latency=0.0,
    s3_transfer_spread=0.0,
    gradient_mb=0.0,
    network_latency=0.0,
    mtbf_hours=math.inf,
    checkpoint_seconds=0.0,
)
"""Nothing costs anything but computing: 64 pictures in 0.25 s."""


@pytest.mark.parametrize("workers", [1, 7, 4096])
def test_perfect_workers_add_up(workers: int) -> None:
    found = simulate(PERFECT, workers)
    assert found.images_per_second == pytest.approx(256.0 * workers)
    assert (found.wait_share, found.lost_share) == (pytest.approx(0.0, abs=1e-9), 0.0)


def test_bandwidth_of_s3_is_a_ceiling_which_is_named() -> None:
    world = replace(PERFECT, s3_total_mb=1000.0)  # of pictures of 0.02 MB: 50,000 a second
    assert simulate(world, 128).images_per_second == pytest.approx(128 * 256)
    found = explain(world, 1024)
    assert found.images_per_second == pytest.approx(50_000, rel=0.01)
    assert found.limit.startswith("S3's bandwidth")
    assert found.wait_share == pytest.approx(1 - 50_000 / (1024 * 256), abs=0.01)


def test_decoding_limits_each_worker_alike() -> None:
    found = explain(replace(PERFECT, decode_per_second=100.0), 16)
    assert found.images_per_second == pytest.approx(1600.0, rel=0.01)
    assert found.limit.startswith("decoding")


def test_workers_of_a_machine_share_its_cores() -> None:
    """A step of 0.25 s with 0.2 s of loading beside it: two workers need 0.9 s of two cores."""
    world = replace(PERFECT, workers_per_machine=2, cores_per_machine=2, cpu_seconds=0.45)
    assert simulate(world, 1).images_per_second == pytest.approx(256)
    found = explain(world, 2)
    assert found.images_per_second == pytest.approx(2 * 64 / 0.45)
    assert found.limit.startswith("cores of a machine")


def test_neighbours_slow_a_worker_down() -> None:
    world = replace(PERFECT, workers_per_machine=3, crowding=1.5)
    rates = [simulate(world, workers).images_per_second / workers for workers in (1, 2, 3, 6)]
    assert rates == pytest.approx([256, 256 / 1.25, 256 / 1.5, 256 / 1.5])
    assert explain(world, 3).limit.startswith("cores of a machine")


def test_all_wait_for_the_slowest() -> None:
    """The mean of the greatest of W normal draws lies some 2.5 (W = 100) deviations above their mean."""
    found = explain(replace(PERFECT, step_spread=0.02), 100)
    assert found.images_per_second == pytest.approx(100 * 256 / (1 + 2.508 * 0.02), rel=0.005)
    assert found.limit.startswith("the slowest worker")


def test_all_reduce_passes_every_byte_nearly_twice() -> None:
    world = replace(PERFECT, gradient_mb=100.0, network_mb=1000.0)
    assert simulate(world, 2).images_per_second == pytest.approx(2 * 64 / (0.25 + 0.1))
    assert simulate(world, 4096).images_per_second == pytest.approx(4096 * 64 / (0.25 + 0.2), rel=1e-3)


def test_deeper_queue_hides_slow_fetches() -> None:
    jittery = replace(PERFECT, s3_latency=0.1, s3_spread=1.5, in_flight=4)
    assert simulate(jittery, 1).wait_share < simulate(replace(jittery, prefetch_batches=1), 1).wait_share


def test_rare_failures_cost_half_a_stretch_and_a_start() -> None:
    world = replace(PERFECT, mtbf_hours=1000.0, checkpoint_minutes=10.0, restart_seconds=60.0)
    assert lost_share(world, 10) == pytest.approx((300 + 60) * 10 / (1000 * 3600), rel=0.01)
    assert lost_share(world, 10_000_000) == pytest.approx(1.0)


def test_more_workers_than_failures_allow_are_named() -> None:
    assert explain(replace(PERFECT, mtbf_hours=200.0), 512).limit.startswith("failures")


def test_step_of_a_measured_run_is_told_from_its_waiting(tmp_path: Path) -> None:
    (tmp_path / "rank-0").mkdir()
    rates = [(10.0, 0.5), (100.0, 0.2), (100.0, 0.2), (100.0, 0.2)]  # the first window warms up
    lines = [
        json.dumps({"values": {"train/samples_per_second": rate, "train/wait_share": wait}}) for rate, wait in rates
    ]
    (tmp_path / "rank-0" / "journal.jsonl").write_text("\n".join(lines))
    world = fitted(PERFECT, tmp_path, batch=50)
    assert (world.batch_per_worker, world.step_spread) == (50, pytest.approx(0.0))
    assert world.step_seconds == pytest.approx(0.4)


def test_measured_worker_becomes_a_world_that_predicts_it() -> None:
    one = {"computes": [0.2, 0.2, 0.2], "cpu_seconds": 0.3, "gradient_mb": 20.0, "picture_mb": 0.01}
    one |= {
        "decode_per_second": 200.0,
        "s3_worker_mb": 100.0,
        "s3_latency": 0.001,
        "s3_spread": 0.5,
        "s3_transfer_spread": 0.2,
    }
    world = scale_fit.world_of(one, 16, bandwidth=1000.0, latency=0.001, cores=2)
    assert simulate(world, 1).images_per_second == pytest.approx(16 / 0.2)
    assert simulate(world, 2).images_per_second == pytest.approx(2 * 16 / 0.3)  # 0.6 s of processor on two cores


@pytest.mark.nightly
def test_all_reduce_is_really_timed() -> None:
    bandwidth, latency = scale_fit.network(8.0)
    assert 1 < bandwidth < 1e6
    assert 0 < latency < 1


def test_a_measured_world_is_kept_and_its_figures_may_be_set(tmp_path: Path) -> None:
    world = replace(PERFECT, cores_per_machine=2, mtbf_hours=math.inf)
    (tmp_path / "world.json").write_text(json.dumps(asdict(world)))
    assert read_world(tmp_path / "world.json") == world
    (tmp_path / "world.json").write_text('{"steps": 1}')
    with pytest.raises(SystemExit, match=r"world\.json holds no world"):
        read_world(tmp_path / "world.json")


def test_bandwidth_that_varies_costs_what_a_queue_does_not_hide() -> None:
    world = replace(PERFECT, s3_worker_mb=5.5, prefetch_batches=1)  # a batch of 1.28 MB takes 0.23 s of a step's 0.25
    assert simulate(replace(world, s3_transfer_spread=1.0), 1).wait_share > simulate(world, 1).wait_share + 0.02
