"""Mixup and cutmix: who is mixed with whom, by how much, and what the loss makes of it."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hmtl_dist.augment import AugmentConfig
from hmtl_dist.augment.mixing import Mix, draw_mix
from hmtl_dist.config.io import load_tree
from hmtl_dist.data.config import DataConfig
from hmtl_dist.data.dataset.index import ShardIndex
from hmtl_dist.data.stream.batches import Stream
from hmtl_dist.errors import UserError
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tasks.base import Inputs, SingleRank
from hmtl_dist.tasks.classification import Classification, ClassificationConfig
from hmtl_dist.tasks.objective import Objective
from hmtl_dist.tasks.puzzling import Puzzling, PuzzlingConfig
from hmtl_dist.tasks.weighting import WeightingConfig
from hmtl_dist.train.inputs import InputMaker
from tests.data.stream.streaming import Resize, make_plan, make_set
from tests.tasks.batches import DEVICES, make_inputs
from tests.tasks.reference import Array, check_loss, log_softmax

stats: Any = importlib.import_module("scipy.stats")  # publishes no types

PER_LANE = 4
SIZE = (40, 30)


def config(**settings: float) -> AugmentConfig:
    return AugmentConfig.model_validate({"preset": "none", **settings})


def drawn(count: int = 4000, weight: Tensor | None = None, device: str = "cpu", **settings: float) -> Mix:
    positions = torch.arange(count, device=device)
    ones = torch.ones(count, device=device)
    return draw_mix(
        config(**settings),
        3,
        1,
        positions,
        weight=ones if weight is None else weight,
        per_lane=PER_LANE,
        size=SIZE,
    )


def test_partners_are_the_others_of_the_lane_equally_often() -> None:
    partners = drawn(mixup_probability=1).partners
    rows = torch.arange(len(partners))
    assert torch.equal(partners // PER_LANE, rows // PER_LANE)
    turns = np.bincount(((partners - rows) % PER_LANE).numpy(), minlength=PER_LANE)
    assert turns[0] == 0
    assert turns[1:] == pytest.approx(len(rows) / 3, rel=0.1)


def test_a_lane_draws_the_same_whatever_else_is_in_the_batch() -> None:
    whole = drawn(mixup_probability=0.5, cutmix_probability=0.5)
    lane = draw_mix(
        config(mixup_probability=0.5, cutmix_probability=0.5),
        3,
        1,
        torch.arange(16, 20),
        weight=torch.ones(4),
        per_lane=PER_LANE,
        size=SIZE,
    )
    assert torch.equal(lane.partners + 16, whole.partners[16:20])
    assert torch.equal(lane.share, whole.share[16:20])
    assert torch.equal(lane.own, whole.own[16:20])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_the_share_of_mixup_is_beta_distributed(alpha: float) -> None:
    share = drawn(mixup_probability=1, mixup_alpha=alpha).share.double().numpy()
    assert stats.kstest(share, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_a_share_of_the_samples_is_mixed() -> None:
    mix = drawn(mixup_probability=0.25, mixup_alpha=1)
    mixed = mix.share < 1
    assert mixed.float().mean() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(mix.partners[~mixed], torch.arange(len(mixed))[~mixed])


def test_mixup_blends_by_the_share_and_leaves_the_others_to_the_bit() -> None:
    images = torch.rand(400, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    mix = drawn(400, mixup_probability=0.5, mixup_alpha=1)
    blended = mix.pictures(images)
    share = mix.share[:, None, None, None]
    torch.testing.assert_close(blended, share * images + (1 - share) * images[mix.partners])
    assert torch.equal(blended[mix.share == 1], images[mix.share == 1])


def test_cutmix_lays_a_box_whose_area_is_the_partners_share() -> None:
    mix = drawn(400, cutmix_probability=1)
    numbers = torch.arange(400.0)[:, None, None, None].expand(-1, 3, *SIZE)
    for row, picture in enumerate(mix.pictures(numbers)):
        shown = (picture[0] == mix.partners[row]).nonzero()
        assert (picture[0] == row).float().mean().item() == pytest.approx(mix.share[row].item(), abs=1e-6)
        if len(shown):  # a whole box, without holes
            (top, left), (bottom, right) = shown.min(0).values, shown.max(0).values
            assert len(shown) == (bottom - top + 1) * (right - left + 1)
    # Boxes of a uniform area about uniform centres, cut off at the edges: what is left is more than half.
    assert 0.5 < mix.share.mean() < 0.75


def test_a_sample_without_a_picture_is_mixed_with_nobody() -> None:
    weight = torch.ones(400)
    weight[::4] = 0
    mix = drawn(400, weight, mixup_probability=1)
    assert (mix.share[::4] == 1).all()
    assert not (mix.partners[weight > 0] % 4 == 0).any()


@pytest.mark.parametrize("device", DEVICES)
def test_the_draw_is_the_same_on_every_device(device: str) -> None:
    here = drawn(mixup_probability=0.5, cutmix_probability=0.5)
    there = drawn(mixup_probability=0.5, cutmix_probability=0.5, device=device)
    assert torch.equal(here.share, there.share.cpu())
    assert torch.equal(here.partners, there.partners.cpu())
    assert torch.equal(here.own, there.own.cpu())


# --- from the stream to the loss -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    folder = tmp_path_factory.mktemp("set")
    return make_set(str(folder / "set"), folder, [40, 33, 23], broken=[5, 50])


def mixed_epoch(index: ShardIndex, world_size: int, *, num_workers: int = 0, micro_batches: int = 1) -> list[Tensor]:
    """What is seen in an epoch by all ranks, step after step: pictures, partners' ids, shares."""
    plan = make_plan(index, batch_size=16, lanes=4)
    data = DataConfig(url=index.url, batch_size=16, lanes=4, image_size=16, num_workers=num_workers, max_bad_share=1.0)
    ranks: list[list[Tensor]] = []
    for rank in range(world_size):
        maker = InputMaker(
            torch.device("cpu"),
            7,
            micro_batches=micro_batches,
            augment=AugmentConfig(preset="strong", mixup_probability=0.4, cutmix_probability=0.5),
            per_lane=plan.per_lane,
        )
        seen: list[Tensor] = []
        with Stream(index, plan, Resize(), data, rank=rank, world_size=world_size, epochs=1) as stream:
            for batch in stream:
                parts = list(maker(batch))
                ids = batch.sample_ids.reshape(len(parts), -1)
                rows: list[Tensor] = []
                for one, own_ids in zip(parts, ids, strict=True):
                    assert one.mix is not None
                    clean = one.mix.pictures(one.images).flatten(1)
                    columns = [own_ids[one.mix.partners].float(), one.mix.share]
                    rows.append(torch.cat([clean, torch.stack(columns, 1)], 1))
                seen.append(torch.cat(rows))
        ranks.append(seen)
    return [torch.cat(step) for step in zip(*ranks, strict=True)]


