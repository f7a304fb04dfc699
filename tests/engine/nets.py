"""Small models and runs that the tests of the engines share."""

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from hmtl_dist.engine import build_engine
from hmtl_dist.engine.base import Engine, EngineState
from hmtl_dist.engine.optim import EngineConfig, OptimConfig
from hmtl_dist.model.backbone import import_timm

CPU = torch.device("cpu")
STEPS = 20
IMAGE_SIZE = 32

EXACT = OptimConfig(weight_decay=0.1, warmup_steps=3, fused=False)
"""An optimizer that rounds alike at every ZeRO stage."""


class TimmNet(nn.Module):
    """A small timm model with BatchNorm, and a free one-dimensional parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.body = cast("nn.Module", import_timm().create_model("lcnet_035", num_classes=4))
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        return {"task": {name: self.body(view) * self.scale.exp() for name, view in views.items()}}


class SmallNet(nn.Module):
    """Two convolutions and a linear layer: a fast step, for what does not depend on the model."""

    def __init__(self, *, batchnorm: bool = True) -> None:
        super().__init__()
        norms = [nn.BatchNorm2d(width) if batchnorm else nn.Identity() for width in (8, 12)]
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, bias=False),
            norms[0],
            nn.SiLU(),
            nn.Conv2d(8, 12, 3, stride=2, bias=False),
            norms[1],
        )
        self.linear = nn.Linear(12, 4)

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        return {"task": {name: self.linear(self.body(view).mean((2, 3))) for name, view in views.items()}}


def without_batchnorm() -> SmallNet:
    """Make a net whose loss is the mean of its samples' losses."""
    return SmallNet(batchnorm=False)


def make_engine(
    config: EngineConfig, *, optim: OptimConfig = EXACT, net: Callable[[], nn.Module] = SmallNet, seed: int = 0
) -> Engine:
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]  # partial in torch
    return build_engine(net(), optim, config, device=CPU, total_steps=STEPS, steps_per_epoch=5)


def train(engine: Engine, to_step: int, *, rank: int = 0, batch_size: int = 8, micro_batches: int = 1) -> None:
    """Go on to a step; the pictures depend on step and rank alone."""
    while engine.global_step < to_step:
        generator = torch.Generator()
        generator.manual_seed(1000 * engine.global_step + rank)
        images = torch.rand(batch_size, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
        targets = torch.randint(4, (batch_size,), generator=generator)
        for views, labels in zip(images.chunk(micro_batches), targets.chunk(micro_batches), strict=True):
            logits = engine.forward({"clean": views})["task"]["clean"]
            engine.backward(nn.functional.cross_entropy(logits, labels))
        engine.step()


def difference(one: EngineState, other: EngineState) -> float:
    """Return the largest absolute difference between two states, infinity if they hold different tensors."""
    largest = 0.0
    for mine, theirs in ((one.model, other.model), (one.optimizer, other.optimizer), (one.ema, other.ema)):
        if mine.keys() != theirs.keys():
            return float("inf")
        for name, tensor in mine.items():
            if not torch.equal(tensor, theirs[name]):
                largest = max(largest, (tensor.double() - theirs[name].double()).abs().max().item())
    return largest if one.counters == other.counters else float("inf")
