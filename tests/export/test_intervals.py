"""Intervals of a test set's figures: known ones, and whether they hold what they promise."""

import numpy as np
import pytest
from numpy.typing import NDArray

from hmtl_dist.export.intervals import found

ALONE = np.arange(1000, dtype=np.uint64)


def test_share_of_pictures_each_alone_has_wilson_s_interval() -> None:
    """81 of 263: Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I."""
    told = found("accuracy", np.arange(263) < 81.0, ALONE[:263])  # pyright: ignore[reportArgumentType]
    assert told.low == pytest.approx(0.2553, abs=5e-5)
    assert told.high == pytest.approx(0.3662, abs=5e-5)
    assert (told.num_samples, told.num_groups) == (263, 263)


def test_all_right_is_not_certain() -> None:
    alone = found("accuracy", np.ones(20), ALONE[:20])
    in_pairs = found("accuracy", np.ones(20), ALONE[:20] // 2)
    assert alone.high == in_pairs.high == pytest.approx(1.0)
    assert (alone.low, in_pairs.low) == (pytest.approx(0.8389, abs=5e-5), pytest.approx(0.7225, abs=5e-5))


def test_pictures_without_the_label_do_not_count() -> None:
    told = found("mean error", np.array([1.0, np.nan, 3.0, np.nan]), ALONE[:4])
    assert (told.value, told.num_samples, told.num_groups) == (2.0, 2, 2)
    with pytest.raises(ValueError, match="no picture"):
        found("accuracy", np.full(3, np.nan), ALONE[:3])


def test_many_groups_of_unequal_sizes_are_resampled_by_percentiles() -> None:
    """A share over 5,000 people: as far off as the normal law says, of a ratio of sums over people."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 4, 5000)
    means = rng.random(5000)
    groups = np.repeat(np.arange(5000, dtype=np.uint64), sizes)
    told = found("mean error", np.repeat(means, sizes), groups)
    residual = sizes * (means - told.value)
    deviation = residual.std() / sizes.mean() / np.sqrt(5000)
    assert told.num_groups == 5000
    assert told.low == pytest.approx(told.value - 1.96 * deviation, abs=0.2 * deviation)
    assert told.high == pytest.approx(told.value + 1.96 * deviation, abs=0.2 * deviation)


def test_one_group_leaves_it_open() -> None:
    told = found("accuracy", np.array([1.0, 0.0, 1.0]), np.zeros(3, np.uint64))
    assert (told.low, told.high) == (None, None)


@pytest.mark.parametrize("metric", ["accuracy", "mean error"])
def test_nineteen_of_twenty_intervals_hold_the_truth_where_people_have_several_pictures(metric: str) -> None:
    """Ten pictures a person, of which all are alike: 60 people, not 600 pictures."""
    rng = np.random.default_rng(0)

    def draw() -> NDArray[np.float64]:
        people = rng.random(60) if metric == "accuracy" else rng.exponential(size=60)
        return np.repeat(people < 0.7 if metric == "accuracy" else people, 10).astype(np.float64)

    truth = 0.7 if metric == "accuracy" else 1.0
    groups = np.repeat(ALONE[:60], 10)
    held = 0
    for _ in range(60):
        told = found(metric, draw(), groups)
        held += told.low is not None and told.high is not None and told.low <= truth <= told.high
    assert 52 <= held <= 60  # 57 are expected; as pictures for themselves, half of them would hold it
