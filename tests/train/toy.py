"""A small run for the tests of training: real tasks, model and engine, pictures of noise."""

from collections.abc import Iterator
from typing import Any

import torch

from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.engine import build_engine
from hmtl_dist.engine.base import Engine
from hmtl_dist.model.hmtl import HMTLModel
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tasks.base import Inputs, SingleRank
from hmtl_dist.tasks.objective import Objective
from hmtl_dist.tasks.registry import build_tasks
from hmtl_dist.train.loop import RankBatch
from hmtl_dist.train.parts import seed_torch
from tests.tasks.batches import make_inputs

FIELDS = {"mood": Field(kind="category", classes=("calm", "glad"))}
STEPS_PER_EPOCH = 4


def config(**sections: Any) -> RunConfig:
    tree: dict[str, Any] = {
        "name": "toy",
        "data": {"url": "nowhere", "batch_size": 8},
        "tasks": {"mood": {"type": "classification"}, "puzzling": {"type": "puzzling"}},
        "model": {"backbone": "test_byobnet"},
        "engine": {"kind": "plain"},
        "launch": "local",
    }
    return RunConfig.model_validate(tree | sections)


def build(tree: RunConfig) -> tuple[Objective, Engine]:
    """The objective and the engine around a model that starts the same every time."""
    seed_torch(tree.seed)
    objective = Objective(build_tasks(tree.tasks, FIELDS, {}, {}, 32), tree.weighting, SingleRank())
    model = HMTLModel(tree.model, objective.heads(), objective.wiring, objective.log_vars)
    engine = build_engine(
        model,
        tree.optim,
        tree.engine,
        device=torch.device("cpu"),
        total_steps=2 * STEPS_PER_EPOCH,
        steps_per_epoch=STEPS_PER_EPOCH,
    )
    return objective, engine


def batch(num_samples: int = 8) -> Inputs:
    """Glad pictures are brighter than calm ones."""
    moods = torch.arange(num_samples) % 2
    noise = torch.rand(num_samples, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return make_inputs(images=noise * 0.5 + 0.5 * moods.view(-1, 1, 1, 1), labels={"mood": moods})


def rank_batches(micro_batches: int = 1) -> Iterator[RankBatch]:
    """The same global batch of eight samples for ever."""
    while True:
        yield RankBatch(8, [batch(8 // micro_batches) for _ in range(micro_batches)], torch.arange(8))
