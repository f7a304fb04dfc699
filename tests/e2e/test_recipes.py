"""The shipped recipes train on their data sets in the published layout, built into S3 by the command line.

Pictures are small, steps are two and the loader has no processes; all else is what the recipe says, its own `s3://`
address and precision included.
"""

import csv
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load, save
from typer.testing import CliRunner

from hmtl_dist.cli.app import app
from hmtl_dist.config.io import list_shipped, load_tree
from hmtl_dist.data.storage import S3Storage
from hmtl_dist.launch.driver import Finished, drive
from hmtl_dist.launch.evaluate import evaluate_run
from hmtl_dist.model.backbone import import_timm
from hmtl_dist.reproduce.suite import load_suite
from hmtl_dist.run_config import RunConfig
from tests.data.catalog.fabricate import affectnet_2017, aflw2000, ckplus, utkface, w300lp
from tests.e2e.drawn import journal
from tests.servers import S3Server

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]

STEPS = 2
SMALL = (
    "data.image_size=64",
    "data.batch_size=8",
    "data.num_workers=0",
    "train.report_every_steps=1",
    f"train.max_steps={STEPS}",
    "launch=local",
    "tracking.enabled=false",
)
SETS: dict[str, Callable[[Path], Path]] = {
    "affectnet": affectnet_2017,
    "ckplus": lambda folder: ckplus(folder, subjects=24, sequences=1, frames=4),
    "utkface": lambda folder: utkface(folder, 40),
    "300w-lp": lambda folder: w300lp(folder, faces=6, renderings=1),
    "aflw2000": aflw2000,
}
ELSEWHERE = ("demo", "faces_small", "synthetic_")
"""Recipes of drawn and of real faces, which other tests train."""
IMAGENET = [name for name in list_shipped("recipes") if "imagenet" in name]
FINETUNE = "affectnet_finetune"
ALONE = [name for name in list_shipped("recipes") if not name.startswith((*ELSEWHERE, *IMAGENET, FINETUNE))]


@pytest.fixture(scope="module", autouse=True)
def built(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every data set at the address that the recipes name; tests then see the S3 server through the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.env().items():
            patch.setenv(name, value)
        S3Storage("s3://hmtl", s3.access).create_bucket()
        for name, fabricate in SETS.items():
            source = fabricate(tmp_path_factory.mktemp(name))
            arguments = ["data", "build", name, str(source), f"s3://hmtl/{name}", "--num-workers", "1", "--json"]
            result = CliRunner().invoke(app, [*arguments, "--image-size", "80"])
            assert result.exit_code == 0, result.output
        yield


def train(recipe: str, *overrides: str) -> Finished:
    """Train a recipe for its two steps; every loss and the figure it goes by must be there, and be numbers."""
    tree = load_tree(RunConfig, recipe, [*SMALL, *overrides])
    assert tree.data.url.startswith("s3://hmtl/")
    finished = drive(tree, lambda progress: None)
    assert (finished.outcome.status, finished.outcome.global_step) == ("FINISHED", STEPS)
    windows: list[dict[str, float]] = [event["values"] for event in journal(finished.folder) if "values" in event]
    for task in (*tree.tasks, "total"):
        losses = [values[f"train/loss/{task}"] for values in windows if f"train/loss/{task}" in values]
        assert len(losses) == STEPS
        assert all(math.isfinite(loss) and loss > 0 for loss in losses), (task, losses)
    metrics = finished.outcome.metrics
    if tree.train.monitor is not None:
        assert tree.train.monitor in metrics
    assert {name.split("/")[1] for name in metrics if name.startswith("eval/")} == set(tree.tasks)
    return finished


def test_every_recipe_of_a_published_set_is_tried() -> None:
    rows = load_suite("paper").rows.values()
    assert {row.recipe for row in rows if row.recipe} <= set(ALONE)
    assert len(IMAGENET) == 3
    assert {name for name in list_shipped("recipes") if name.startswith(("pose_", "gender_"))} <= set(ALONE)


@pytest.mark.parametrize("recipe", ALONE)
def test_a_recipe_trains_from_s3(recipe: str) -> None:
    train(recipe)


def test_a_pose_is_evaluated_on_the_other_set() -> None:
    error = train("pose_sl", "name=pose").outcome.metrics["eval/pose/mae"]
    evaluation, _ = evaluate_run("pose")
    assert evaluation.num_samples == 6  # all of AFLW2000-3D
    assert evaluation.metrics["eval/pose/mae"] == pytest.approx(error, rel=1e-2)  # bf16 there, here fp32
    assert evaluate_run("pose", data="s3://hmtl/300w-lp", split="train")[0].num_samples > 6


def test_angles_are_turned_the_way_the_shards_have_them() -> None:
    for recipe in ("pose_sl", "pose_puzzling", "pose_inpainting"):
        assert load_tree(RunConfig, recipe).augment.roll_positive == "counterclockwise"


def test_fine_tuning_begins_with_the_pre_trained_encoder() -> None:
    before = train("affectnet_ssl_puzzling", "name=pre-training")
    after = train(FINETUNE, f"model.init_from={before.folder}", "name=tuned")
    assert stem_apart(after, cast("str", before.outcome.checkpoint)) < 0.01


@pytest.fixture
def published_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights where the hub's client keeps what it has fetched; made up, for there is no network in a test."""
    import huggingface_hub.constants as hub

    folder = tmp_path / "models--timm--efficientnet_b0.ra_in1k"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    torch.manual_seed(1234)  # pyright: ignore[reportUnknownMemberType]  # partial in torch
    model: Any = import_timm().create_model("efficientnet_b0")
    (snapshot / "model.safetensors").write_bytes(save(model.state_dict()))
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    return snapshot


@pytest.mark.parametrize("recipe", IMAGENET)
def test_a_recipe_from_imagenet_begins_with_the_published_weights(recipe: str, published_weights: Path) -> None:
    assert stem_apart(train(recipe), str(published_weights)) < 0.01


def stem_apart(finished: Finished, folder: str) -> float:
    """How far the first layer is from that of other weights; steps this small move it by less than 0.01."""
    mine, theirs = (
        next(
            value
            for name, value in load((Path(place) / "model.safetensors").read_bytes()).items()
            if "conv_stem" in name
        )
        for place in (cast("str", finished.outcome.checkpoint), folder)
    )
    return float((mine - theirs).abs().max())


def test_the_papers_table_is_reproduced_up_to_non_linear_evaluation_on_ckplus(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hmtl_dist", "reproduce", "paper", "--seeds", "0", "--jobs", "2"]
    rows = [word for row in ("sl-b0", "puzzling-b0", "ckplus") for word in ("--only", row)]
    settings = [word for setting in SMALL for word in ("--set", setting)]
    environment = {**os.environ, "HMTL_HOME": str(tmp_path)}
    command += [*rows, *settings]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "reproduce" / "paper" / "table.csv").open() as file:
        table = {line["row"]: line for line in csv.DictReader(file)}
    assert {name for name, line in table.items() if line["seeds"] == "1"} == {"sl-b0", "puzzling-b0", "ckplus"}
    assert [table[name]["paper"] for name in ("sl-b0", "puzzling-b0", "ckplus")] == ["60.34", "61.09", "98.23"]
    difference = float(table["puzzling-b0"]["mean"]) - float(table["sl-b0"]["mean"])
    assert float(table["puzzling-b0"]["difference"]) == pytest.approx(difference)
    assert 0 <= float(table["ckplus"]["mean"]) <= float(table["ckplus"]["best"]) <= 100
