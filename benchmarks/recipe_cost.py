r"""What a picture costs in each recipe: optimizer steps on one resident batch, recipes alternated in one run.

    OMP_NUM_THREADS=1 python -m benchmarks.recipe_cost affectnet_sl_b0 affectnet_puzzling_b0 \
        "affectnet_puzzling_b0 tasks.puzzling.supervise=clean" --steps 5

A recipe may be followed by changes of it. Prints seconds a picture (CPU time of one core, which other work on the
machine disturbs least; on a GPU, wall time), the ratio to the first recipe, the same of the operations that a step
needs (products and sums of convolutions and matrices, forward and backward, as torch counts them), the one ratio over
the other, and the hours of the whole recipe on a training split of AffectNet's size. Views, losses, backward and
optimizer count; the loader does not.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from hmtl_dist.config.io import load_tree
from hmtl_dist.data.dataset.schema import Field, IndexHeader
from hmtl_dist.engine import build_engine
from hmtl_dist.engine.base import Engine
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tasks.base import Inputs, SingleRank
from hmtl_dist.tasks.objective import Objective
from hmtl_dist.train.parts import build_parts

AFFECTNET_PICTURES = 287_651
EXPRESSIONS = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")
NUMBERS = ("yaw", "pitch", "roll")


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, help="pixels; the recipe's own when not given")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(1)
    trees = {name: tree_of(name, arguments, on_cpu=device.type == "cpu") for name in arguments.recipes}
    built = {name: build(tree, device) for name, tree in trees.items()}
    seconds: dict[str, list[float]] = {name: [] for name in trees}
    for step in range(1 + arguments.steps):
        for name, (objective, engine) in built.items():
            spent = take_step(objective, engine, batch(trees[name], device))
            if step:  # the first one warms up
                seconds[name].append(spent / arguments.batch_size)
    first = arguments.recipes[0]
    gigas = {name: operations(*built[name], batch(tree, device)) / arguments.batch_size for name, tree in trees.items()}
    width = max(map(len, trees))
    columns = f"{'s/picture':>10} {'ratio: min, median, max':>24} {'GFLOP':>7} {'ratio':>6} {'over':>5} {'hours':>9}"
    print(f"{'recipe':{width}} {columns}")
    for name, tree in trees.items():
        middle = statistics.median(seconds[name])
        ratios = [one / other for one, other in zip(seconds[name], seconds[first], strict=True)]
        ratio, needed = statistics.median(ratios), gigas[name] / gigas[first]
        hours = middle * AFFECTNET_PICTURES * tree.data.subset * tree.train.epochs / 3600
        spread = f"{min(ratios):.3f} {ratio:.3f} {max(ratios):.3f}"
        counts = f"{gigas[name]:7.3f} {needed:6.3f} {ratio / needed:5.2f}"
        print(f"{name:{width}} {middle:10.4f} {spread:>24} {counts} {hours:9,.0f}")
    print(json.dumps({"arguments": vars(arguments), "seconds_per_picture": seconds, "gflop_per_picture": gigas}))


def operations(objective: Objective, engine: Engine, inputs: Inputs) -> float:
    """Return the operations of a step in 10^9, a product and a sum counting as two."""
    counted = {torch.ops.aten.convolution_backward: convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        take_step(objective, engine, inputs)
    return counter.get_total_flops() / 1e9


def convolution_backward(
    grad_shape: Sequence[int], shape: Sequence[int], weight_shape: Sequence[int], *rest: Any, out_shape: Any
) -> int:
    """Count a convolution's backward pass; torch's own count takes every group's channels for connected with all."""
    transposed, needed = bool(rest[4]), rest[7]
    places = math.prod((shape if transposed else grad_shape)[2:])
    return 2 * shape[0] * places * math.prod(weight_shape) * (int(needed[0]) + int(needed[1]))


def tree_of(recipe: str, arguments: argparse.Namespace, *, on_cpu: bool) -> RunConfig:
    """Resolve a recipe, with changes after its name, for one process; on a CPU in fp32, where bf16 is slower."""
    name, *changes = recipe.split()
    overrides = [
        *changes,
        f"data.batch_size={arguments.batch_size}",
        "data.lanes=1",
        "engine.kind=plain",
        "model.pretrained=false",
    ]
    overrides += ["engine.precision=fp32"] if on_cpu else []
    overrides += [f"data.image_size={arguments.image_size}"] if arguments.image_size else []
    return load_tree(RunConfig, name, overrides)


def build(tree: RunConfig, device: torch.device) -> tuple[Objective, Engine]:
    """Build tasks, model and engine as a run does."""
    fields = {"expression": Field(kind="category", classes=EXPRESSIONS)}
    fields |= {"gender": Field(kind="category", classes=("female", "male"))}
    fields |= {name: Field(kind="number", unit="degrees") for name in NUMBERS}
    counts = {"expression": [1] * len(EXPRESSIONS), "gender": [1, 1]}
    header = IndexHeader(
        dataset="none", split="train", fields=fields, num_samples=8, num_shards=1, num_bytes=1, label_counts=counts
    )
    parts = build_parts(tree, header, SingleRank())
    engine = build_engine(parts.model, tree.optim, tree.engine, device=device, total_steps=1000, steps_per_epoch=100)
    parts.follow(device)
    return parts.objective, engine


def batch(tree: RunConfig, device: torch.device) -> Inputs:
    """Noise with labels, in the memory format that the stream gives."""
    count, side = tree.data.batch_size, tree.data.image_size
    images = torch.rand(count, side, side, 3, device=device).permute(0, 3, 1, 2)
    numbers = torch.arange(count, device=device)
    labels = {"expression": numbers % len(EXPRESSIONS), "gender": numbers % 2}
    labels |= {name: numbers.float() for name in NUMBERS}
    return Inputs(images, labels, torch.ones(count, device=device), tree.seed, 0, numbers)


def take_step(objective: Objective, engine: Engine, inputs: Inputs) -> float:
    """Take one optimizer step; returns its seconds."""
    clock = time.perf_counter if inputs.images.is_cuda else time.process_time
    started = clock()
    views, prepared = objective.prepare(inputs)
    engine.backward(objective.losses(engine.forward(views), prepared, inputs).total)
    engine.step()
    objective.after_step()
    if inputs.images.is_cuda:
        torch.cuda.synchronize()
    return clock() - started


if __name__ == "__main__":
    main()
