"""Which sample falls to which split: whole groups, near the asked fractions, the same for the same seed."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hmtl_dist.errors import UserError


def parse_split(text: str) -> dict[str, float]:
    """Read `train=0.8,val=0.2`.

    Raises:
        UserError: when it is not of this form, a name is given twice, or the fractions do not add up to 1.
    """
    problem = UserError(
        f"split {text!r} is not understood: give names and fractions that add up to 1, like train=0.8,val=0.2"
    )
    fractions: dict[str, float] = {}
    for part in text.split(","):
        name, _, fraction = part.strip().partition("=")
        if name in fractions or not name.replace("-", "").replace("_", "").isalnum():
            raise problem
        try:
            fractions[name] = float(fraction)
        except ValueError:
            raise problem from None
    if min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise problem
    return fractions


def assign_splits(groups: NDArray[np.uint64], fractions: Mapping[str, float]) -> NDArray[np.int64]:
    """Number of the split of each sample.

    Groups are laid end to end in the order of their hashes, and the line is cut by the fractions; a group falls to the
    split that holds its middle. So a split misses its fraction by at most half a group at each cut.

    Args:
        groups: seeded hash of each sample's group [n].
        fractions: share of the samples by split.

    Raises:
        UserError: when a split would get no sample.
    """
    _, members, counts = np.unique(groups, return_inverse=True, return_counts=True)
    middles = np.cumsum(counts) - counts / 2
    cuts = np.cumsum(list(fractions.values()))[:-1] * len(groups)
    splits = np.searchsorted(cuts, middles, side="right")
    for number, (name, fraction) in enumerate(fractions.items()):
        if not np.any(splits == number):
            raise UserError(
                f"split {name} would be empty: {len(groups)} samples in {len(counts)} groups cannot give it "
                f"{fraction:g} of them; change --split"
            )
    return splits[members]
