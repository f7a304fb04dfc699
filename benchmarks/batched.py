"""Augmentation and puzzles of a batch as a run does them, over the same for one picture after another.

    OMP_NUM_THREADS=1 python -m benchmarks.batched

Both do the same work with the same draws on the same device; they take turns, and the ratio is taken within a pair. On
a CPU a run changes colours of as many pictures at a time as fit its cache: of 222 px that is one.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.machine import describe, spread
from hmtl_dist.augment import AugmentConfig
from hmtl_dist.augment.photometric import photometric
from hmtl_dist.tasks.tiles import shuffle_tiles


def main() -> None:
    """Measure and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    size = options.image_size // 3 * 3
    images = torch.rand(options.batch_size, size, size, 3, device=device).permute(0, 3, 1, 2)
    positions = torch.arange(options.batch_size, device=device)
    orders = torch.stack([torch.randperm(9, device=device) for _ in range(options.batch_size)])
    config = AugmentConfig(preset="strong")
    works: dict[str, Callable[[Tensor, slice], Tensor]] = {
        "augmentation": lambda pictures, rows: photometric(pictures, config, 0, 0, positions[rows]),
        "puzzles": lambda pictures, rows: shuffle_tiles(pictures, orders[rows], 3),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for number in range(1 + options.rounds):
        for name, work in works.items():
            at_once = timed(lambda work=work: work(images, slice(None)), device)
            each = timed(
                lambda work=work: torch.cat(
                    [work(images[at : at + 1], slice(at, at + 1)) for at in range(len(images))]
                ),
                device,
            )
            if number:  # the first one warms up
                found[name].append((at_once, each))
    print(describe())
    print(f"{options.batch_size} pictures of {size} px on {device}")
    print("\n| | at once, ms a picture | one by one | one by one / at once: min, median, max |\n|---|---|---|---|")
    for name, pairs in found.items():
        once, each = zip(*pairs, strict=True)
        per_picture = (spread([1e3 * value / options.batch_size for value in its]) for its in (once, each))
        ratio = spread([theirs / ours for ours, theirs in pairs], 2)
        print(f"| {name} | " + " | ".join(per_picture) + f" | {ratio} |")
    print(json.dumps({"arguments": vars(options), "seconds": found}))


def timed(work: Callable[[], Tensor], device: torch.device) -> float:
    """Return the seconds of a piece of work."""
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
