"""A trial goes on from another one's weights and cursor, with its own name and values; without Ray."""

from pathlib import Path

import pytest
import torch

from hmtl_dist.engine.checkpoint import load_checkpoint, load_newest
from hmtl_dist.launch.driver import drive
from hmtl_dist.launch.folders import run_folder, scratch_folder
from hmtl_dist.run_config import RunConfig
from hmtl_dist.train.base import Progress
from hmtl_dist.train.saving import checkpoints_folder
from hmtl_dist.tune.bridge import adopt, await_checkpoint
from tests.e2e.drawn import STEPS_PER_EPOCH, config, draw

pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("own_home")]
LIGHT = {"inpainting": None, "age": None, "pose": None}


@pytest.fixture(scope="module")
def faces_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return draw(str(tmp_path_factory.mktemp("bridge") / "faces"))


def run(name: str, url: str, storage: Path, *, weight: float, epochs: int) -> RunConfig:
    tasks = {"expression": {"type": "classification"}, "puzzling": {"type": "puzzling", "weight": weight}}
    tree = config(name, url, train={"epochs": epochs, "keep_checkpoints": 4}, launch={"storage": str(storage)})
    return RunConfig.model_validate(tree.model_dump(mode="json") | {"tasks": tasks})


def newest(one: RunConfig) -> tuple[str, dict[str, torch.Tensor], int]:
    found = load_newest(checkpoints_folder(run_folder(one)))
    assert found is not None
    return found[0], found[1].model, found[1].counters["global_step"]


def test_the_exploited_trial_goes_on_from_the_donors_weights_and_cursor(faces_url: str, tmp_path: Path) -> None:
    donor = run("donor", faces_url, tmp_path, weight=1.0, epochs=2)
    drive(donor, lambda step: None)
    url, weights, step = newest(donor)
    assert step == 2 * STEPS_PER_EPOCH

    weak = run("weak", faces_url, tmp_path, weight=5.0, epochs=1)
    drive(weak, lambda step: None)
    changed = run("weak", faces_url, tmp_path, weight=1.25, epochs=3)
    assert adopt(url, changed, "run-of-weak", scratch_folder(changed, 0)) == step

    taken_url, taken, taken_step = newest(changed)
    assert taken_url.startswith(run_folder(changed))
    assert taken_step == step
    assert all(torch.equal(taken[name], weights[name]) for name in weights)
    entries = load_checkpoint(taken_url)[2]
    assert entries["run_id"] == "run-of-weak"
    assert entries["config"]["tasks"]["puzzling"]["weight"] == 1.25

    lines: list[Progress] = []
    finished = drive(changed, lines.append, again="changed")
    assert finished.outcome.status == "FINISHED"
    assert (lines[0].phase, lines[0].global_step) == ("resume", step)
    assert min(line.global_step for line in lines[1:]) == step + 1
    assert finished.outcome.global_step == 3 * STEPS_PER_EPOCH


def test_what_was_taken_once_is_not_taken_again_and_a_trials_own_is_nothing_to_take(
    faces_url: str, tmp_path: Path
) -> None:
    donor = run("donor", faces_url, tmp_path, weight=1.0, epochs=1)
    drive(donor, lambda step: None)
    other = run("other", faces_url, tmp_path, weight=2.0, epochs=2)
    url, _, step = newest(donor)
    assert adopt(url, other, None, scratch_folder(other, 0)) == step
    drive(other, lambda step: None, again="changed")
    assert adopt(url, other, None, scratch_folder(other, 0)) == 0
    own, _, last = newest(other)
    assert last == 2 * STEPS_PER_EPOCH  # its progress since then is not lost
    assert adopt(own, other, None, scratch_folder(other, 0)) == 0


def test_a_checkpoint_that_is_gone_is_replaced_by_the_donors_newest(faces_url: str, tmp_path: Path) -> None:
    donor = run("donor", faces_url, tmp_path, weight=1.0, epochs=2)
    drive(donor, lambda step: None)
    url, _, step = newest(donor)
    other = run("other", faces_url, tmp_path, weight=2.0, epochs=3)
    assert adopt(url.rsplit("/", 1)[0] + "/step-00000001", other, None, scratch_folder(other, 0)) == step
    assert await_checkpoint(other, step) == newest(other)[0]
