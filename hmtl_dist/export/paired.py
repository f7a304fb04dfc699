"""Whether one model is better than another on the same pictures: paired tests, pure functions of what both said.

Both take pictures for independent. Where several show one person they are not, and p-values are somewhat too small.

Shape legend: N pictures.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap

RESAMPLES = 9999


@dataclass(frozen=True)
class Compared:
    """A head of two models on the pictures that have its label."""

    head: str
    metric: str
    """What `champion` and `candidate` are."""
    num_samples: int
    champion: float
    candidate: float
    verdict: Literal["better", "worse", "no difference"]
    """Of the candidate, where the difference is more than chance."""
    evidence: str
    """The test and what it found."""


def compare_right(
    head: str, champion: NDArray[np.bool_], candidate: NDArray[np.bool_], alpha: float = 0.05
) -> Compared:
    """Compare who was right, by McNemar's test in its exact form: pictures that only one model got right.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 1947; the exact form is the binomial test of the discordant pairs.

    Args:
        head: Its name.
        champion: Whether the champion was right, `[N]`.
        candidate: Whether the candidate was right, `[N]`.
        alpha: Two-sided p-value below which a difference counts.
    """
    only_champion, only_candidate = int((champion & ~candidate).sum()), int((candidate & ~champion).sum())
    discordant = only_champion + only_candidate
    p_value = float(binomtest(only_candidate, discordant, 0.5).pvalue) if discordant else 1.0
    counts = p_value < alpha
    return Compared(
        head,
        "accuracy",
        len(champion),
        float(champion.mean()) if len(champion) else float("nan"),
        float(candidate.mean()) if len(candidate) else float("nan"),
        _verdict(counts and only_candidate > only_champion, counts and only_champion > only_candidate),
        f"McNemar p={p_value:.3g}: {only_candidate} right by the candidate alone, {only_champion} by the champion",
    )


def compare_errors(
    head: str,
    champion: NDArray[np.float64],
    candidate: NDArray[np.float64],
    alpha: float = 0.05,
    metric: str = "mean error",
) -> Compared:
    """Compare absolute errors by a bootstrap interval of their mean paired difference (BCa, Efron 1987).

    Args:
        head: Its name.
        champion: The champion's absolute errors, `[N]`.
        candidate: The candidate's, `[N]`.
        alpha: One less the interval's confidence.
        metric: What the mean of the errors is called.
    """
    gain = champion - candidate
    low = high = float(gain.mean()) if len(gain) else float("nan")
    if len(gain) > 1 and np.ptp(gain) > 0:
        found = bootstrap(
            (gain,), np.mean, n_resamples=RESAMPLES, confidence_level=1 - alpha, rng=np.random.default_rng(0)
        ).confidence_interval
        low, high = float(found.low), float(found.high)
    elif len(gain) < 2:
        low, high = -np.inf, np.inf
    return Compared(
        head,
        metric,
        len(gain),
        float(champion.mean()) if len(gain) else float("nan"),
        float(candidate.mean()) if len(gain) else float("nan"),
        _verdict(low > 0, high < 0),
        f"the candidate lowers it by {low:.3g} to {high:.3g} ({1 - alpha:.0%} interval)",
    )


def _verdict(better: bool, worse: bool) -> Literal["better", "worse", "no difference"]:
    return "better" if better else "worse" if worse else "no difference"
