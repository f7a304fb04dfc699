from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hmtl_dist.data.schema import Field, IndexHeader
from hmtl_dist.engine.base import Engine
from hmtl_dist.errors import UserError
from hmtl_dist.run_config import RunConfig
from hmtl_dist.train.base import Place
from hmtl_dist.train.saving import Saver, check_fields
from tests.train.toy import batch, build, config

DATA = "digest of the data"


def header(digest: str) -> IndexHeader:
    return IndexHeader(
        dataset="toy",
        split="train",
        fields={"mood": Field(kind="category", classes=("good", "bad"))},
        num_samples=8,
        num_shards=1,
        num_bytes=8,
        label_counts={},
        digest=digest,
    )


def saver(tree: RunConfig, folder: Path, digest: str = DATA) -> tuple[Saver, Engine]:
    objective, engine = build(tree)
    place = Place(0, 1, 0, "cpu", folder / "scratch", str(folder))
    return Saver(tree, place, engine, objective, data=header(digest)), engine


def save(tree: RunConfig, folder: Path, *steps: int) -> dict[str, Tensor]:
    """Saves a model that has taken a step; returns its weights."""
    own, engine = saver(tree, folder)
    objective, _ = build(tree)
    inputs = batch()
    views, prepared = objective.prepare(inputs)
    engine.backward(objective.losses(engine.forward(views), prepared, inputs).total)
    engine.step()
    for step in steps or (1,):
        own.save(step, {"eval/mood/accuracy": 0.5})
    return engine.state().model


def test_a_new_run_has_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert saver(config(), tmp_path)[0].restore() is None


def test_a_restored_run_has_the_weights_counters_and_figures_of_its_checkpoint(tmp_path: Path) -> None:
    weights = save(config(), tmp_path)
    own, engine = saver(config(), tmp_path)
    restored = own.restore()
    assert restored is not None
    assert (restored.checkpoint, restored.metrics) == (
        f"{tmp_path}/checkpoints/step-00000001",
        {"eval/mood/accuracy": 0.5},
    )
    assert (engine.global_step, engine.micro_step) == (1, 1)
    found = engine.state().model
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize(
    ("key", "sections", "then", "now"),
    [
        ("seed", {"seed": 1}, "0", "1"),
        ("optim.learning_rate", {"optim": {"learning_rate": 0.5}}, "0.001", "0.5"),
        ("train.epochs", {"train": {"epochs": 99}}, "10", "99"),
        ("data.batch_size", {"data": {"url": "nowhere", "batch_size": 16}}, "8", "16"),
        (
            "tasks.puzzling.grid",
            {"tasks": {"mood": {"type": "classification"}, "puzzling": {"type": "puzzling", "grid": 3}}},
            "2",
            "3",
        ),
    ],
)
def test_a_changed_setting_is_refused_by_name(
    tmp_path: Path, key: str, sections: dict[str, Any], then: str, now: str
) -> None:
    save(config(), tmp_path)
    changed, _ = saver(config(**sections), tmp_path)
    with pytest.raises(UserError, match=rf"^run 'toy' was begun with {key}={then}, now it is {now}; .* name=toy-2$"):
        changed.restore()


def test_a_setting_that_is_new_is_refused_as_unset_before(tmp_path: Path) -> None:
    save(config(model={"backbone": "test_byobnet"}), tmp_path)
    tasks = {
        "mood": {"type": "classification"},
        "puzzling": {"type": "puzzling"},
        "again": {"type": "classification", "label": "mood"},
    }
    more, _ = saver(config(tasks=tasks), tmp_path)
    with pytest.raises(UserError, match=r"begun with tasks\.again\.[a-z_]+=unset, now it is .* \(and \d+ more\)"):
        more.restore()


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"report_every_steps": 1, "keep_checkpoints": 5}},
        {"data": {"url": "elsewhere", "batch_size": 8, "num_workers": 3, "buffer_bytes": 1 << 30}},
        {"launch": {"kind": "ray", "num_workers": 2}},
        {"tracking": {"experiment": "other"}},
        {"name": "renamed"},
    ],
    ids=lambda sections: next(iter(sections)),
)
def test_settings_that_move_no_weight_may_change(tmp_path: Path, sections: dict[str, Any]) -> None:
    save(config(), tmp_path)
    assert saver(config(**sections), tmp_path)[0].restore() is not None


def test_other_data_are_refused(tmp_path: Path) -> None:
    save(config(), tmp_path)
    with pytest.raises(UserError, match=r"^run 'toy' was begun on other data than nowhere holds now; .*name=toy-2$"):
        saver(config(), tmp_path, "another digest")[0].restore()


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    save(config(train={"keep_checkpoints": 2}), tmp_path, 1, 2, 3)
    kept = sorted(path.parent.name for path in (tmp_path / "checkpoints").glob("*/manifest.json"))
    assert kept == ["step-00000002", "step-00000003"]


def test_labels_with_other_classes_are_refused() -> None:
    trained = {"mood": Field(kind="category", classes=("good", "bad")), "age": Field(kind="number")}
    check_fields(trained, {"mood": trained["mood"]}, "set")
    with pytest.raises(UserError, match=r"^set: label 'mood' is one of bad, good there, "):
        check_fields(trained, {"mood": Field(kind="category", classes=("bad", "good"))}, "set")
