"""How far a figure of a test set may be off: the interval that other people's pictures of the same kind would give.

Shape legend: N pictures, G groups.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap

from hmtl_dist.inference.info import Found

CONFIDENCE = 0.95
RESAMPLES = 9999
MAX_DRAWN = 1 << 22
"""Numbers of groups that are held at once."""
MAX_CORRECTED = 2000
"""Groups up to which the interval is corrected for bias and skew, at a cost of their number squared."""


def found(metric: str, scores: NDArray[np.float64], groups: NDArray[np.uint64]) -> Found:
    """Return a figure with its interval.

    Right or wrong answers, each on a picture of another group, have Wilson's interval. Everything else is resampled by
    whole groups, so that several pictures of one person do not count as several people: by BCa, or by percentiles
    where there are many groups. Where all groups are alike, which no resampling tells apart, a share has Wilson's
    interval of their number, and errors have none.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927; BCa of Efron,
    "Better bootstrap confidence intervals", JASA 1987.

    Args:
        metric: `accuracy`, of scores 0 and 1, or what the mean of errors is called.
        scores: Of each picture, `[N]`; NaN where it has no label.
        groups: Which of them belong together, `[N]`.

    Raises:
        ValueError: No picture has the label.
    """
    labelled = ~np.isnan(scores)
    if not labelled.any():
        raise ValueError("no picture has the label")
    scores = scores[labelled]
    _, member = np.unique(groups[labelled], return_inverse=True)
    sums, counts = (np.bincount(member, weights=values).astype(np.float64) for values in (scores, np.ones_like(scores)))
    low, high = _interval(metric == "accuracy", sums, counts)
    return Found(
        metric=metric,
        value=float(scores.mean()),
        low=low,
        high=high,
        num_samples=len(scores),
        num_groups=len(counts),
    )


def _interval(
    is_share: bool, sums: NDArray[np.float64], counts: NDArray[np.float64]
) -> tuple[float | None, float | None]:
    """Return the bounds of sum(sums) / sum(counts) over groups `[G]`."""
    if len(sums) < 2:
        return None, None
    alike = bool(np.ptp(sums / counts) == 0)
    if is_share and (alike or bool((counts == 1).all())):
        right = round(float((sums / counts).sum()))
        share = binomtest(right, len(sums)).proportion_ci(CONFIDENCE, method="wilson")
        return float(share.low), float(share.high)
    if alike:
        return None, None

    def ratio(sums: NDArray[np.float64], counts: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return sums.sum(axis=axis) / counts.sum(axis=axis)

    bounds = bootstrap(
        (sums, counts),
        ratio,
        paired=True,
        n_resamples=RESAMPLES,
        batch=max(1, MAX_DRAWN // len(sums)),
        confidence_level=CONFIDENCE,
        method="BCa" if len(sums) <= MAX_CORRECTED else "percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(bounds.low), float(bounds.high)