@pytest.fixture(scope="module")
def alone(index: ShardIndex) -> list[Tensor]:
    return mixed_epoch(index, 1)


@pytest.mark.parametrize(
    ("world_size", "num_workers", "micro_batches"), [(2, 0, 1), (4, 0, 1), (1, 3, 1), (2, 2, 2), (1, 0, 4)]
)
def test_mixed_pictures_depend_on_neither_ranks_nor_loader_workers_nor_accumulation(
    index: ShardIndex, alone: list[Tensor], world_size: int, num_workers: int, micro_batches: int
) -> None:
    again = mixed_epoch(index, world_size, num_workers=num_workers, micro_batches=micro_batches)
    assert len(alone) == 6
    assert all(torch.equal(one, other) for one, other in zip(alone, again, strict=True))


def test_a_mixed_picture_is_learned_as_both_labels_by_their_shares() -> None:
    labels, weight = np.array([0, -1, 2, 1, 1, 0]), np.array([1.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    partners, share = np.array([2, 0, 3, 1, 4, 2]), np.array([0.7, 0.25, 0.5, 0.875, 1.0, 0.6])
    mix = Mix(torch.tensor(partners), torch.tensor(share), torch.tensor(share)[:, None, None, None])
    inputs = Inputs(
        images=torch.rand(6, 3, 8, 8, dtype=torch.float64),
        labels={"mood": torch.tensor(labels)},
        weight=torch.tensor(weight),
        seed=0,
        epoch=0,
        positions=torch.arange(6),
        mix=mix,
    )
    settings = ClassificationConfig(class_weights="index", label_smoothing=0.1)
    task = Classification("mood", settings, ("a", "b", "c"), (40, 10, 20))
    by_class = np.array([1.0, 4.0, 2.0])

    def reference(output: Array) -> float:
        logs, numerator, denominator = log_softmax(output), 0.0, 0.0
        for row in range(6):
            for label, counts in ((labels[row], share[row]), (labels[partners[row]], 1 - share[row])):
                if label >= 0 and weight[row]:
                    target = 0.9 * np.eye(3)[label] + 0.1 / 3
                    numerator += counts * by_class[label] * -float(target @ logs[row])
                    denominator += counts * by_class[label]
        return numerator / denominator

    check_loss(task, inputs, reference, np.random.default_rng(0).normal(0, 1, (6, 3)))


def test_pretext_tasks_see_pictures_that_are_not_mixed() -> None:
    inputs = make_inputs(num_samples=4, labels={"mood": torch.tensor([0, 1, 1, 0])})
    mix = drawn(4, mixup_probability=1, mixup_alpha=1)
    inputs = replace(inputs, mix=mix)
    mood = Classification("mood", ClassificationConfig(), ("a", "b"), ())
    objective = Objective(
        [mood, Puzzling("puzzling", PuzzlingConfig(supervise="clean"))], WeightingConfig(), SingleRank()
    )
    views, _ = objective.prepare(inputs)
    assert torch.equal(views["clean"], mix.pictures(inputs.images))
    plain, _ = objective.prepare(replace(inputs, mix=None))
    assert torch.equal(views["puzzling"], plain["puzzling"])


RECIPE = """
data: {url: faces, batch_size: 32, lanes: 8}
augment: {mixup_probability: 0.5}
tasks:
  expression: {type: classification}
"""


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["tasks.pose={type: head_pose}"], "a picture mixed of two has no answer for tasks.pose of type head_pose"),
        (["tasks.age={type: age}"], "has no answer for tasks.age of type age"),
        (["tasks.age={type: regression}"], "has no answer for tasks.age of type regression"),
        (["tasks.va={type: valence_arousal}"], "has no answer for tasks.va of type valence_arousal"),
        (
            ["tasks.p={type: puzzling}"],
            "tasks.p.supervise=corrupted shows supervised heads a picture that is not mixed",
        ),
        (["tasks.p={type: inpainting, supervise: both}"], "tasks.p.supervise=both shows"),
        (["tasks.expression=null", "tasks.p={type: rotation}"], "no task reads mixed pictures"),
        (["data.batch_size=8"], "gives a lane one sample a step; use data.batch_size=16 or more"),
        (["augment.cutmix_probability=0.6"], "exceed 1 together"),
    ],
)
def test_mixing_is_refused_where_it_breaks_a_task(tmp_path: Path, overrides: list[str], said: str) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    with pytest.raises(UserError, match=r"^augment") as caught:
        load_tree(RunConfig, str(tmp_path / "recipe.yaml"), overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_accumulation_that_parts_partners_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    with pytest.raises(UserError, match=r"^engine.accumulation_steps: 16 would part the partners .* a divisor of 8 "):
        load_tree(RunConfig, str(tmp_path / "recipe.yaml"), ["engine.accumulation_steps=16"])


def test_mixing_goes_with_pretext_tasks_beside_the_clean_picture(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    overrides = ["tasks.p={type: puzzling, supervise: clean}", "augment.cutmix_probability=0.5"]
    assert load_tree(RunConfig, str(tmp_path / "recipe.yaml"), overrides).augment.cutmix_probability == 0.5
