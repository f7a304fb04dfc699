"""Predicts pictures a second, the wait for data and lost work for 1 to 4,096 workers, and says what limits them.

A simulation of synchronous training, an event a step: each worker's loaders fill a queue of batches, at the pace of
decoding and of its share of S3; a step begins on a worker when its batch is there, and ends for all when the slowest
has computed and the gradients have gone round. Machines fail independently; the run then starts again from the last
checkpoint. Steps and fetches vary as log-normal draws do.

    python -m benchmarks.scale                              # with the figures below
    python -m benchmarks.scale --set step_seconds=0.11 --set s3_total_mb=4000
    python -m benchmarks.scale --run ~/.hmtl_dist/runs/NAME # step time and its spread from a run with one worker
    python -m benchmarks.scale_fit --save world.json        # measures it here, and how far a prediction is off
    python -m benchmarks.scale --world world.json --set s3_total_mb=5000 --set mtbf_hours=2000  # S3 for many, failures
    python -m benchmarks.scale --run ONE --against TWO --against-workers 2  # how far the prediction is from another run

What limits a size is found by taking one thing away at a time: the one without which most would be gained.
"""

import argparse
import json
import math
import statistics
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

SIZES = tuple(2**power for power in range(13))
STEPS = 400
WARM_UP = 20
MAX_DRAWS = 1 << 20
"""Draws of a simulation in one block: memory stays small for thousands of workers."""


@dataclass(frozen=True)
class World:
    """What the simulation knows; seconds, megabytes (10^6) and hours. The defaults are guesses: measure your own."""

    batch_per_worker: int = 64
    step_seconds: float = 0.25
    """Forward, backward and optimizer of one worker."""
    step_spread: float = 0.05
    """Standard deviation over mean of a step's time on one worker."""
    picture_mb: float = 0.02
    decode_per_second: float = 1500.0
    """Pictures a second that the loaders of one worker decode and transform."""
    s3_worker_mb: float = 200.0
    """Megabytes a second that one worker can take."""
    s3_total_mb: float = 5000.0
    """Megabytes a second that S3 gives to all together."""
    s3_transfer_spread: float = 0.3
    """Standard deviation over mean of the time that a fetch's bytes take."""
    s3_latency: float = 0.03
    """Seconds to the first byte of a fetch."""
    s3_spread: float = 1.0
    """Standard deviation over mean of that."""
    in_flight: int = 4
    """Fetches of one worker at a time."""
    pictures_per_fetch: float = 32.0
    """Samples that lie side by side in a shard come in one."""
    prefetch_batches: int = 4
    gradient_mb: float = 21.0
    """Of all parameters in float32: 5.3 million for EfficientNet-B0."""
    network_mb: float = 1000.0
    """Megabytes a second between two machines."""
    network_latency: float = 0.0005
    """Seconds of one hop of the all-reduce."""
    mtbf_hours: float = 2000.0
    """Hours between two failures of one machine."""
    workers_per_machine: int = 1
    cores_per_machine: float = math.inf
    cpu_seconds: float = 0.0
    """Processor seconds of one worker's step, its loaders' included: the workers of a machine share its cores."""
    crowding: float = 1.0
    """Factor of a step's time where all workers of a machine compute: they share caches, memory and clock."""
    restart_seconds: float = 90.0
    """From a failure to the next step: noticing, another machine, starting the workers."""
    checkpoint_minutes: float = 10.0
    checkpoint_seconds: float = 0.5
    """Seconds that a checkpoint keeps the loop: the rest of it happens beside."""


@dataclass(frozen=True)
class Prediction:
    """What a run with so many workers comes to."""

    workers: int
    images_per_second: float
    """In the long run, failures and checkpoints included."""
    wait_share: float
    """Share of the time of steps in which the slowest worker waited for data."""
    lost_share: float
    """Share of the wall time that failures cost: work done again, and starts."""
    limit: str = ""
    """What costs most against as many perfect workers."""


Row = NDArray[np.float64]


