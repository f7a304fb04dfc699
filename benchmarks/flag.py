"""What it costs that the ranks agree on one flag before each optimizer step: finite, stop, save.

The same steps are taken with and without the agreement, in turn, on one resident batch. With clipping the norm of the
gradients is needed anyway; without, it is part of the cost.

    python -m benchmarks.flag --steps 60
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import replace

import torch.distributed as dist

from benchmarks.ranks import Figures, run_ranks
from hmtl_dist.engine.ranks import TorchRanks
from hmtl_dist.train.guard import agree
from hmtl_dist.train.loop import Run
from hmtl_dist.train.worker import Trainer

WARM_UP = 6


def measure(trainer: Trainer, run: Run) -> Figures:
    """Take steps of both kinds in turn; returns the seconds of each, and of the agreement alone."""
    objective, engine, ranks = trainer.objective, trainer.engine, TorchRanks()
    (inputs,) = [replace(one, images=one.images.clone()) for one in next(iter(run.batches)).micro_batches]
    seconds: dict[str, list[float]] = {"with": [], "without": [], "agree": []}
    for step in range(int(os.environ["HMTL_BENCH_STEPS"]) + WARM_UP):
        for kind in ("with", "without") if step % 2 else ("without", "with"):
            dist.barrier()  # pyright: ignore[reportUnknownMemberType]  # partial in torch
            begun = time.perf_counter()
            views, prepared = objective.prepare(inputs)
            losses = objective.losses(engine.forward(views), prepared, inputs)
            engine.backward(losses.total)
            if kind == "with":
                agreeing = time.perf_counter()
                agree(engine, ranks, [losses], stop=False, save=False)
                seconds["agree"].append(time.perf_counter() - agreeing)
            engine.step()
            objective.after_step()
            seconds[kind].append(time.perf_counter() - begun)
    return {name: values[WARM_UP:] for name, values in seconds.items()}


def main() -> None:
    """Run the benchmark and print figures and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="counted pairs of steps")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=32, help="samples of a step over all ranks")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--clip", type=float, default=0.0, help="engine.clip_grad_norm")
    arguments = parser.parse_args()
    os.environ["HMTL_BENCH_STEPS"] = str(arguments.steps)
    overrides = [f"data.batch_size={arguments.batch_size}", f"engine.clip_grad_norm={arguments.clip}"]
    figures = run_ranks(measure, overrides, ranks=arguments.ranks, image_size=arguments.image_size, s3=False)
    ratios = [one / other for one, other in zip(figures["with"], figures["without"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"step: {1e3 * statistics.median(figures['without']):.1f} ms without")
    print(f"agreement: {1e3 * statistics.median(figures['agree']):.2f} ms, waiting for the other ranks included")
    print(f"with / without: median {middle:.4f}, quartiles {low:.4f} {high:.4f}")
    print(json.dumps({"arguments": vars(arguments), **figures}))


if __name__ == "__main__":
    main()
