import math
import multiprocessing
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from hmtl_dist.data.dataset.schema import Field, IndexHeader
from hmtl_dist.engine.base import Engine
from hmtl_dist.engine.checkpoint import newest_manifest
from hmtl_dist.errors import UserError
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tracking.jsonl import Journal
from hmtl_dist.train.base import RankContext, RunContext
from hmtl_dist.train.saving import Saver, check_changes, check_fields, checkpoints_folder, saved_config
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
    rank_context = RankContext(0, 1, 0, "cpu", folder / "scratch", RunContext(str(folder)))
    return Saver(tree, rank_context, engine, objective, data=header(digest)), engine


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
    own.saved()
    return engine.state().model


def manifest(folder: Path) -> dict[str, Any]:
    found = newest_manifest(checkpoints_folder(str(folder)))
    assert found is not None
    return found


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
    with pytest.raises(UserError, match=rf"^run 'toy' was begun with {key}={then}, now it is {now}; .* name=toy-2$"):
        check_changes(manifest(tmp_path), config(**sections))


def test_a_checkpoint_of_before_is_read_without_what_is_no_setting_any_more(tmp_path: Path) -> None:
    save(config(), tmp_path)
    entries = manifest(tmp_path)
    entries["config"]["tracking"]["run_id"] = "abc"
    assert saved_config(entries) == config()


@pytest.mark.parametrize(("schedule", "accepted"), [("constant", True), ("cosine", False), ("step", False)])
@pytest.mark.parametrize("changed", [{"epochs": 99}, {"max_steps": 7}], ids=["epochs", "max_steps"])
def test_a_run_may_end_elsewhere_where_no_learning_rate_was_planned_for_its_end(
    tmp_path: Path, changed: dict[str, int], schedule: str, *, accepted: bool
) -> None:
    save(config(optim={"schedule": schedule}), tmp_path)
    longer = config(optim={"schedule": schedule}, train=changed)
    if accepted:
        check_changes(manifest(tmp_path), longer)
    else:
        with pytest.raises(UserError, match=rf"; optim\.schedule={schedule} has planned the learning rate for that "):
            check_changes(manifest(tmp_path), longer)


def test_a_schedule_that_planned_nothing_may_not_begin_to(tmp_path: Path) -> None:
    save(config(optim={"schedule": "constant"}), tmp_path)
    with pytest.raises(UserError, match=r"optim\.schedule=constant, now it is cosine, and with train\.epochs=10"):
        check_changes(manifest(tmp_path), config(optim={"schedule": "cosine"}, train={"epochs": 99}))


def test_a_setting_that_is_new_is_refused_as_unset_before(tmp_path: Path) -> None:
    save(config(model={"backbone": "test_byobnet"}), tmp_path)
    tasks = {
        "mood": {"type": "classification"},
        "puzzling": {"type": "puzzling"},
        "again": {"type": "classification", "label": "mood"},
    }
    with pytest.raises(UserError, match=r"begun with tasks\.again\.[a-z_]+=unset, now it is .* \(and \d+ more\)"):
        check_changes(manifest(tmp_path), config(tasks=tasks))


def test_another_order_of_the_tasks_is_refused(tmp_path: Path) -> None:
    tasks = {"puzzling": {"type": "puzzling"}, "mood": {"type": "classification"}}
    save(config(tasks=tasks), tmp_path)
    check_changes(manifest(tmp_path), config(tasks=tasks))
    with pytest.raises(UserError, match="order of tasks=puzzling, mood, now it is mood, puzzling"):
        check_changes(manifest(tmp_path), config(tasks=dict(sorted(tasks.items()))))


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"report_every_steps": 1, "keep_checkpoints": 5}},
        {"data": {"url": "elsewhere", "batch_size": 8, "num_workers": 3, "buffer_bytes": 1 << 30}},
        {"launch": {"kind": "ray", "num_workers": 2}},
        {"launch": {"kind": "ray", "num_workers": "auto"}},
        {"tracking": {"experiment": "other"}},
        {"name": "renamed"},
    ],
    ids=lambda sections: next(iter(sections)),
)
def test_settings_that_move_no_weight_may_change(tmp_path: Path, sections: dict[str, Any]) -> None:
    save(config(), tmp_path)
    check_changes(manifest(tmp_path), config(**sections))
    assert saver(config(**sections), tmp_path)[0].restore() is not None


def test_figures_that_wait_for_mlflow_are_in_the_checkpoint(tmp_path: Path) -> None:
    away = config(tracking={"enabled": True, "uri": "http://127.0.0.1:9", "system_metrics": False})
    own, _ = saver(away, tmp_path)
    journal = Journal(tmp_path / "scratch")
    for step, loss in ((1, 1.0), (2, math.inf), (3, 3.0)):
        journal.metrics({"train/loss/total": loss}, step)
    own.save(2, {"eval/mood/accuracy": math.nan}, evaluated_at=2)
    own.saved()
    journal.close("FAILED")
    restored = saver(away, tmp_path)[0].restore()
    assert restored is not None
    assert [(event["step"], event["values"]) for event in restored.undelivered] == [
        (1, {"train/loss/total": 1.0}),
        (2, {"train/loss/total": math.inf}),
    ]
    assert math.isnan(restored.metrics["eval/mood/accuracy"])
    assert restored.evaluated_at == 2


