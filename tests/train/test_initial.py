"""SSL pre-training alone, then fine-tuning from its weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hmtl_dist.data.dataset.index import open_index
from hmtl_dist.engine.checkpoint import load_checkpoint
from hmtl_dist.errors import UserError
from hmtl_dist.launch.driver import Finished, drive
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tasks.base import SingleRank
from hmtl_dist.train.initial import initialise
from hmtl_dist.train.parts import build_parts
from tests.e2e import drawn

PUZZLING: dict[str, Any] = {"puzzling": {"type": "puzzling"}}
SUPERVISED: dict[str, Any] = {"expression": {"type": "classification"}}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return drawn.draw(str(tmp_path_factory.mktemp("drawn") / "set"))


def tree(name: str, url: str, tasks: dict[str, Any], **model: Any) -> RunConfig:
    sections = drawn.tree(url, train={"epochs": 1}, engine={"ema_decay": 0.0}, model=model)
    return RunConfig.model_validate({**sections, "name": name, "tasks": tasks, "weighting": "sum"})


def finish(config: RunConfig) -> Finished:
    finished = drive(config, lambda progress: None)
    assert finished.outcome.status == "FINISHED"
    return finished


@pytest.fixture(scope="module")
def pretrained(url: str) -> Finished:
    """A run that has no labels at all."""
    return finish(tree("pretrained", url, PUZZLING))


def initial(config: RunConfig) -> tuple[dict[str, torch.Tensor], str | None]:
    """The weights that a run begins with, and what is said of them."""
    header = open_index(config.data.url, "train").header
    model = build_parts(config, header, SingleRank()).model
    said = initialise(model, config.model)
    return dict(model.state_dict()), said


def test_a_run_of_pretext_tasks_alone_trains_and_is_evaluated(pretrained: Finished) -> None:
    assert set(pretrained.outcome.metrics) == {"eval/puzzling/loss", "eval/puzzling/accuracy"}


def test_the_backbone_begins_as_the_pretrained_one_and_the_head_as_ever(pretrained: Finished, url: str) -> None:
    saved = load_checkpoint(str(pretrained.outcome.checkpoint))[0].model
    fresh, _ = initial(tree("fine", url, SUPERVISED))
    begun, said = initial(tree("fine", url, SUPERVISED, init_from=pretrained.folder))
    backbone = [name for name in begun if name.startswith("backbone.")]
    assert all(torch.equal(begun[name], saved[name]) for name in backbone)
    assert not all(torch.equal(begun[name], fresh[name]) for name in backbone)
    assert all(torch.equal(begun[name], fresh[name]) for name in begun.keys() - set(backbone))
    assert said == f"weights of {pretrained.outcome.checkpoint}"


@pytest.mark.nightly
def test_fine_tuning_ends_elsewhere_than_training_from_scratch(pretrained: Finished, url: str) -> None:
    tuned = finish(tree("tuned", url, SUPERVISED, init_from=pretrained.folder))
    scratch = finish(tree("scratch", url, SUPERVISED))
    ended, other = (load_checkpoint(str(run.outcome.checkpoint))[0].model for run in (tuned, scratch))
    assert any(not torch.equal(ended[name], other[name]) for name in ended)


def test_heads_of_the_same_task_are_taken_over_on_request(pretrained: Finished, url: str) -> None:
    config = tree("heads", url, SUPERVISED | PUZZLING, init_from=pretrained.folder, init_heads=True)
    begun, said = initial(config)
    saved = load_checkpoint(str(pretrained.outcome.checkpoint))[0].model
    assert all(torch.equal(begun[name], saved[name]) for name in begun if name.startswith("heads.puzzling."))
    assert said is not None
    assert said.endswith("; heads taken: puzzling; heads begin anew: expression (not there)")


@pytest.mark.nightly
def test_what_in_painting_alone_never_had_begins_anew(url: str) -> None:
    inpainting = {"inpainting": {"type": "inpainting", "perceptual_weight": 0}}
    name = "test_efficientnet"  # its last convolution lies behind the last feature map
    painted = finish(tree("painted", url, inpainting, backbone=name))
    _, said = initial(tree("fine", url, SUPERVISED, backbone=name, init_from=painted.folder))
    assert said is not None
    assert "behind the last feature map begin anew" in said


def test_another_backbone_is_one_line(pretrained: Finished, url: str) -> None:
    config = tree("other", url, SUPERVISED, backbone="test_resnet", init_from=pretrained.folder)
    with pytest.raises(UserError, match=r"holds test_byobnet, model.backbone is test_resnet; set model.backbone=test"):
        initial(config)


def test_heads_without_a_match_are_one_line(pretrained: Finished, url: str) -> None:
    config = tree("none", url, SUPERVISED, init_from=pretrained.folder, init_heads=True)
    with pytest.raises(UserError, match=r"no head of .* matches: expression \(not there\); set model.init_heads=false"):
        initial(config)


def test_a_folder_without_a_checkpoint_is_one_line(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no complete checkpoint"):
        initial(tree("gone", url, SUPERVISED, init_from=str(tmp_path)))
