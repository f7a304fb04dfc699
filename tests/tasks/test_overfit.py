"""Each task alone learns sixteen pictures by heart: its loss can be driven near its least."""

from typing import Any, cast

import pytest
import torch

from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.model.hmtl import HMTLModel, ModelConfig
from hmtl_dist.tasks.age import AgeConfig
from hmtl_dist.tasks.base import Inputs, SingleRank
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
from tests.tasks.batches import make_inputs

SIDE = 32
NUMBERS = ("yaw", "pitch", "roll", "age", "valence", "arousal")
FIELDS = {name: Field(kind="number") for name in NUMBERS} | {
    "mood": Field(kind="category", classes=("calm", "glad", "sad"))
}
TASKS: dict[str, tuple[AnyTaskConfig, float]] = {
    "mood": (ClassificationConfig(dropout=0), 0.05),
    "yaw": (RegressionConfig(dropout=0), 0.01),
    "valence_arousal": (ValenceArousalConfig(dropout=0), 0.05),
    "sixd": (HeadPoseConfig(dropout=0), 0.1),
    "binned": (HeadPoseConfig(method="binned", dropout=0), 0.1),
    "age": (AgeConfig(dropout=0), 0.2),
    "puzzling": (PuzzlingConfig(dropout=0), 0.05),
    "rotation": (RotationConfig(dropout=0), 0.05),
    "inpainting": (InpaintingConfig(perceptual_weight=0), 0.06),
}


def sixteen() -> Inputs:
    """Smooth pictures, with labels that have nothing to do with them."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(16, 3, 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=SIDE, mode="bilinear")
    labels = {name: torch.randint(-40, 40, (16,), generator=generator).float() for name in NUMBERS}
    labels |= {"age": labels["age"] + 45, "valence": labels["valence"] / 40, "arousal": labels["arousal"] / 40}
    return make_inputs(images, labels | {"mood": torch.randint(0, 3, (16,), generator=generator)})


@pytest.mark.nightly
@pytest.mark.parametrize("name", TASKS)
def test_a_task_alone_learns_sixteen_pictures_by_heart(name: str) -> None:
    config, least = TASKS[name]
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]  # partial in torch
    inputs = sixteen()
    objective = Objective(build_tasks({name: config}, FIELDS, {}, {}, SIDE), WeightingConfig(), SingleRank())
    model = HMTLModel(ModelConfig(backbone="test_byobnet"), objective.heads(), objective.wiring)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.0)
    loss = float("inf")
    for _ in range(600):
        views, prepared = objective.prepare(inputs)
        losses = objective.losses(model(views), prepared, inputs)
        loss = float(losses.total.detach())
        if loss < least:
            break
        optimizer.zero_grad()
        torch.autograd.backward(losses.total)
        cast(Any, optimizer).step()
    assert loss < least
