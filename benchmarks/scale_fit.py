"""Fits the simulation of large clusters on a real run of one worker, and holds its prediction of two against another.

    python -m benchmarks.scale_fit                 # some five minutes on two cores that nobody else uses

Both runs are the real loop over a real S3 server on this machine, each worker with the same share of a batch. From the
run of one worker come a step's time and its spread, the processor seconds of a step (its loaders' and the S3 server's
included: they share this machine's cores), what its loaders give without a trainer, latency and bandwidth of S3. The
all-reduce is timed between two processes that do nothing else. Cores that all compute are slower than one that does:
they share caches, memory and clock. By how much, two bare models tell that know nothing of each other. Nothing of the
run of two workers goes into the fit.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.ranks import run_ranks
from benchmarks.scale import World, simulate
from hmtl_dist.data.dataset.index import ShardIndex, open_index
from hmtl_dist.model.backbone import import_timm
from hmtl_dist.train.loop import RankBatch, Run, train
from hmtl_dist.train.worker import Trainer

WARM_UP_STEPS = 5
LOADED_STEPS = 20
"""Batches that the loaders alone are timed with."""
REQUESTS = 60
SHARD_ROUNDS = 3
"""How often every shard is read."""
CROWDED_STEPS = 8
CROWDED_ROUNDS = 5
SMALL_COLLECTIVES = 3
"""All-reduces of a few numbers in a step: counts of the losses, flags, statistics of BatchNorm."""


def measure(steps: int, trainer: Trainer, run: Run) -> dict[str, Any]:
    """Train some steps and time each; on one rank, time its parts too."""
    waits: list[float] = []
    computes: list[float] = []
    marks: list[tuple[float, float]] = []

    def timed(batches: Iterator[RankBatch]) -> Iterator[RankBatch]:
        for number in range(steps):
            if number in (WARM_UP_STEPS, steps - 1):
                marks.append((time.perf_counter(), _cpu_seconds()))
            begun = time.perf_counter()
            batch = next(batches)
            waits.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            yield batch
            computes.append(time.perf_counter() - begun)

    def no_evaluation(step: int, known: Mapping[str, float]) -> Mapping[str, float]:
        return known

    def no_checkpoint(step: int, metrics: Mapping[str, float]) -> None:
        return None

    schedule = replace(run.schedule, total_steps=trainer.engine.global_step + steps)
    train(replace(run, batches=timed(iter(run.batches)), schedule=schedule, evaluate=no_evaluation, save=no_checkpoint))
    (begun, cpu_before), (ended, cpu_after) = marks
    counted = steps - 1 - WARM_UP_STEPS
    figures: dict[str, Any] = {
        "computes": computes[WARM_UP_STEPS:],
        "wait_share": sum(waits[WARM_UP_STEPS:]) / (sum(waits[WARM_UP_STEPS:]) + sum(computes[WARM_UP_STEPS:])),
        "images_per_second": counted * trainer.config.data.batch_size / (ended - begun),
        "cpu_seconds": (cpu_after - cpu_before) / counted,
        "gradient_mb": sum(p.numel() * p.element_size() for p in trainer.engine.module.parameters()) / 1e6,
    }
    if trainer.rank_context.world_size == 1:
        index = open_index(trainer.config.data.url, trainer.config.data.train_split)
        figures |= _storage(index) | {"decode_per_second": _loading(trainer)}
        figures["picture_mb"] = index.header.num_bytes / index.header.num_samples / 1e6
    return figures


def _cpu_seconds() -> float:
    """Processor seconds so far of this process, its loaders, and the S3 server beside it."""
    own = psutil.Process()
    servers = [one for one in psutil.process_iter(["name"]) if one.info["name"] == "weed"]
    total = 0.0
    for process in (own, *own.children(recursive=True), *servers):
        try:
            used = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += used.user + used.system
    return total


def _loading(trainer: Trainer) -> float:
    """Pictures a second of the loaders when nobody trains."""
    with trainer.open_train_stream() as stream:
        for _ in range(WARM_UP_STEPS):
            next(stream)
        begun = time.perf_counter()
        for _ in range(LOADED_STEPS):
            next(stream)
        return LOADED_STEPS * trainer.config.data.batch_size / (time.perf_counter() - begun)


def _storage(index: ShardIndex) -> dict[str, float]:
    """Time to the answer of a small request, and bandwidth of whole shards."""
    generator = np.random.default_rng(0)
    latencies: list[float] = []
    for _ in range(REQUESTS):
        shard = int(generator.integers(len(index)))
        start = int(generator.integers(int(index.num_bytes[shard]) - 1024))
        begun = time.perf_counter()
        index.storage.read(index.names[shard], start=start, length=1024)
        latencies.append(time.perf_counter() - begun)
    latency = statistics.mean(latencies)
    seconds_of_a_megabyte: list[float] = []
    for shard in [*range(len(index))] * SHARD_ROUNDS:
        begun = time.perf_counter()
        num_bytes = len(index.storage.read(index.names[shard]))
        seconds_of_a_megabyte.append((time.perf_counter() - begun) / (num_bytes / 1e6))
    transfer = statistics.mean(seconds_of_a_megabyte)
    return {
        "s3_latency": latency,
        "s3_spread": statistics.stdev(latencies) / latency,
        "s3_worker_mb": 1 / transfer,
        "s3_transfer_spread": statistics.stdev(seconds_of_a_megabyte) / transfer,
    }


def network(megabytes: float) -> tuple[float, float]:
    """Return the bandwidth of an all-reduce of two processes here in MB/s, and the seconds of a small one."""
    with tempfile.TemporaryDirectory(prefix="hmtl-bench-") as folder:
        mp.spawn(_all_reduce, (megabytes, folder), nprocs=2)  # pyright: ignore[reportUnknownMemberType, reportPrivateImportUsage]
        large, small = json.loads((Path(folder) / "seconds.json").read_text())
    return megabytes / max(large - small, 1e-9), small


def _all_reduce(rank: int, megabytes: float, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    quietest: list[float] = []  # what the network can do; that its ranks share the cores is the simulation's to say
    for values in (int(megabytes * 1e6 / 4), 8):
        tensor, seconds = torch.zeros(values), list[float]()
        for _ in range(20):
            begun = time.perf_counter()
            dist.all_reduce(tensor)  # pyright: ignore[reportUnknownMemberType]  # partial in torch
            seconds.append(time.perf_counter() - begun)
        quietest.append(min(seconds))
    if rank == 0:
        (Path(folder) / "seconds.json").write_text(json.dumps(quietest))
    dist.destroy_process_group()


def crowding(backbone: str, image_size: int, batch: int) -> float:
    """Return how many times as long a step takes while another process computes the same, on a model without a run."""
    with tempfile.TemporaryDirectory(prefix="hmtl-bench-") as folder:
        mp.spawn(_steps_beside, (backbone, image_size, batch, folder), nprocs=2)  # pyright: ignore[reportUnknownMemberType, reportPrivateImportUsage]
        return float(json.loads((Path(folder) / "ratio.json").read_text()))


def _steps_beside(rank: int, backbone: str, image_size: int, batch: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    model = cast("torch.nn.Module", import_timm().create_model(backbone, num_classes=8))
    images = torch.rand(batch, 3, image_size, image_size)

    def seconds() -> float:
        begun = time.perf_counter()
        for _ in range(CROWDED_STEPS):
            model(images).sum().backward()
        return time.perf_counter() - begun

    seconds()
    ratios: list[float] = []
    for _ in range(CROWDED_ROUNDS):
        dist.barrier()  # pyright: ignore[reportUnknownMemberType]  # partial in torch
        alone = seconds() if rank == 0 else 0.0
        dist.barrier()  # pyright: ignore[reportUnknownMemberType]
        beside = seconds()
        if rank == 0:
            ratios.append(beside / alone)
    if rank == 0:
        (Path(folder) / "ratio.json").write_text(json.dumps(statistics.median(ratios)))
    dist.destroy_process_group()


def world_of(
    one: Mapping[str, Any], batch: int, *, bandwidth: float, latency: float, cores: int, slower: float = 1.0
) -> World:
    """Return the world that a measured run of one worker tells of; failures and checkpoints left out.

    Args:
        one: As `measure` returns it.
        batch: Pictures of a worker's step.
        bandwidth: MB/s of an all-reduce between two.
        latency: Seconds of a small one.
        cores: Of this machine, which all workers share.
        slower: As `crowding` returns it.
    """
    computes = one["computes"]
    return World(
        batch_per_worker=batch,
        step_seconds=statistics.mean(computes),
        step_spread=statistics.stdev(computes) / statistics.mean(computes),
        picture_mb=one["picture_mb"],
        decode_per_second=one["decode_per_second"],
        s3_worker_mb=one["s3_worker_mb"],
        s3_total_mb=one["s3_worker_mb"],
        s3_transfer_spread=one["s3_transfer_spread"],
        s3_latency=one["s3_latency"],
        s3_spread=one["s3_spread"],
        gradient_mb=one["gradient_mb"],
        network_mb=bandwidth,
        network_latency=SMALL_COLLECTIVES * latency / 2,  # the simulation counts two hops for two workers
        mtbf_hours=float("inf"),
        checkpoint_seconds=0.0,
        workers_per_machine=2,
        cores_per_machine=cores,
        cpu_seconds=one["cpu_seconds"],
        crowding=slower,
    )


def main() -> None:
    """Measure, fit, predict, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of a run")
    parser.add_argument("--batch-size", type=int, default=16, help="samples of a worker's step")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--save", type=Path, help="file for what was measured, for `benchmarks.scale --world`")
    parser.add_argument("--backbone", default="efficientnet_b0")
    arguments = parser.parse_args()
    keys = ["data.num_workers=1", f"model.backbone={arguments.backbone}", "augment=weak", "data.lanes=2"]

    def run(workers: int) -> dict[str, Any]:
        overrides = [*keys, f"data.batch_size={workers * arguments.batch_size}"]
        steps = partial(measure, arguments.steps)
        # a process each: what builds the data keeps its connection to the S3 server, which is another one each time
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            measured = pool.submit(run_ranks, steps, overrides, ranks=workers, image_size=arguments.image_size, s3=True)
            return dict(measured.result())

    one = run(1)
    bandwidth, latency = network(one["gradient_mb"])
    cores = len(os.sched_getaffinity(0))
    slower = crowding(arguments.backbone, arguments.image_size, arguments.batch_size)
    world = world_of(one, arguments.batch_size, bandwidth=bandwidth, latency=latency, cores=cores, slower=slower)
    print("fitted on one worker: " + " ".join(f"{name}={value:.4g}" for name, value in asdict(world).items()))
    if arguments.save:
        arguments.save.write_text(json.dumps(asdict(world), indent=1))
    two = run(2)
    for workers, found in ((1, one), (2, two)):
        predicted = simulate(world, workers)
        off = predicted.images_per_second / found["images_per_second"] - 1
        print(
            f"{workers} worker(s): predicted {predicted.images_per_second:.1f} img/s, measured "
            f"{found['images_per_second']:.1f}, {off:+.1%}; waiting predicted {predicted.wait_share:.1%}, measured "
            f"{found['wait_share']:.1%}"
        )


if __name__ == "__main__":
    main()