def test_other_data_are_refused(tmp_path: Path) -> None:
    save(config(), tmp_path)
    with pytest.raises(UserError, match=r"^run 'toy' was begun on other data than nowhere holds now; .*name=toy-2$"):
        saver(config(), tmp_path, "another digest")[0].restore()


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    save(config(train={"keep_checkpoints": 2}), tmp_path, 1, 2, 3)
    kept = sorted(path.parent.name for path in (tmp_path / "checkpoints").glob("*/manifest.json"))
    assert kept == ["step-00000002", "step-00000003"]


def test_saving_returns_at_once_and_what_is_saved_is_the_state_of_that_moment(tmp_path: Path) -> None:
    own, engine = saver(config(), tmp_path)
    before = engine.state().model
    assert own.save(1, {}) is None
    with torch.no_grad():
        for parameter in engine.module.parameters():
            parameter.zero_()
    assert own.saved() == f"{tmp_path}/checkpoints/step-00000001"
    other, restored = saver(config(seed=0), tmp_path)
    assert other.restore() is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in restored.state().model.items())


def test_a_failing_upload_is_an_error_at_the_next_save_or_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    for call in ("save", "saved"):
        own, _ = saver(config(), tmp_path)
        own.save(1, {})
        with pytest.raises(UserError, match="checkpoints"):
            own.save(2, {}) if call == "save" else own.saved()


def test_time_of_a_checkpoint_is_told_once(tmp_path: Path) -> None:
    own, _ = saver(config(), tmp_path)
    assert own.metrics() == {}
    own.save(1, {})
    own.saved()
    metrics = own.metrics()
    assert 0 < metrics["checkpoint/seconds"] < 60
    assert own.metrics() == {}


def test_the_clock_asks_for_a_checkpoint(tmp_path: Path) -> None:
    assert saver(config(train={"checkpoint_every_minutes": 1e-9}), tmp_path)[0].due()
    assert not saver(config(train={"checkpoint_every_minutes": 60}), tmp_path)[0].due()
    assert not saver(config(train={"checkpoint_every_minutes": None}), tmp_path)[0].due()


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    left = [tmp_path / "scratch" / "hmtl-checkpoint-abc", tmp_path / "checkpoints" / "step-00000001"]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / ".temporary").touch()
    saver(config(), tmp_path)[0].restore()
    save(config(train={"keep_checkpoints": 1}), tmp_path, 1, 2)
    assert not left[0].exists()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_labels_with_other_classes_are_refused() -> None:
    trained = {"mood": Field(kind="category", classes=("good", "bad")), "age": Field(kind="number")}
    check_fields(trained, {"mood": trained["mood"]}, "set")
    with pytest.raises(UserError, match=r"^set: label 'mood' is one of bad, good there, "):
        check_fields(trained, {"mood": Field(kind="category", classes=("bad", "good"))}, "set")


def restore_as_one_of_two(rank: int, folder: str, kept: str) -> None:
    """Rank 1 is told of a folder that is not there, and must not need it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    tree = config(engine={"kind": "plain", "ema_decay": 0.9}, seed=rank)
    objective, engine = build(tree)
    context = RunContext(kept if rank == 0 else f"{folder}/not/there")
    own = Saver(
        tree, RankContext(rank, 2, 0, "cpu", Path(folder) / "scratch", context), engine, objective, data=header(DATA)
    )
    restored = own.restore()
    assert restored is not None
    whole = {**engine.module.state_dict(), "metric": torch.tensor(restored.metrics["eval/mood/accuracy"])}
    whole |= {f"optimizer/{key}": value for key, value in replicated(engine).items()}
    torch.save(whole, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def replicated(engine: Engine) -> dict[str, Tensor]:
    """The optimizer's state as this rank holds it."""
    states: dict[int, dict[str, Tensor]] = cast("Any", engine).optimizer.state_dict()["state"]
    return {f"{index}/{kind}": value for index, kinds in states.items() for kind, value in kinds.items()}


@pytest.mark.nightly
def test_a_checkpoint_is_read_once_for_all_ranks(tmp_path: Path) -> None:
    kept = tmp_path / "run"
    weights = save(config(engine={"kind": "plain", "ema_decay": 0.9}), kept)
    context = multiprocessing.get_context("spawn")
    arguments = (str(tmp_path), str(kept))
    processes = [context.Process(target=restore_as_one_of_two, args=(rank, *arguments)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
        assert process.exitcode == 0
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(one[name], tensor) for name, tensor in weights.items())
    assert one.keys() == other.keys()
    assert any(name.startswith("optimizer/") for name in one)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
