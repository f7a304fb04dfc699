"""Step time of the DeepSpeed engine over that of DDP: alternated step by step, in one run, on the same batch.

    OMP_NUM_THREADS=1 python -m benchmarks.engine --model efficientnet_b0 --image-size 64

Wall time is what counts; CPU time of the rank is printed beside it, since other work on the machine disturbs it less.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from hmtl_dist.engine import build_engine
from hmtl_dist.engine.base import Engine
from hmtl_dist.engine.optim import EngineConfig, OptimConfig
from hmtl_dist.model.backbone import import_timm

WARM_UP = 3
CPU = torch.device("cpu")


class Net(nn.Module):
    """A timm classifier behind the engines' forward."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.body = cast("nn.Module", import_timm().create_model(name, num_classes=8))

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Return the logits as task -> view -> tensor."""
        return {"task": {name: self.body(view) for name, view in views.items()}}


def measure(rank: int, arguments: argparse.Namespace, store: str) -> None:
    """Run as one rank; rank 0 prints the table."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=arguments.ranks)
    optim = OptimConfig(warmup_steps=10)
    configs = {"ddp": EngineConfig(kind="plain", channels_last=arguments.zero == 0)}
    configs[f"zero{arguments.zero}"] = EngineConfig(zero_stage=arguments.zero)
    engines = {
        name: build_engine(Net(arguments.model), optim, config, device=CPU, total_steps=1000, steps_per_epoch=100)
        for name, config in configs.items()
    }
    images = torch.rand(arguments.batch_size, 3, arguments.image_size, arguments.image_size)
    targets = torch.randint(8, (arguments.batch_size,))
    wall: dict[str, list[float]] = {name: [] for name in engines}
    cpu: dict[str, list[float]] = {name: [] for name in engines}
    for step in range(WARM_UP + arguments.steps):
        for name, engine in sorted(engines.items(), reverse=step % 2 == 1):
            dist.barrier()  # pyright: ignore[reportUnknownMemberType]  # partial in torch
            started, used = time.perf_counter(), time.process_time()
            take_step(engine, images, targets)
            if step >= WARM_UP:
                wall[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - used)
    if rank == 0:
        print(f"{arguments.model} at {arguments.image_size} px, batch {arguments.batch_size} x {arguments.ranks} ranks")
        for kind, times in (("wall", wall), ("cpu", cpu)):
            report(kind, times)
        print(json.dumps({"arguments": vars(arguments), "wall": wall, "cpu": cpu}))
    dist.destroy_process_group()


def take_step(engine: Engine, images: Tensor, targets: Tensor) -> None:
    """Take one optimizer step."""
    logits = engine.forward({"clean": images})["task"]["clean"]
    engine.backward(nn.functional.cross_entropy(logits, targets))
    engine.step()


def report(kind: str, times: Mapping[str, list[float]]) -> None:
    """Print the median step of both engines and the quartiles of the paired ratio."""
    (base, base_times), (other, other_times) = times.items()
    ratios = [theirs / ours for theirs, ours in zip(other_times, base_times, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    medians = ", ".join(f"{name} {1e3 * statistics.median(values):.1f} ms" for name, values in times.items())
    print(f"  {kind:4}  {medians}; {other} / {base}: median {middle:.4f}, quartiles {low:.4f} {high:.4f}")


def main() -> None:
    """Parse the command line and start the ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_b0")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16, help="pictures a rank")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--zero", type=int, default=0, choices=(0, 1, 2))
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, (arguments, str(Path(folder) / "store")), nprocs=arguments.ranks)  # pyright: ignore[reportUnknownMemberType, reportPrivateImportUsage]


if __name__ == "__main__":
    main()
