from typing import Literal

import numpy as np
import pytest
import torch

from hmtl_dist.tasks.base import SingleRank
from hmtl_dist.tasks.objective import wire
from hmtl_dist.tasks.rotation import Rotation, RotationConfig
from hmtl_dist.tasks.supervised import Classification, ClassificationConfig
from hmtl_dist.tasks.tiles import turn_tiles
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
    assert torch.equal(task().illustrate({"rotation": output}, prepared, inputs)[2], inputs.images)


@pytest.mark.parametrize(
    ("supervise", "views"), [("clean", ("clean",)), ("corrupted", ("rotation",)), ("both", ("clean", "rotation"))]
)
def test_supervised_heads_read_what_it_asks_for(supervise: str, views: tuple[str, ...]) -> None:
    mood = Classification("mood", ClassificationConfig(), ("good", "bad"), ())
    rotation = Rotation("rotation", RotationConfig.model_validate({"supervise": supervise}))

    assert wire([mood, rotation])["mood"] == views