def simulate(world: World, workers: int, seed: int = 0, steps: int = STEPS) -> Prediction:
    """Run the steps and return what they come to."""
    rng = np.random.default_rng(seed)
    depth = world.prefetch_batches
    taken = np.zeros((depth, workers))  # when the batch that had this place in the queue was taken out of it
    made = np.zeros(workers)  # when the newest batch of each worker was there
    now = begin = waited = 0.0
    block = max(1, MAX_DRAWS // workers)
    slower = _crowding(world, workers)
    crowded = min(workers, world.workers_per_machine) * slower * world.cpu_seconds / world.cores_per_machine
    for first in range(0, steps, block):
        size = min(block, steps - first)
        compute = _draws(rng, slower * world.step_seconds, world.step_spread, (size, workers))
        transfer = _draws(rng, _transfer(world, workers), _of_sum(world, world.s3_transfer_spread), (size, workers))
        fetch = transfer + _draws(rng, _latency(world), _of_sum(world, world.s3_spread), (size, workers))
        produce = np.maximum(fetch, world.batch_per_worker / world.decode_per_second)
        for number in range(size):
            step = first + number
            if step == WARM_UP:
                begin, waited = now, 0.0
            made = np.maximum(made, taken[step % depth]) + produce[number]
            start = np.maximum(made, now)
            taken[step % depth] = start
            ends = start + compute[number]
            slowest = int(ends.argmax())
            waited += float(start[slowest]) - now
            now = max(float(ends[slowest]) + _all_reduce(world, workers), now + crowded)
    seconds = (now - begin) / (steps - WARM_UP)
    lost = lost_share(world, workers)
    pace = 1 / (1 + world.checkpoint_seconds / (60 * world.checkpoint_minutes))
    rate = workers * world.batch_per_worker / seconds * pace * (1 - lost)
    return Prediction(workers, rate, waited / (now - begin), lost)


def lost_share(world: World, workers: int) -> float:
    """Return the share of the wall time that failures cost.

    With exponential failures of rate r, a stretch of s seconds between checkpoints takes (e^(rs) - 1) (1/r + R) on
    average, R being the time to start again, during which nothing fails (Daly 2006).
    """
    rate = math.ceil(workers / world.workers_per_machine) / (3600 * world.mtbf_hours)
    stretch = 60 * world.checkpoint_minutes
    if rate == 0:
        return 0.0
    if rate * stretch > 500:
        return 1.0
    return 1 - stretch / (math.expm1(rate * stretch) * (1 / rate + world.restart_seconds))


def explain(world: World, workers: int, seed: int = 0) -> Prediction:
    """Predict, and say what limits it: what would gain most if it cost nothing."""
    found = simulate(world, workers, seed)
    without = {
        "S3's bandwidth": replace(world, s3_total_mb=math.inf, s3_worker_mb=math.inf),
        "S3's latency": replace(world, s3_latency=0.0),
        "decoding": replace(world, decode_per_second=math.inf),
        "cores of a machine": replace(world, cores_per_machine=math.inf, crowding=1.0),
        "the slowest worker": replace(world, step_spread=0.0),
        "all-reduce": replace(world, gradient_mb=0.0, network_latency=0.0),
        "failures": replace(world, mtbf_hours=math.inf),
        "checkpoints": replace(world, checkpoint_seconds=0.0),
    }
    gains = {
        name: simulate(other, workers, seed).images_per_second / max(found.images_per_second, 1e-9)
        for name, other in without.items()
    }
    name, gain = max(gains.items(), key=lambda one: one[1])
    return replace(found, limit=f"{name} (x {gain:.2f} without)" if gain > 1.02 else "computing")


def _crowding(world: World, workers: int) -> float:
    """Factor of a step's time by how many workers of a machine compute: 1 for one, `crowding` for all of them."""
    if world.workers_per_machine == 1:
        return 1.0
    others = min(workers, world.workers_per_machine) - 1
    return 1 + (world.crowding - 1) * others / (world.workers_per_machine - 1)


def _transfer(world: World, workers: int) -> float:
    """Seconds of transfer for a batch of one worker, while all of them fetch."""
    bandwidth = min(world.s3_worker_mb, world.s3_total_mb / workers)
    return world.batch_per_worker * world.picture_mb / bandwidth


def _latency(world: World) -> float:
    """Seconds to first bytes for a batch: several fetches at a time."""
    return world.s3_latency * math.ceil(world.batch_per_worker / world.pictures_per_fetch / world.in_flight)


def _of_sum(world: World, spread: float) -> float:
    """Return the spread of the sum of a batch's fetches, by that of one: it falls with their number."""
    return spread / math.sqrt(max(1.0, world.batch_per_worker / world.pictures_per_fetch))


def _all_reduce(world: World, workers: int) -> float:
    """Seconds of a ring: every byte passes nearly twice, over 2 (W - 1) hops, whose latency a tree keeps to the log."""
    if workers == 1:
        return 0.0
    volume = 2 * (workers - 1) / workers * world.gradient_mb / world.network_mb
    return volume + 2 * math.log2(workers) * world.network_latency


def _draws(rng: np.random.Generator, mean: float, spread: float, shape: tuple[int, int]) -> Row:
    """Draw log-normal values of a mean and a relative standard deviation."""
    if mean == 0 or spread == 0:
        return np.full(shape, mean)
    sigma = math.sqrt(math.log1p(spread**2))
    return rng.lognormal(math.log(mean) - sigma**2 / 2, sigma, shape)


# --- measured runs -----------------------------------------------------------------------------------------------


def windows(run: Path) -> list[tuple[float, float]]:
    """Return pictures a second and wait share of a run's windows, without the first, from its first rank's journal."""
    found: list[tuple[float, float]] = []
    for line in (run / "rank-0" / "journal.jsonl").read_text().splitlines():
        values = cast("dict[str, Any]", json.loads(line)).get("values", {})
        if "train/samples_per_second" in values:
            found.append((values["train/samples_per_second"], values["train/wait_share"]))
    if len(found) < 3:
        raise SystemExit(f"error: {run} has {len(found)} windows of steps, at least 3 are needed")
    return found[1:]


def fitted(world: World, run: Path, batch: int) -> World:
    """Take a step's time and spread from a run with one worker, which tells computing from waiting."""
    steps = [batch / rate * (1 - waited) for rate, waited in windows(run)]
    return replace(
        world,
        batch_per_worker=batch,
        step_seconds=statistics.mean(steps),
        step_spread=statistics.stdev(steps) / statistics.mean(steps),
    )


def read_world(file: Path) -> World:
    """Read a world as `scale_fit` writes it."""
    try:
        return World(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise SystemExit(f"error: {file} holds no world ({error})") from error


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, help="a world that `scale_fit --save` has measured; guesses if not given")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a figure of the world")
    parser.add_argument("--run", type=Path, help="folder of a measured run with one worker")
    parser.add_argument("--batch-per-worker", type=int, default=None, help="of that run; the world's if empty")
    parser.add_argument("--against", type=Path, help="folder of a measured run to compare the prediction with")
    parser.add_argument("--against-workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    world = read_world(arguments.world) if arguments.world else World()
    types: dict[str, Any] = {one.name: type(getattr(World(), one.name)) for one in fields(World)}
    for text in arguments.set:
        name, _, value = str(text).partition("=")
        if name not in types:
            parser.error(f"--set: given '{name}', allowed {', '.join(types)}")
        world = replace(world, **{name: types[name](value)})
    if arguments.run:
        world = fitted(world, arguments.run, arguments.batch_per_worker or world.batch_per_worker)
    if arguments.against:
        # windows of equally many steps: their times add up
        measured = statistics.harmonic_mean([rate for rate, _ in windows(arguments.against)])
        found = simulate(replace(world, mtbf_hours=math.inf), arguments.against_workers, arguments.seed)
        off = found.images_per_second / measured - 1
        print(f"{found.workers} workers: predicted {found.images_per_second:.1f}, measured {measured:.1f}, {off:+.1%}")
    alone = 0.0
    print(f"{'workers':>7}  {'img/s':>12}  {'of ideal':>8}  {'data wait':>9}  {'lost':>6}  limited by")
    for workers in SIZES:
        found = explain(world, workers, arguments.seed)
        alone = alone or found.images_per_second
        share = found.images_per_second / (alone * workers)
        print(
            f"{workers:>7}  {found.images_per_second:>12,.0f}  {share:>8.1%}  {found.wait_share:>9.1%}  "
            f"{found.lost_share:>6.1%}  {found.limit}"
        )


if __name__ == "__main__":
    main()
