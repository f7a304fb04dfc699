"""What an exported model costs beside the raw timm model with the same head: parameters, and paired latency.

    OMP_NUM_THREADS=1 python -m benchmarks.inference --model efficientnet_b0 --image-size 224

The model that is exported was built with pretext heads. Calls alternate, so that other work on the machine falls on all
alike; CPU time is printed beside wall time, since it is disturbed less. The raw model is timed twice: on pictures that
it has to normalise, as timm's own preprocessing does, and on pictures that are normalised already.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hmtl_dist.augment import AugmentConfig
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.inference.folder import load_model, write_model
from hmtl_dist.inference.info import read_info
from hmtl_dist.inference.model import InferenceModel
from hmtl_dist.model.backbone import import_timm
from hmtl_dist.model.hmtl import HMTLModel, ModelConfig
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tasks.base import SingleRank
from hmtl_dist.tasks.objective import Objective
from hmtl_dist.tasks.registry import build_tasks

CLASSES = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")
WARM_UP = 2

Call = Callable[[], object]


def export(name: str, image_size: int) -> tuple[HMTLModel, InferenceModel]:
    """Build a model with two pretext heads, as training does, and what its export keeps of it."""
    config = RunConfig.model_validate(
        {
            "name": "inference",
            "data": {"url": "nowhere", "image_size": image_size},
            "tasks": {
                "expression": {"type": "classification"},
                "puzzling": {"type": "puzzling"},
                "inpainting": {"type": "inpainting", "perceptual_weight": 0},
            },
            "model": {"backbone": name},
        }
    )
    tasks = build_tasks(config.tasks, {"expression": Field(kind="category", classes=CLASSES)}, {}, {}, image_size)
    objective = Objective(tasks, config.weighting, SingleRank(), config.augment)
    model = HMTLModel(config.model, objective.heads(), objective.wiring, objective.log_vars).eval()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        sections: dict[str, Any] = {"config": ModelConfig(backbone=name), "augment": AugmentConfig()}
        write_model(folder, model.state_dict(), image_size=image_size, tasks=tasks, **sections)
        exported = load_model(folder)
        if read_info(folder).num_parameters != count(exported):
            raise RuntimeError("model.json counts other parameters than the model has")
    return model, exported


def raw_like(name: str, exported: InferenceModel) -> nn.Module:
    """Build timm's own classifier and give it the exported weights."""
    raw = cast("nn.Module", import_timm().create_model(name, num_classes=len(CLASSES)))
    state = exported.model.state_dict()
    weights = {
        key.removeprefix("backbone.net."): value for key, value in state.items() if key.startswith("backbone.net.")
    }
    head = {key.rpartition(".")[2]: value for key, value in state.items() if key.startswith("heads.expression.")}
    classifier = cast("Any", raw).get_classifier()
    left = cast("Any", raw.load_state_dict(weights, strict=False))
    if left.unexpected_keys or len(left.missing_keys) != 2:  # weight and bias of the classifier
        raise RuntimeError(f"{name}: has other parts than the backbone: {left}")
    classifier.load_state_dict(head)
    return raw.eval()


def count(model: nn.Module) -> int:
    """Count learned numbers."""
    return sum(parameter.numel() for parameter in model.parameters())


def measure(calls: Mapping[str, Call], rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Call all in turn, in the other order every other round; returns seconds of wall time and of CPU time."""
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(WARM_UP + rounds):
        for name, call in sorted(calls.items(), reverse=turn % 2 == 1):
            started, used = time.perf_counter(), time.process_time()
            call()
            if turn >= WARM_UP:
                wall[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - used)
    return wall, cpu


def report(kind: str, times: Mapping[str, list[float]]) -> None:
    """Print the medians, and the quartiles of the paired ratios to the exported model's time."""
    medians = ", ".join(f"{name} {1e3 * statistics.median(values):.1f} ms" for name, values in times.items())
    print(f"  {kind:4}  {medians}")
    for name in ("raw and normalising", "raw alone"):
        ratios = [ours / theirs for ours, theirs in zip(times["exported"], times[name], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"        exported / {name}: median {middle:.4f}, quartiles {low:.4f} {high:.4f}")


@torch.inference_mode()
def run(arguments: argparse.Namespace) -> None:
    """Print counts, the largest difference of the answers, and latencies."""
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]  # partial in torch
    trained, exported = export(arguments.model, arguments.image_size)
    raw = raw_like(arguments.model, exported)
    print(f"{arguments.model} at {arguments.image_size} px, {torch.get_num_threads()} thread(s)")
    print(
        f"  parameters  trained with pretext heads {count(trained):,}, exported {count(exported):,}, raw {count(raw):,}"
    )
    backbone = exported.model.backbone
    mean, std = cast("Tensor", backbone.mean), cast("Tensor", backbone.std)
    for batch in arguments.batch_size:
        images = torch.rand(batch, 3, arguments.image_size, arguments.image_size)
        normalised = (images - mean) / std
        difference = (exported(images)["expression"] - raw(normalised).softmax(1)).abs().max()
        print(f"batch {batch}: answers differ by {float(difference):.2g} at most")
        calls: dict[str, Call] = {
            "exported": lambda images=images: exported(images),
            "raw and normalising": lambda images=images: raw((images - mean) / std),
            "raw alone": lambda normalised=normalised: raw(normalised),
        }
        for kind, times in zip(("wall", "cpu"), measure(calls, arguments.rounds), strict=True):
            report(kind, times)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_b0")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=30)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
