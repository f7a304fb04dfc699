"""Lin's concordance correlation coefficient, from sums that add up over batches and ranks.

Shape legend: B samples, R labels, M = 6 moments.
"""

import torch
from torch import Tensor

EPSILON = 1e-12


def moments(predictions: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Return sums from which a concordance follows, float64 `[R, M]`: of 1, p, t, p^2, t^2 and p t.

    Args:
        predictions: p, `[B, R]`.
        targets: t without NaN, `[B, R]`.
        valid: 0 where there is no label, `[B, R]`.
    """
    # float64: variances are differences of large sums.
    one, p, t = (valid > 0).double(), predictions.double(), targets.double()
    return torch.stack([(one * term).sum(0) for term in (torch.ones_like(t), p, t, p * p, t * t, p * t)], 1)


def concordance(sums: Tensor) -> Tensor:
    """Return the concordance correlation coefficient of each label, `[R]` from `[R, M]`; 0 where nothing varies."""
    count = sums[:, 0].clamp_min(1)
    p, t, pp, tt, pt = (sums[:, 1:] / count[:, None]).unbind(1)
    spread = pp - p * p + tt - t * t + (p - t) ** 2
    return 2 * (pt - p * t) / (spread + EPSILON)
