"""Draws are a pure function of their key, the same bits in numpy and torch, and uniform."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hmtl_dist import rng

# Known answers of Random123 1.14 (tests/kat_vectors): counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
POSITIONS = np.array([0, 1, 7, 2**31, 2**32 + 5, 2**47 + 3], dtype=np.int64)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers_of_random123(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = (np.array([word], dtype=np.int64) for word in counter)
    assert tuple(int(word[0]) for word in rng.philox((c0, c1, c2, c3), key)) == expected


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("function", [rng.draws, rng.uniform, rng.normal_like, rng.permutations])
@pytest.mark.parametrize("count", [1, 4, 9])
def test_numpy_and_torch_give_the_same_bits(function: Callable[..., Any], count: int, device: str) -> None:
    arguments = (2**63 + 12345, 3)
    in_numpy = function(*arguments, POSITIONS, rng.Purpose.PUZZLE, count)
    in_torch = function(*arguments, torch.tensor(POSITIONS, device=device), rng.Purpose.PUZZLE, count)
    assert in_torch.device.type == device
    assert np.array_equal(in_numpy, in_torch.cpu().numpy())
    assert in_numpy.dtype == in_torch.cpu().numpy().dtype


def test_every_part_of_the_key_changes_the_draws() -> None:
    position = np.array([3])
    results = [
        rng.draws(1, 2, position, 4, 4),
        rng.draws(1 + 2**32, 2, position, 4, 4),
        rng.draws(1, 3, position, 4, 4),
        rng.draws(1, 2, position + 2**32, 4, 4),
        rng.draws(1, 2, position, 5, 4),
    ]
    assert len({result.tobytes() for result in results}) == len(results)


def test_more_draws_begin_with_the_fewer() -> None:
    many = rng.draws(0, 0, POSITIONS, rng.Purpose.MASK, 11)
    assert np.array_equal(many[:, :6], rng.draws(0, 0, POSITIONS, rng.Purpose.MASK, 6))


def test_a_position_draws_the_same_alone_and_in_company() -> None:
    together = rng.draws(5, 1, POSITIONS, rng.Purpose.CUTOUT, 5)
    alone = np.concatenate(
        [rng.draws(5, 1, POSITIONS[i : i + 1], rng.Purpose.CUTOUT, 5) for i in range(len(POSITIONS))]
    )
    assert np.array_equal(together, alone)


def test_uniform_draws_fill_the_unit_interval_evenly() -> None:
    values = rng.uniform(0, 0, np.arange(50_000), rng.Purpose.AUGMENT_COLOUR, 4)
    assert 0 <= values.min() < values.max() < 1
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    expected = values.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001


def test_noise_has_mean_0_variance_1_and_no_correlation_between_neighbours() -> None:
    noise = rng.normal_like(0, 0, np.arange(20), rng.Purpose.NOISE, 10_001).astype(np.float64)
    assert noise.shape == (20, 10_001)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.var() - 1) < 0.02
    assert abs((noise[:, 1:] * noise[:, :-1]).mean()) < 0.01
    assert abs((noise[1:] * noise[:-1]).mean()) < 0.01


def test_permutations_are_uniform() -> None:
    orders = rng.permutations(7, 0, np.arange(24_000), rng.Purpose.PUZZLE, 4)
    assert np.array_equal(np.sort(orders, axis=1), np.tile(np.arange(4), (24_000, 1)))
    counts = np.unique(orders @ np.array([64, 16, 4, 1]), return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 1000.0) ** 2 / 1000.0).sum() < 49.8  # chi-square, 23 degrees of freedom, p = 0.001
