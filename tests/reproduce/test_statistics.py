"""Statistics of a few seeds, against SciPy and against hand calculation."""
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, permutation_test

from hmtl_dist.reproduce.statistics import compare, estimate, probability_of_improvement, sign_flip_p_value

VALUES = [0.61, 0.64, 0.59, 0.66, 0.62, 0.63]


def test_one_value_has_no_interval_and_equal_values_an_interval_of_none_width() -> None:
    assert (estimate([0.5]).low, estimate([0.5]).high) == (None, None)
    assert (estimate([0.5] * 4).low, estimate([0.5] * 4).high) == (0.5, 0.5)


def test_an_interval_holds_the_mean_and_lies_inside_the_values() -> None:
    found = estimate(VALUES)
    assert found.mean == pytest.approx(0.625)
    assert found.low is not None
    assert found.high is not None
    assert min(VALUES) < found.low < found.mean < found.high < max(VALUES)
    assert estimate(VALUES) == found


def test_intervals_cover_the_true_mean_about_as_often_as_they_say() -> None:
    draws = np.random.default_rng(1).normal(size=(150, 20))
    found = [estimate(row.tolist()) for row in draws]
    assert 0.88 <= np.mean([e.low <= 0 <= e.high for e in found if e.low is not None and e.high is not None]) <= 0.99


def test_intervals_of_few_seeds_shift_and_scale_with_the_values() -> None:
    found, moved = estimate(VALUES), estimate([100 * value + 7 for value in VALUES])
    assert found.low is not None
    assert moved.low == pytest.approx(100 * found.low + 7)


def test_six_seeds_of_one_sign_give_the_least_p_value_and_five_cannot_reach_the_level() -> None:
    assert sign_flip_p_value([1, 2, 3, 4, 5, 6]) == 2 / 64
    assert sign_flip_p_value([1, 2, 3, 4, 5]) == 2 / 32


def test_the_sign_flip_test_by_hand() -> None:
    # Sums of +-1 +-2 +-4 are 7, 5, 3, 1 and their negatives; |1 + 2 - 4| = 1 is reached by all of the eight.
    assert sign_flip_p_value([1, 2, -4]) == 1.0
    assert sign_flip_p_value([-1, 2, 4]) == 4 / 8
    assert sign_flip_p_value([0.0, 0.0]) == 1.0


def test_the_sign_flip_test_equals_scipys() -> None:
    differences = np.random.default_rng(0).normal(0.4, 1, 9)
    theirs = permutation_test(
        (differences,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        n_resamples=10_000,
        alternative="two-sided",
    )
    assert sign_flip_p_value(differences.tolist()) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_the_probability_of_improvement_is_the_scaled_mann_whitney_u() -> None:
    better, worse = [3.0, 1.0, 4.0, 1.0, 5.0], [2.0, 1.0, 8.0]
    assert probability_of_improvement(better, worse) == mannwhitneyu(better, worse).statistic / 15
    assert probability_of_improvement([2, 3], [1, 1]) == 1.0
    assert probability_of_improvement([1, 1], [1]) == 0.5


def test_less_of_an_error_is_an_improvement() -> None:
    found = compare([5.0, 6.0], [7.0, 8.0], higher_is_better=False)
    assert (found.difference.mean, found.improvement, found.p_value) == (-2.0, 1.0, 0.5)


def test_unequal_seeds_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match=r"2 values cannot be paired with 1"):
        compare([1.0, 2.0], [1.0])
