"""Pictures that are the same, by their bytes or by how they look; pure numpy.

Looks are compared by perceptual hashes (pHash: signs of the low frequencies of the discrete cosine transform, as in
C. Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions").
"""

import numpy as np
from numpy.typing import NDArray

BANDS = 16
"""16-bit words of a perceptual hash. Hashes that differ in fewer bits than there are bands agree in one band."""
NEAR_BITS = BANDS - 1
"""Most bits, of 256, in which hashes of the same picture differ. Measured: the same portrait at 60 % of its size and
JPEG quality 40 differs in at most 8, portraits of different people in 48 or more."""


def same_pairs(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Pairs [m, 2] of rows with the same value: the first row with each other one.

    Args:
        values: one a row [n].
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(values) else order
    first = np.repeat(order[starts], np.diff(np.append(starts, len(values))))
    others = first != order
    return np.stack([first[others], order[others]], axis=1)


def near_pairs(hashes: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Pairs [m, 2] of rows whose hashes differ in at most `NEAR_BITS` bits.

    Only rows that agree in one band are compared, not all with all; of rows with equal hashes the first stands for all,
    and is paired with each.

    Args:
        hashes: perceptual hashes [n, BANDS].
    """
    if not len(hashes):
        return np.empty((0, 2), dtype=np.int64)
    rows = np.ascontiguousarray(hashes)
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    equal = same_pairs(inverse.astype(np.uint64))
    words = rows[first].view(np.uint64)
    found = [_near_in_band(words, rows[first, band]) for band in range(BANDS)]
    near = np.sort(first[np.unique(np.concatenate(found), axis=0)], axis=1)
    return np.concatenate([equal, near])


def _near_in_band(words: NDArray[np.uint64], band: NDArray[np.uint16]) -> NDArray[np.int64]:
    order = np.argsort(band, kind="stable")
    ordered = band[order]
    found: list[NDArray[np.int64]] = [np.empty((0, 2), dtype=np.int64)]
    here, distance = np.arange(len(band)), 1
    while True:
        here = here[here + distance < len(band)]
        here = here[ordered[here] == ordered[here + distance]]
        if not len(here):
            return np.concatenate(found)
        pairs = np.sort(np.stack([order[here], order[here + distance]], axis=1), axis=1)
        bits = np.bitwise_count(words[pairs[:, 0]] ^ words[pairs[:, 1]]).sum(axis=1)
        found.append(pairs[bits <= NEAR_BITS])
        distance += 1
