"""Parts of whole groups: the classes' shares as equal as groups allow, the same for the same seed."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hmtl_dist.data.dataset.split import apportion


def people(count: int, seed: int = 0) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Groups of 1 to 30 samples, each with a leaning to one of 5 classes of which the last are rare."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 31, count)
    groups = np.repeat(generator.integers(0, 2**64, count, dtype=np.uint64), sizes)
    leaning = np.repeat(generator.choice(5, count, p=[0.4, 0.3, 0.2, 0.08, 0.02]), sizes)
    codes = np.where(generator.random(len(groups)) < 0.7, leaning, generator.integers(-1, 5, len(groups)))
    return groups, codes


def chi_squared(parts: NDArray[np.integer], codes: NDArray[np.int64], shares: list[float]) -> float:
    totals = np.bincount(codes + 1)
    counts = np.stack([np.bincount(codes[parts == part] + 1, minlength=len(totals)) for part in range(len(shares))])
    target = np.outer(shares, totals)
    return float(((counts - target) ** 2 / target).sum())


@settings(deadline=None)  # the first call warms up
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(-1, 3)), min_size=1, max_size=200),
    st.sampled_from([[0.2, 0.8], [1 / 3] * 3, [0.1] * 10]),
    st.integers(0, 99),
)
def test_no_group_is_in_two_parts_and_the_order_of_samples_does_not_matter(
    samples: list[tuple[int, int]], shares: list[float], seed: int
) -> None:
    groups = np.array([group for group, _ in samples], dtype=np.uint64)
    codes = np.array([code for _, code in samples])
    parts = apportion(groups, codes, shares, seed)
    assert all(len(np.unique(parts[groups == group])) == 1 for group in np.unique(groups))
    assert np.array_equal(apportion(groups[::-1], codes[::-1], shares, seed)[::-1], parts)


@settings(deadline=None)  # the first call warms up
@given(st.lists(st.integers(-1, 3), min_size=1, max_size=300), st.integers(0, 99))
def test_single_samples_are_cut_to_within_one_of_each_class(codes: list[int], seed: int) -> None:
    column = np.array(codes)
    parts = apportion(np.arange(len(codes), dtype=np.uint64), column, [0.25, 0.75], seed)
    for code in np.unique(column):
        assert abs((parts[column == code] == 0).sum() - 0.25 * (column == code).sum()) < 1


@pytest.mark.parametrize("seed", range(5))
def test_folds_of_people_are_far_more_even_than_chance(seed: int) -> None:
    groups, codes = people(300, seed)
    _, member = np.unique(groups, return_inverse=True)
    by_chance = (np.random.default_rng(seed).permutation(300) % 5)[member]
    shares = [0.2] * 5
    found = chi_squared(apportion(groups, codes, shares, seed), codes, shares)
    assert found < 1
    assert found < chi_squared(by_chance, codes, shares) / 100


def test_a_small_part_holds_large_groups_too() -> None:
    groups, codes = people(2000)
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    chosen = apportion(groups, codes, [0.2, 0.8], 0) == 0
    assert abs(chosen.mean() - 0.2) < 0.001
    assert abs(sizes[member][chosen].mean() / sizes[member].mean() - 1) < 0.1


def test_another_seed_cuts_otherwise() -> None:
    groups, codes = people(200)
    first, second = (apportion(groups, codes, [0.5, 0.5], seed) for seed in (0, 1))
    assert 0.2 < (first == second).mean() < 0.8


def test_a_million_samples_and_ten_thousand_people_are_cut_in_seconds() -> None:
    begun = time.process_time()
    apportion(np.arange(10**6, dtype=np.uint64), np.arange(10**6) % 8, [0.2, 0.8], 0)
    groups, codes = people(10_000)
    apportion(groups, codes, [0.1] * 10, 0)
    assert time.process_time() - begun < 10


def test_parts_are_equally_large_although_every_class_has_fewer_groups_than_parts() -> None:
    people, pictures = 24, 3
    groups = np.repeat(np.random.default_rng(0).integers(1, 2**62, people).astype(np.uint64), pictures)
    codes = np.repeat(np.arange(people) % 7, pictures)
    sizes = np.bincount(apportion(groups, codes, [0.1] * 10, 0), minlength=10) // pictures
    assert (sizes.min(), sizes.max()) == (2, 3)
