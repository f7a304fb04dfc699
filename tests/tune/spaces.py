"""Spaces and recipes of the search's tests, and an analytic stand-in for training."""

import math
from collections.abc import Mapping
from typing import Any

from hmtl_dist.tune.ledger import Record
from hmtl_dist.tune.space import Space, parse_space
from hmtl_dist.tune.trials import Recipe

METRIC = "eval/expression/accuracy"
TREE: dict[str, Any] = {
    "name": "faces",
    "data": {"url": "nowhere", "batch_size": 16, "lanes": 4},
    "tasks": {
        "expression": {"type": "classification"},
        "puzzling": {"type": "puzzling"},
        "inpainting": {"type": "inpainting"},
    },
    "train": {"epochs": 9},
}
WEIGHTS: dict[str, Any] = {
    "tasks.puzzling.weight": {"type": "loguniform", "low": 0.05, "high": 5.0},
    "tasks.inpainting.weight": {"type": "loguniform", "low": 0.05, "high": 5.0},
}


def tree(**sections: Any) -> dict[str, Any]:
    """A space over the weights of the pretext tasks, with sections of it replaced or, by None, left out."""
    usual: dict[str, Any] = {"metric": METRIC, "params": WEIGHTS, "budget": {"trials": 12}}
    return {key: value for key, value in {**usual, **sections}.items() if value is not None}


def space(**sections: Any) -> Space:
    return parse_space(tree(**sections))


def recipe(**sections: Any) -> Recipe:
    return Recipe(tree={**TREE, **sections})


def planted(params: Mapping[str, Any]) -> float:
    """A smooth figure with its best, 1, at weights of 2 and 0.4 and, where it is drawn, the scheme `dwa`."""
    puzzling, inpainting = (math.log(params[path]) for path in WEIGHTS)
    scheme = 0.0 if params.get("weighting.type", "dwa") == "dwa" else 0.15
    return math.exp(-((puzzling - math.log(2)) ** 2 + (inpainting - math.log(0.4)) ** 2) / 4) - scheme


def finished(record: Record, value: float, step: int = 90, at: float = 1.0) -> Record:
    """The record of a trial that came to its end with a figure."""
    return record.reported(step, {METRIC: value}, at=at).model_copy(update={"status": "FINISHED"})
