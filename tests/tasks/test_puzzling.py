from typing import Literal

import numpy as np
import pytest
import torch

from hmtl_dist import rng
from hmtl_dist.tasks.base import SingleRank
from hmtl_dist.tasks.puzzling import Puzzling, PuzzlingConfig
from hmtl_dist.tasks.tiles import shuffle_tiles
from tests.tasks.batches import DEVICES, make_inputs
from tests.tasks.reference import Array, check_loss, log_softmax


def task(grid: Literal[2, 3] = 2, reduction: Literal["mean", "sum"] = "mean") -> Puzzling:
    return Puzzling("puzzling", PuzzlingConfig(grid=grid, reduction=reduction))


@pytest.mark.parametrize("grid", [2, 3])
def test_the_inverse_permutation_restores_the_picture(grid: Literal[2, 3]) -> None:
    inputs = make_inputs(num_samples=16)
    prepared = task(grid).prepare(inputs)

    restored = shuffle_tiles(prepared.views["puzzling"], prepared.targets["tiles"].argsort(1), grid)

    assert torch.equal(restored, inputs.images)


@pytest.mark.parametrize("grid", [2, 3])
def test_each_slot_shows_the_tile_its_target_names(grid: Literal[2, 3]) -> None:
    inputs = make_inputs(size=12)
    prepared = task(grid).prepare(inputs)

    side = 12 // grid
    puzzle, tiles = prepared.views["puzzling"], prepared.targets["tiles"]
    for b in range(len(puzzle)):
        for slot, tile in enumerate(tiles[b].numpy().tolist()):
            here, there = divmod(slot, grid), divmod(tile, grid)
            assert torch.equal(
                puzzle[b, :, here[0] * side :, here[1] * side :][:, :side, :side],
                inputs.images[b, :, there[0] * side :, there[1] * side :][:, :side, :side],
            )


def test_sides_that_the_grid_does_not_divide_are_resized_and_back() -> None:
    columns = torch.linspace(0, 1, 32).expand(1, 3, 32, 32).contiguous()

    puzzle = shuffle_tiles(columns, torch.arange(9)[None], 3)

    assert puzzle.shape == columns.shape
    torch.testing.assert_close(puzzle, columns, atol=0.02, rtol=0)


def test_the_draw_is_the_same_in_numpy_and_torch() -> None:
    inputs = make_inputs(num_samples=64)

    tiles = task(3).prepare(inputs).targets["tiles"]

    positions = inputs.positions.numpy()
    assert np.array_equal(tiles.numpy(), rng.permutations(inputs.seed, 0, positions, rng.Purpose.PUZZLE, 9))


@pytest.mark.parametrize("device", DEVICES)
def test_puzzles_are_the_same_on_every_device(device: str) -> None:
    positions = torch.arange(500)
    tiles = rng.permutations(11, 2, positions.to(device), rng.Purpose.PUZZLE, 9)

    expected = rng.permutations(11, 2, positions.numpy(), rng.Purpose.PUZZLE, 9)
    assert np.array_equal(tiles.cpu().numpy(), expected)


def test_every_arrangement_is_equally_likely() -> None:
    positions = torch.arange(24_000)
    tiles = rng.permutations(1, 0, positions, rng.Purpose.PUZZLE, 4)

    counts = np.unique(tiles.numpy(), axis=0, return_counts=True)[1]

    assert len(counts) == 24
    assert (np.abs(counts - 1000) < 150).all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_is_the_cross_entropy_of_the_slots(reduction: Literal["mean", "sum"]) -> None:
    inputs = make_inputs(weight=torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64))
    targets = task(2, reduction).prepare(inputs).targets

    def reference(output: Array) -> float:
        logs = log_softmax(output.reshape(4, 4, 4))
        right = np.take_along_axis(logs, targets["tiles"].numpy()[:, :, None], 2)[[0, 2, 3], :, 0]
        return -float(right.mean() if reduction == "mean" else right.sum(1).mean())

    output = np.random.default_rng(0).normal(0, 1, (4, 16))
    check_loss(task(2, reduction), inputs, reference, output, view="puzzling", targets=targets)


def test_solving_the_puzzle_gives_full_accuracy_and_shows_the_picture() -> None:
    inputs = make_inputs()
    puzzle = task()
    prepared = puzzle.prepare(inputs)
    output = torch.nn.functional.one_hot(prepared.targets["tiles"], 4).float().flatten(1) * 10

    right, slots = puzzle.loss({"puzzling": output}, prepared, inputs, SingleRank()).metrics["accuracy"]

    assert (right.item(), slots.item()) == (16, 16)
    assert torch.equal(puzzle.illustrate({"puzzling": output}, prepared, inputs)["put back"], inputs.images)
