from typing import Literal

import numpy as np
import pytest
import torch

from hmtl_dist.augment import AugmentConfig
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.tasks.base import SingleRank
from hmtl_dist.tasks.classification import Classification, ClassificationConfig
from hmtl_dist.tasks.objective import Objective, wire
from hmtl_dist.tasks.regression import Regression, RegressionConfig
from hmtl_dist.tasks.rotation import Rotation, RotationConfig
from hmtl_dist.tasks.tiles import turn_tiles
from hmtl_dist.tasks.weighting import WeightingConfig
from tests.tasks.batches import DEVICES, make_inputs
from tests.tasks.reference import Array, check_loss, log_softmax


def task(grid: Literal[1, 2, 3] = 2, reduction: Literal["mean", "sum"] = "mean") -> Rotation:
    return Rotation("rotation", RotationConfig(grid=grid, reduction=reduction))


@pytest.mark.parametrize("grid", [1, 2, 3])
def test_each_tile_is_turned_counter_clockwise_by_its_target(grid: Literal[1, 2, 3]) -> None:
    inputs = make_inputs(size=12)

    prepared = task(grid).prepare(inputs)

    side = 12 // grid
    turned, turns = prepared.views["rotation"].numpy(), prepared.targets["turns"].numpy()
    for b in range(len(turned)):
        for tile, quarters in enumerate(turns[b]):
            row, column = divmod(tile, grid)
            place = (slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side))
            expected = np.rot90(inputs.images[b].numpy()[:, *place], quarters, (1, 2))
            assert np.array_equal(turned[b][:, *place], expected)


def test_sides_that_the_grid_does_not_divide_are_resized_and_back() -> None:
    columns = torch.linspace(0, 1, 32).expand(1, 3, 32, 32).contiguous()

    same = turn_tiles(columns, torch.zeros(1, 9, dtype=torch.int64), 3)

    assert same.shape == columns.shape
    torch.testing.assert_close(same, columns, atol=0.02, rtol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_turns_are_equally_likely_and_the_same_for_a_position_alone(device: str) -> None:
    inputs = make_inputs(torch.zeros(2000, 3, 4, 4, device=device))
    turns = task().prepare(inputs).targets["turns"].cpu()

    counts = np.bincount(turns.flatten().numpy(), minlength=4)
    assert (np.abs(counts - 2000) < 200).all()
    assert torch.equal(task().prepare(inputs.every(7)).targets["turns"].cpu(), turns[::7])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_is_the_cross_entropy_of_the_tiles(reduction: Literal["mean", "sum"]) -> None:
    inputs = make_inputs(weight=torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64))
    targets = task().prepare(inputs).targets

    def reference(output: Array) -> float:
        logs = log_softmax(output.reshape(4, 4, 4))
        right = np.take_along_axis(logs, targets["turns"].numpy()[:, :, None], 2)[[0, 2, 3], :, 0]
        return -float(right.mean() if reduction == "mean" else right.sum(1).mean())

    output = np.random.default_rng(0).normal(0, 1, (4, 16))
    check_loss(task(2, reduction), inputs, reference, output, view="rotation", targets=targets)


def test_saying_every_turn_gives_full_accuracy_and_shows_the_picture() -> None:
    inputs = make_inputs()
    prepared = task().prepare(inputs)
    output = torch.nn.functional.one_hot(prepared.targets["turns"], 4).float().flatten(1)

    right, tiles = task().loss({"rotation": output}, prepared, inputs, SingleRank()).metrics["accuracy"]

    assert (right.item(), tiles.item()) == (16, 16)
    assert torch.equal(task().illustrate({"rotation": output}, prepared, inputs)["turned back"], inputs.images)


@pytest.mark.parametrize(
    ("supervise", "views"), [("clean", ("clean",)), ("corrupted", ("rotation",)), ("both", ("clean", "rotation"))]
)
def test_supervised_heads_read_what_it_asks_for(supervise: str, views: tuple[str, ...]) -> None:
    mood = Classification("mood", ClassificationConfig(), ("good", "bad"), ())
    rotation = Rotation("rotation", RotationConfig.model_validate({"supervise": supervise}))

    assert wire([mood, rotation])["mood"] == views


ROLL = torch.tensor([10.0, -170.0, torch.nan, 95.0])
ANGLES = {"yaw": torch.full((4,), 5.0), "pitch": torch.zeros(4), "roll": ROLL}


@pytest.mark.parametrize("positive", ["counterclockwise", "clockwise"])
@pytest.mark.parametrize("supervise", ["corrupted", "both"])
@pytest.mark.parametrize("labels", [("roll",), ("yaw", "roll")])
def test_a_head_that_reads_a_turned_picture_learns_its_turned_roll(
    labels: tuple[str, ...], supervise: str, positive: str
) -> None:
    degrees = Field(kind="number", unit="degrees")
    config = RegressionConfig(labels=labels, loss="l1", scale=dict.fromkeys(labels, 1.0))
    pose = Regression("pose", config, dict.fromkeys(labels, degrees))
    rotation = Rotation("rotation", RotationConfig.model_validate({"grid": 1, "supervise": supervise}))
    augment = AugmentConfig.model_validate({"preset": "none", "roll_positive": positive})
    objective = Objective([pose, rotation], WeightingConfig(), SingleRank(), augment)
    inputs = make_inputs(labels=ANGLES)
    _, prepared = objective.prepare(inputs)
    sizes = {"pose": len(labels), "rotation": 4}
    zeros = {name: {view: torch.zeros(4, sizes[name]) for view in read} for name, read in objective.wiring.items()}
    sign = 1 if positive == "counterclockwise" else -1
    turned = (ROLL + sign * 90 * prepared["rotation"].targets["turns"][:, 0] + 180) % 360 - 180
    assert not torch.equal(turned.nan_to_num(), ROLL.nan_to_num())

    metrics = objective.losses(zeros, prepared, inputs).metrics

    rolls = torch.cat([turned, ROLL]) if supervise == "both" else turned
    assert metrics["pose/mae_roll"].item() == pytest.approx(rolls.abs().nanmean().item())
    if "yaw" in labels:
        assert metrics["pose/mae_yaw"].item() == 5


def test_tiles_that_are_turned_by_themselves_turn_no_label() -> None:
    assert task(2).prepare(make_inputs()).turned is None
