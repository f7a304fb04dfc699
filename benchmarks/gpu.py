"""A training step on a GPU: pictures a second, share of the card's peak, and of the time that copies take.

    python -m benchmarks.gpu

EfficientNet-B0 at 224 px in bf16, channels_last, with and without torch.compile, SL and puzzles, `strong` augmentation
on the device; pictures come as uint8 from host memory as the loader gives them, copied when they are needed or while
the step before computes (`ahead`, as in a run), and lie on the device already (`resident`), in turn: what the copies
cost is between them. MFU is the operations that a step needs
(`benchmarks.recipe_cost` counts them alike) over the peak given. Without CUDA it says so and ends.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from itertools import repeat
from typing import Any

import torch

from benchmarks.machine import describe, spread
from benchmarks.recipe_cost import batch, build, operations
from hmtl_dist.config.io import load_tree
from hmtl_dist.data.stream.batches import Batch
from hmtl_dist.run_config import RunConfig
from hmtl_dist.train.inputs import Feed, InputMaker, copier_of

WARM_UP = 10


def main() -> None:
    """Measure and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["affectnet_sl_b0", "affectnet_puzzling_b0"])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="dense bf16; 989 is an H100 SXM's")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: torch finds no GPU here")
        print(json.dumps({"skipped": "no GPU"}))
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    device = torch.device("cuda:0")
    print(describe())
    print(torch.cuda.get_device_name(device))
    found: dict[str, dict[str, list[float]]] = {}
    gigas: dict[str, float] = {}
    for recipe in options.recipes:
        for compiled in (False, True):
            name = f"{recipe}{', compiled' if compiled else ''}"
            steps, needed = steps_of(recipe, device, options, compiled=compiled)
            gigas[name] = needed or gigas[recipe]
            found[name] = measured(steps, options)
    print(f"\n| | images/s: min, median, max | MFU | over resident | ms a step |\n{5 * '|---'}|")
    for name, rates in found.items():
        for kind, its in rates.items():
            share = [one * gigas[name] / 1e3 / options.peak_tflops for one in its]
            over = [one / other for one, other in zip(its, rates["resident"], strict=True)]
            step = [1e3 * options.batch_size / one for one in its]
            print(f"| {name}, {kind} | {spread(its, 0)} | {spread(share)} | {spread(over)} | {spread(step, 1)} |")
    print(json.dumps({"arguments": vars(options), "images_per_second": found, "gflop_per_image": gigas}))


def steps_of(
    recipe: str, device: torch.device, options: argparse.Namespace, *, compiled: bool
) -> tuple[dict[str, Callable[[], Any]], float]:
    """Return a step on pictures of each kind, and the operations of a picture in 10^9.

    A compiled model's are not counted: 0.
    """
    changes = [f"data.batch_size={options.batch_size}", f"data.image_size={options.image_size}", "data.lanes=1"]
    changes += ["engine.kind=plain", "engine.precision=bf16", "model.pretrained=false", "augment=strong"]
    tree = load_tree(RunConfig, recipe, [*changes, f"engine.compile={str(compiled).lower()}"])
    objective, engine = build(tree, device)
    resident = batch(tree, device)
    gigas = operations(objective, engine, resident) / options.batch_size if not compiled else 0.0
    maker = InputMaker(device, tree.seed, augment=tree.augment)
    host = Batch(
        images=torch.randint(
            0, 255, (options.batch_size, options.image_size, options.image_size, 3), dtype=torch.uint8
        ),
        labels={name: label.cpu() for name, label in resident.labels.items()},
        weight=torch.ones(options.batch_size),
        positions=torch.arange(options.batch_size),
        sample_ids=torch.arange(options.batch_size),
        epoch=0,
        step=0,
    )

    there = host.with_tensors(lambda tensor: tensor.to(device))

    def step(given: Batch, ahead: Callable[[], None] = lambda: None) -> None:
        for inputs in maker(given):
            views, prepared = objective.prepare(inputs)
            engine.backward(objective.losses(engine.forward(views), prepared, inputs).total)
            ahead()
            engine.gradient_norm().isfinite().item()  # a run waits here too
            engine.step()
        objective.after_step()

    feed = Feed(repeat(host), copier_of(device))

    def step_ahead() -> None:
        step(next(feed), feed.ahead)

    kinds = {"from the host": partial(step, host), "ahead": step_ahead, "resident": partial(step, there)}
    return kinds, gigas


def measured(steps: dict[str, Callable[[], Any]], options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the images a second of each kind of step, the kinds in turn."""
    rates: dict[str, list[float]] = {kind: [] for kind in steps}
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    for _ in range(options.rounds):
        for kind, step in steps.items():
            torch.cuda.synchronize()
            begun = time.perf_counter()
            for _ in range(options.steps):
                step()
            torch.cuda.synchronize()
            rates[kind].append(options.steps * options.batch_size / (time.perf_counter() - begun))
    return rates


if __name__ == "__main__":
    main()
