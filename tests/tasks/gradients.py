"""Two processes compare their averaged gradient with that of one process on the same global batch."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hmtl_dist.augment import AugmentConfig
from hmtl_dist.augment.mixing import draw_mix
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.engine.checkpoint import load_weights
from hmtl_dist.engine.ranks import TorchRanks
from hmtl_dist.model.frozen import build_frozen
from hmtl_dist.model.hmtl import HMTLModel, ModelConfig
from hmtl_dist.tasks.age import AgeConfig
from hmtl_dist.tasks.base import Inputs, Ranks, SingleRank
from hmtl_dist.tasks.classification import ClassificationConfig
from hmtl_dist.tasks.head_pose import HeadPoseConfig
from hmtl_dist.tasks.inpainting import InpaintingConfig
from hmtl_dist.tasks.objective import Objective
from hmtl_dist.tasks.puzzling import PuzzlingConfig
from hmtl_dist.tasks.registry import AnyTaskConfig, build_tasks
from hmtl_dist.tasks.regression import RegressionConfig
from hmtl_dist.tasks.rotation import RotationConfig
from hmtl_dist.tasks.valence_arousal import ValenceArousalConfig
from hmtl_dist.tasks.weighting import WeightingConfig

NUM_SAMPLES = 8
IMAGE_SIZE = 32
MODEL = ModelConfig(backbone="test_convnext")
"""Normalised over channels, not over the batch, and without dropout: its gradient is a sum over samples."""
FIELDS = {
    "expression": Field(kind="category", classes=("a", "b", "c")),
    "gender": Field(kind="category", classes=("f", "m")),
    "ghost": Field(kind="category", classes=("x", "y")),
    "yaw": Field(kind="number", unit="degrees"),
    "pitch": Field(kind="number", unit="degrees"),
    "roll": Field(kind="number", unit="degrees"),
    "age": Field(kind="number", unit="years"),
}
COUNTS = {"expression": [10, 30, 20], "gender": [7, 5], "ghost": [1, 1]}
MIXING = AugmentConfig(preset="none", mixup_probability=0.5, mixup_alpha=1.0, cutmix_probability=0.5)
"""For the tasks that are called `mixed`; two samples of a lane are partners."""
WEIGHTINGS = ("sum", "geometric", "uncertainty", "dwa")


def supervised(loss: str, class_weights: str) -> dict[str, AnyTaskConfig]:
    return {
        "expression": ClassificationConfig.model_validate({"class_weights": class_weights, "dropout": 0.0}),
        "gender": ClassificationConfig(dropout=0.0, weight=0.5),
        "ghost": ClassificationConfig(dropout=0.0),
        "pose": RegressionConfig.model_validate({"labels": ["yaw", "age"], "loss": loss, "dropout": 0.0}),
    }


TASK_SETS: dict[str, dict[str, AnyTaskConfig]] = {
    "l1": {
        **supervised("l1", "index"),
        "puzzling": PuzzlingConfig(grid=2, dropout=0.0),
        "inpainting": InpaintingConfig(supervise="corrupted"),
    },
    "l2": {
        **supervised("l2", "none"),
        "puzzling": PuzzlingConfig(grid=3, reduction="sum", supervise="both", dropout=0.0, weight=0.3),
        "inpainting": InpaintingConfig(fill="mean", perceptual_weight=0.0),
    },
    "pose": {
        **supervised("l1", "none"),
        "sixd": HeadPoseConfig(dropout=0.0),
        "binned": HeadPoseConfig(method="binned", dropout=0.0),
        "age": AgeConfig(dropout=0.0),
        "affect": ValenceArousalConfig(labels=("yaw", "pitch"), dropout=0.0),
        "rotation": RotationConfig(supervise="both", dropout=0.0),
    },
    "mixed": {
        "expression": ClassificationConfig(class_weights="index", dropout=0.0),
        "gender": ClassificationConfig(dropout=0.0, weight=0.5),
        "ghost": ClassificationConfig(dropout=0.0),
        "puzzling": PuzzlingConfig(supervise="clean", dropout=0.0),
    },
    "huber": {**supervised("huber", "index"), "puzzling": PuzzlingConfig(supervise="clean", dropout=0.0)},
}


def global_batch() -> Inputs:
    """A batch whose second half has nearly all labels, and whose first half holds a damaged sample."""
    generator = torch.Generator().manual_seed(0)
    nan = torch.nan
    return Inputs(
        images=torch.rand(NUM_SAMPLES, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator, dtype=torch.float64),
        labels={
            "expression": torch.tensor([-1, -1, 0, -1, 1, 2, 0, 2]),
            "gender": torch.tensor([-1, -1, -1, -1, 0, 1, -1, 1]),
            "ghost": torch.full((NUM_SAMPLES,), -1),
            "yaw": torch.tensor([nan, 30.0, nan, nan, -20.0, 5.0, 11.0, nan]),
            "pitch": torch.tensor([nan, 3.0, 12.0, -7.0, 9.0, 4.0, 120.0, nan]),
            "roll": torch.tensor([nan, 3.0, 1.0, -8.0, 14.0, 25.0, 6.0, -33.0]),
            "age": torch.tensor([20.0, nan, nan, nan, nan, nan, 71.0, nan]),
        },
        weight=torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64),
        seed=3,
        epoch=0,
        positions=torch.arange(NUM_SAMPLES) + 40,
    )


def share_of(inputs: Inputs, rank: int, world_size: int, epoch: int, *, mixed: bool) -> Inputs:
    size = NUM_SAMPLES // world_size
    rows = slice(rank * size, (rank + 1) * size)
    labels = {name: values[rows] for name, values in inputs.labels.items()}
    weight, positions = inputs.weight[rows], inputs.positions[rows]
    mix = None
    if mixed:
        side = (IMAGE_SIZE, IMAGE_SIZE)
        mix = draw_mix(MIXING, inputs.seed, epoch, positions, weight=weight, per_lane=2, size=side)
    return Inputs(inputs.images[rows], labels, weight, inputs.seed, epoch, positions, mix)


def gradient(
    tasks: dict[str, AnyTaskConfig], weighting: str, ranks: Ranks, *, mixed: bool
) -> tuple[float, dict[str, Tensor]]:
    """Total and gradient, averaged over ranks as engines do; for `dwa` in the third epoch, its first with a trend."""
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]  # partial in torch
    frozen = build_frozen(tasks, MODEL, load_weights)
    built = build_tasks(tasks, FIELDS, COUNTS, frozen, IMAGE_SIZE)
    objective = Objective(built, WeightingConfig.model_validate(weighting), ranks)
    model: nn.Module = HMTLModel(MODEL, objective.heads(), objective.wiring, objective.log_vars).double()
    for net in frozen.values():
        net.double().requires_grad_(requires_grad=False)
    total = torch.zeros(())
    for epoch in range(3 if weighting == "dwa" else 1):
        inputs = share_of(global_batch(), ranks.rank, ranks.world_size, epoch, mixed=mixed)
        views, prepared = objective.prepare(inputs)
        total = objective.losses(model(views), prepared, inputs).total
        objective.end_epoch()
    torch.autograd.backward(total)
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return total.item(), {name: ranks.all_reduce_sum(value) / ranks.world_size for name, value in gradients.items()}


def compare(rank: int, world_size: int, folder: str, pairs: Sequence[tuple[str, str]]) -> None:
    """Run one of the processes; rank 0 writes the greatest relative difference of each case to `differences.json`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world_size)
    differences: dict[str, float] = {}
    for name, weighting in pairs:
        tasks = TASK_SETS[name]
        mixed = name == "mixed"
        total, gradients = gradient(tasks, weighting, TorchRanks(), mixed=mixed)
        if rank == 0:
            expected_total, expected = gradient(tasks, weighting, SingleRank(), mixed=mixed)
            scale = max(float(value.abs().max()) for value in expected.values())
            apart = max(float((gradients[key] - value).abs().max()) for key, value in expected.items())
            same = gradients.keys() == expected.keys() and abs(total - expected_total) < 1e-12 * abs(expected_total)
            differences[f"{name}-{weighting}"] = apart / scale if same else float("inf")
    dist.destroy_process_group()
    if rank == 0:
        Path(folder, "differences.json").write_text(json.dumps(differences))
