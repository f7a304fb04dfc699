"""Pictures a second of the loader alone over decoding alone from memory, on the same cores, in one run.

Decoding alone: as many processes as the loader has, each turning encoded pictures it already holds into one reused
picture with the same transform. The loader: shards on disk or in a real S3 server, planned order, digests, labels,
shared-memory batches handed to this process. Rounds alternate, the ratio is taken within a round. Processor seconds
(of the loader's processes and this one, not of the server) hold also on a machine that is busy with other things.

    python -m benchmarks.loader --num-workers 1 --s3
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.local_s3 import local_s3
from hmtl_dist.augment import AugmentConfig, GeometricTransform
from hmtl_dist.data.config import DataConfig
from hmtl_dist.data.dataset.build import BuildSettings, build
from hmtl_dist.data.dataset.index import ShardIndex, open_index
from hmtl_dist.data.drawn.faces import SyntheticAdapter, SyntheticSettings
from hmtl_dist.data.stream.batches import Stream
from hmtl_dist.data.stream.plan import Plan
from hmtl_dist.tasks.so3 import GEOMETRY

WARM_UP_STEPS = 4


@dataclass
class Speed:
    """Pictures a second, and processor seconds for 1,000 pictures."""

    rate: float
    cpu_seconds: float

    def __str__(self) -> str:
        return f"{self.rate:,.0f} img/s ({self.cpu_seconds:.2f} s CPU)"


def main() -> None:
    """Measure and print."""
    options = parse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with local_s3(folder) if options.s3 else nullcontext():
            urls = {"folder": str(folder / "faces")} | ({"S3": "s3://bench/faces"} if options.s3 else {})
            for url in urls.values():
                draw_faces(url, options)
            measure({name: open_index(url, "train") for name, url in urls.items()}, options)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--picture-size", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--s3", action="store_true", help="measure a real S3 server on this machine too")
    return parser.parse_args()


def draw_faces(url: str, options: argparse.Namespace) -> None:
    """Build a data set of drawn faces."""
    settings = SyntheticSettings(options.samples, options.samples // 16, options.picture_size)
    build(SyntheticAdapter(settings), url, BuildSettings(dataset="bench", splits={"train": 1.0}), num_workers=2)


def measure(indexes: dict[str, ShardIndex], options: argparse.Namespace) -> None:
    """Alternate decoding alone and the loader; print rates and ratios."""
    index = next(iter(indexes.values()))
    transform = GeometricTransform(AugmentConfig(preset="strong"), options.image_size, GEOMETRY, seed=0, train=True)
    pictures = [
        index.storage.read(index.names[shard], start=int(offset), length=int(length))
        for shard in range(len(index))
        for offset, length in zip(index.samples(shard).offset, index.samples(shard).length, strict=True)
    ]
    size = statistics.mean(map(len, pictures))
    print(
        f"{len(pictures)} faces of {options.picture_size} px ({size / 1024:.1f} KiB) to {options.image_size} px, ",
        end="",
    )
    print(f"{options.num_workers} loader process(es), {os.cpu_count()} cores")
    ratios: dict[str, list[Speed]] = {name: [] for name in indexes}
    for number in range(options.rounds):
        alone = decoding_alone(pictures, transform, options)
        line = f"round {number}: decoding alone {alone}"
        for name, source in indexes.items():
            speed = loading(source, transform, options)
            ratios[name].append(Speed(speed.rate / alone.rate, speed.cpu_seconds / alone.cpu_seconds))
            line += f"; loader from {name} {speed}"
        print(line, flush=True)
    for name, values in ratios.items():
        rate = statistics.median(value.rate for value in values)
        cpu_seconds = statistics.median(value.cpu_seconds for value in values)
        print(f"{name}: {rate:.2f} of the rate, {cpu_seconds:.2f} times the processor time (medians)")


def decoding_alone(pictures: list[bytes], transform: GeometricTransform, options: argparse.Namespace) -> Speed:
    """Return the speed of as many processes as the loader has."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(options.num_workers)
    with context.Pool(options.num_workers, initializer=share_barrier, initargs=(barrier,)) as pool:
        seconds = pool.starmap(decode_all, [(pictures, transform, options.image_size)] * options.num_workers, 1)
    rate = len(pictures) * options.num_workers / max(wall for wall, _ in seconds)
    return Speed(rate, sum(cpu for _, cpu in seconds) / options.num_workers / len(pictures) * 1000)


def share_barrier(barrier: Any) -> None:
    """Keep what lets the processes begin together."""
    global _barrier  # noqa: PLW0603  # an initializer has no other way to hand something on
    _barrier = barrier


_barrier: Any = None


def decode_all(pictures: list[bytes], transform: GeometricTransform, image_size: int) -> tuple[float, float]:
    """Decode every picture; return the seconds and the processor seconds it took."""
    import cv2

    cv2.setNumThreads(0)
    out: NDArray[np.uint8] = np.zeros((image_size, image_size, 3), dtype=np.uint8)
    params = transform.draw(0, np.arange(len(pictures)))
    for number in range(min(200, len(pictures))):
        transform.picture(pictures[number], params[number], out)
    _barrier.wait()
    begun, cpu_begun = time.perf_counter(), time.process_time()
    for encoded, row in zip(pictures, params, strict=True):
        transform.picture(encoded, row, out)
    return time.perf_counter() - begun, time.process_time() - cpu_begun


def loading(index: ShardIndex, transform: GeometricTransform, options: argparse.Namespace) -> Speed:
    """Return the speed of the stream, counted after its first batches."""
    config = DataConfig(url=index.url, image_size=options.image_size, num_workers=options.num_workers)
    plan = Plan(index.num_samples, batch_size=options.batch_size, lanes=8, seed=0, shuffle=True, block=256)
    steps = max(plan.steps_per_epoch, 8) * 2
    with Stream(index, plan, transform, config) as stream:
        processes = [psutil.Process(), *map(psutil.Process, stream.worker_pids)]
        for _ in range(WARM_UP_STEPS):
            next(stream)
        begun, cpu_begun = time.perf_counter(), cpu_seconds(processes)
        for _ in range(steps):
            next(stream)
        pictures = steps * options.batch_size
        return Speed(pictures / (time.perf_counter() - begun), (cpu_seconds(processes) - cpu_begun) / pictures * 1000)


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Return the processor seconds that processes have used so far."""
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


if __name__ == "__main__":
    main()
