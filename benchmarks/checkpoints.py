"""What checkpoints cost a training: how long the step path stands still, and what the cores do in all.

One run alternates segments of N steps that begin with a checkpoint with segments that do not. The *stall* is the time
in `save()`, on the step path, over the time of the segment: what a machine with a core to spare would lose. Writing and
uploading go on in a thread while the segment's steps are taken; the *whole cost* is what a segment with a checkpoint
takes longer than its neighbours without, all of it, on cores that the training saturates. Processor seconds (of the
ranks, not of an S3 server) hold also on a machine that is busy with other things.

    python -m benchmarks.checkpoints --every 20 --rounds 8 --s3
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch.distributed as dist

from benchmarks.ranks import Figures, run_ranks
from hmtl_dist.train.loop import Run, train
from hmtl_dist.train.worker import Trainer

FIVE_MINUTES = 300.0


def measure(trainer: Trainer, run: Run) -> Figures:
    """Alternate segments; returns seconds by kind, and the bytes of a checkpoint."""
    every, rounds = (int(os.environ[name]) for name in ("HMTL_BENCH_EVERY", "HMTL_BENCH_ROUNDS"))
    batches = iter(run.batches)
    rows: dict[str, list[float]] = {name: [] for name in ("save", "saved", "bare", "saved_cpu", "bare_cpu")}
    for number in range(rounds + 1):
        for kind in ("saved", "bare") if number % 2 else ("bare", "saved"):
            dist.barrier()  # pyright: ignore[reportUnknownMemberType]  # partial in torch
            begun, used = time.perf_counter(), time.process_time()
            if kind == "saved":
                run.save(trainer.engine.global_step, {})
                rows["save"].append(time.perf_counter() - begun)
            train(replace(run, batches=islice(batches, every)))
            rows[kind].append(time.perf_counter() - begun)
            trainer.saver.saved()  # what is still being written is no part of the next segment,
            rows[f"{kind}_cpu"].append(time.process_time() - used)  # but its work is of this one
    checkpoint = Path(trainer.rank_context.run.folder) / "checkpoints"
    size = sum(file.stat().st_size for file in checkpoint.rglob("*")) if "://" not in str(checkpoint) else 0
    return {name: values[1:] for name, values in rows.items()} | {"bytes": size, "steps": every}


def report(figures: Figures) -> None:
    """Print stall and whole cost."""
    save, saved, bare = figures["save"], figures["saved"], figures["bare"]
    stalls = [one / segment for one, segment in zip(save, saved, strict=True)]
    extra = [with_save - without for with_save, without in zip(saved, bare, strict=True)]
    cpu = [with_save - without for with_save, without in zip(figures["saved_cpu"], figures["bare_cpu"], strict=True)]
    segment = statistics.median(bare)
    low, middle, high = statistics.quantiles(stalls, n=4)
    print(f"segment of {figures['steps']} steps without a checkpoint: {segment:.2f} s")
    print(f"time in save(): median {1e3 * statistics.median(save):.1f} ms, most {1e3 * max(save):.1f} ms")
    print(f"stall of the step path: median {middle:.3%}, quartiles {low:.3%} {high:.3%}")
    for name, values in (("wall", extra), ("CPU of rank 0", cpu)):
        low, middle, high = statistics.quantiles(values, n=4)
        print(
            f"whole cost, {name}: median {middle:.3f} s a checkpoint (quartiles {low:.3f} {high:.3f}): "
            f"{middle / segment:.2%} at this interval, {middle / FIVE_MINUTES:.3%} at five minutes"
        )


def main() -> None:
    """Run the benchmark and print figures and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=20, help="steps of a segment")
    parser.add_argument("--rounds", type=int, default=6, help="counted pairs of segments, after one that is not")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=32, help="samples of a step over all ranks")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--zero", type=int, default=0, choices=(0, 1, 2))
    parser.add_argument("--ema", type=float, default=0.99, help="decay of the averaged weights; 0 for none")
    parser.add_argument("--s3", action="store_true", help="save to a real S3 server on this machine")
    arguments = parser.parse_args()
    os.environ["HMTL_BENCH_EVERY"], os.environ["HMTL_BENCH_ROUNDS"] = str(arguments.every), str(arguments.rounds)
    overrides = [
        *(f"data.batch_size={arguments.batch_size}", f"engine.zero_stage={arguments.zero}"),
        *(f"engine.ema_decay={arguments.ema}", "tasks.puzzling.every=1", "tasks.inpainting.every=1"),
    ]
    figures = run_ranks(measure, overrides, ranks=arguments.ranks, image_size=arguments.image_size, s3=arguments.s3)
    report(figures)
    print(json.dumps({"arguments": vars(arguments), **figures}))


if __name__ == "__main__":
    main()
