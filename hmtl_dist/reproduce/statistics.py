"""What a handful of seeds can say: intervals, paired differences, exact tests. Pure functions of their numbers.

Six seeds are the least at which the sign-flip test can reach p < 0.05 (2 / 2^6 = 0.031). No p-value here is corrected
for the number of rows it is looked at in.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 9999
CONFIDENCE = 0.95
MAX_EXACT = 20
"""Most pairs whose sign flips are enumerated: about a million."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; without one (`low` and `high` None) where a single value says nothing of spread."""

    mean: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Comparison:
    """A row against its baseline over the seeds that both have."""

    difference: Estimate
    """Row minus baseline, seed by seed."""
    p_value: float
    """Two-sided, by the exact sign-flip permutation test."""
    improvement: float
    """Probability that a run of the row is better than one of the baseline."""


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean with a bootstrap 95 % interval.

    The interval is bias-corrected and accelerated (Efron 1987); its resamples are the same each time. With few values
    any bootstrap interval is somewhat too narrow.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("no values to estimate from")
    sample = np.asarray(values, np.float64)
    mean = float(sample.mean())
    if len(sample) < 2:
        return Estimate(mean, None, None, len(sample))
    if np.ptp(sample) == 0:
        return Estimate(mean, mean, mean, len(sample))
    found = cast("Any", bootstrap)(
        (sample,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(mean, float(found.low), float(found.high), len(sample))


def compare(row: Sequence[float], baseline: Sequence[float], *, higher_is_better: bool = True) -> Comparison:
    """Compare a row with its baseline; value i of both belongs to the same seed.

    Raises:
        ValueError: They are of unequal length or empty.
    """
    if len(row) != len(baseline):
        raise ValueError(f"{len(row)} values cannot be paired with {len(baseline)}")
    differences = [a - b for a, b in zip(row, baseline, strict=True)]
    better = (row, baseline) if higher_is_better else (baseline, row)
    return Comparison(estimate(differences), sign_flip_p_value(differences), probability_of_improvement(*better))


def sign_flip_p_value(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of paired differences under random sign flips (Fisher 1935, section 21).

    All 2^n assignments of signs are enumerated, so it is exact: the share of those whose mean is at least as far from
    0 as the observed one.

    Raises:
        ValueError: There are no differences, or more than `MAX_EXACT`.
    """
    if not 1 <= len(differences) <= MAX_EXACT:
        raise ValueError(f"{len(differences)} differences; 1 to {MAX_EXACT} are enumerated")
    values = np.asarray(differences, np.float64)
    sums = np.abs(np.array(list(product((1.0, -1.0), repeat=len(values)))) @ values)
    # Equal sums of other signs may differ in their last bits.
    tolerance = 1e-12 * max(np.abs(values).sum(), np.finfo(np.float64).tiny)
    return float(np.mean(sums >= abs(values.sum()) - tolerance))


def probability_of_improvement(better: Sequence[float], worse: Sequence[float]) -> float:
    """Return P(X > Y) + P(X = Y) / 2 over all pairs (Agarwal et al. 2021, "Deep RL at the Edge", eq. 1).

    It is the Mann-Whitney U of the two samples over their number of pairs; 0.5 says that they are alike.
    """
    x, y = np.asarray(better, np.float64)[:, None], np.asarray(worse, np.float64)[None, :]
    return float(np.mean((x > y) + 0.5 * (x == y)))
