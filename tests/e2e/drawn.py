"""A small drawn data set and a small run on it, with every kind of task."""

import json
from pathlib import Path
from typing import Any

from hmtl_dist.data.dataset.build import BuildSettings, build
from hmtl_dist.data.drawn.faces import SyntheticAdapter, SyntheticSettings
from hmtl_dist.run_config import RunConfig

SAMPLES, IDENTITIES = 96, 24
STEPS_PER_EPOCH, EPOCHS = 4, 3


def draw(url: str, *, image_size: int = 32) -> str:
    """Builds a set of 72 pictures to train on and 24 to evaluate on; returns its URL."""
    settings = BuildSettings(dataset="drawn", splits={"train": 0.75, "val": 0.25}, shard_samples=20)
    build(SyntheticAdapter(SyntheticSettings(SAMPLES, IDENTITIES, image_size)), url, settings)
    return url


def tree(url: str, **sections: Any) -> dict[str, Any]:
    """The sections of a recipe for a minute model; a section given replaces single keys, a task of None goes."""
    usual: dict[str, Any] = {
        "data": {"url": url, "image_size": 32, "batch_size": 16, "lanes": 4, "num_workers": 0},
        "augment": {"preset": "strong"},
        "tasks": {
            "expression": {"type": "classification", "class_weights": "index"},
            "age": {"type": "regression"},
            "pose": {"type": "regression", "labels": ["yaw", "roll"]},
            "puzzling": {"type": "puzzling", "supervise": "both"},
            "inpainting": {"type": "inpainting", "layers": [0, 1]},
        },
        "weighting": {"type": "dwa"},
        "model": {"backbone": "test_byobnet"},
        "engine": {"kind": "plain", "ema_decay": 0.9},
        "train": {"epochs": EPOCHS, "report_every_steps": 1},
        "launch": {"kind": "local"},
        "tracking": {"enabled": False, "close_seconds": 300},  # on a busy machine too
    }
    for name, section in sections.items():
        usual[name] = {**usual.get(name, {}), **section} if isinstance(section, dict) else section
    usual["tasks"] = {name: task for name, task in usual["tasks"].items() if task is not None}
    return usual


def config(name: str, url: str, **sections: Any) -> RunConfig:
    return RunConfig.model_validate({"name": name} | tree(url, **sections))


def weights(checkpoint: str | None) -> dict[str, bytes]:
    """Every tensor file of a checkpoint, byte by byte: model, averaged model, optimizer and objective."""
    found = {path.name: path.read_bytes() for path in Path(checkpoint or "").glob("*.safetensors")}
    assert set(found) == {"model.safetensors", "ema.safetensors", "optimizer.safetensors", "objective.safetensors"}
    return found


def journal(folder: str | Path) -> list[dict[str, Any]]:
    """What the first rank of a run has written down."""
    lines = (Path(folder) / "rank-0" / "journal.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
