"""Which sample falls to which split: whole groups, near the asked fractions, the same for the same seed.

Shape legend: n samples, P parts, C classes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hmtl_dist import rng
from hmtl_dist.errors import UserError

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""Our names of splits by the names that people give them, in any case."""
ORDER = ("train", "val", "test")
"""In which order they are told."""


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


def apportion(
    groups: NDArray[np.uint64], codes: NDArray[np.int64], shares: Sequence[float], seed: int
) -> NDArray[np.uint8]:
    """Cut samples into parts of whole groups in which every class has its share, as nearly as whole groups allow.

    Groups that hold the same number of each class are exchangeable: every part gets its share of them, in a drawn
    order. Those that remain go one by one, in a drawn order that takes groups of about twice the size first, to the
    part where they add least to Pearson's chi-squared, the sum of (count - target)² / target over parts and classes;
    of several such parts to the emptiest.
    Depends on the groups' hashes, not on the order of the samples, and is exact arithmetic or single IEEE operations:
    every machine finds the same.

    Args:
        groups: hash of each sample's group [n]; a sample of no group has its own.
        codes: class of each sample [n], -1 for none, which counts as a class.
        shares: share of each part in the samples [P], at most 250 that add up to 1.
        seed: another seed cuts otherwise.

    Returns:
        Number of the part of each sample [n].
    """
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    classes, column = np.unique(codes, return_inverse=True)
    num_groups, num_classes = len(sizes), len(classes)
    if num_groups == len(groups):
        kinds = np.eye(num_classes, dtype=np.int64)
        kind_of = np.empty(num_groups, dtype=np.int64)
        kind_of[member] = column
    else:
        cells = np.bincount(member * num_classes + column, minlength=num_groups * num_classes)
        kinds, kind_of = np.unique(cells.reshape(num_groups, num_classes), axis=0, return_inverse=True)
        kind_of = kind_of.reshape(-1)  # numpy 2.0 gives it a second axis
    order = rng.permutations(seed, 0, np.zeros(1, dtype=np.int64), rng.Purpose.SPLIT, num_groups)[0]
    share = np.array(shares)
    number_of = np.bincount(kind_of, minlength=len(kinds))
    numbers = np.floor(number_of[:, None] * share + 1e-9).astype(np.int64)
    rest = len(share)
    part_of = np.empty(num_groups, dtype=np.uint8)
    part_of[order[np.argsort(kind_of[order], kind="stable")]] = np.repeat(
        np.tile(np.arange(rest + 1), len(kinds)),
        np.column_stack([numbers, number_of - numbers.sum(axis=1)]).reshape(-1),
    )
    remaining = order[part_of[order] == rest]
    large_first = np.argsort(-np.frexp(sizes[remaining])[1], kind="stable")
    counts, target = numbers.T @ kinds, np.outer(share, np.bincount(column))
    for group in remaining[large_first].tolist():
        held = kinds[kind_of[group]]
        cost = np.zeros(rest)
        for label in np.flatnonzero(held):
            wanted, more = target[:, label], held[label]
            cost += more * (2 * (counts[:, label] - wanted) + more) / wanted
        part_of[group] = np.lexsort((counts.sum(axis=1) / share, cost))[0]  # of equal costs, the emptiest part
        counts[part_of[group]] += held
    return part_of[member]
