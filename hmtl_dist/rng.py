"""Counter-based random numbers: every draw is a pure function of (seed, epoch, position, purpose, index).

The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
doi:10.1145/2063384.2063405), written once in 64-bit integer arithmetic for numpy arrays and torch tensors: the same
bits come out on every device, whatever the world size, the worker or the moment of a restart.

Shape legend: N positions, C draws for each.
"""

from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    Array = TypeVar("Array", NDArray[np.int64], Tensor)
else:
    Array = TypeVar("Array")

MASK32 = 0xFFFF_FFFF
MAX_POSITION = 1 << 48
ROUNDS = 10
MULTIPLIERS = (0xD251_1F53, 0xCD9E_8D57)
KEY_STEPS = (0x9E37_79B9, 0xBB67_AE85)

SPLITMIX_STEP = 0x9E37_79B9_7F4A_7C15 - (1 << 64)
SPLITMIX_MULTIPLIERS = (0xBF58_476D_1CE4_E5B9 - (1 << 64), 0x94D0_49BB_1331_11EB - (1 << 64))


class Purpose(IntEnum):
    """What a draw is for: two purposes never share numbers. Values are part of every run: append, never renumber."""

    SHARDS = 1
    ROTATION = 2
    BLOCKS = 3
    AUGMENT_GEOMETRY = 4
    AUGMENT_COLOUR = 5
    NOISE = 6
    CUTOUT = 7
    PUZZLE = 8
    MASK = 9
    DROPOUT = 10
    MIXUP = 11
    SYNTHETIC = 12
    SPLIT = 13
    TILE_ROTATION = 14
    MIX_PARTNER = 15


def philox(counter: tuple[Array, Array, Array, Array], key: tuple[int, int]) -> tuple[Array, Array, Array, Array]:
    """Apply Philox4x32-10 to four counter words under a key of two words.

    Args:
        counter: int64 arrays of one shape (at least one axis), each holding 32-bit words.
        key: two 32-bit words.

    Returns:
        Four int64 arrays of 32-bit words.
    """
    c0, c1, c2, c3 = cast(Any, counter)
    k0, k1 = key
    for _ in range(ROUNDS):
        # The product of two 32-bit words wraps around in int64, yet its 64 bits are the right ones.
        product0 = c0 * MULTIPLIERS[0]
        product1 = c2 * MULTIPLIERS[1]
        c0 = ((product1 >> 32) & MASK32) ^ c1 ^ k0
        c2 = ((product0 >> 32) & MASK32) ^ c3 ^ k1
        c1 = product1 & MASK32
        c3 = product0 & MASK32
        k0 = (k0 + KEY_STEPS[0]) & MASK32
        k1 = (k1 + KEY_STEPS[1]) & MASK32
    return c0, c1, c2, c3


def draws(seed: int, epoch: int, positions: Array, purpose: int, count: int) -> Array:
    """Draw uniform 32-bit words.

    Args:
        seed: 64 bits; taken modulo 2**64.
        epoch: 0 … 2**32 - 1.
        positions: int64 `[N]`, each in 0 … 2**48 - 1.
        purpose: what the draw is for (`Purpose`), 0 … 65535.
        count: number of draws for each position.

    Returns:
        int64 `[N, count]` of values 0 … 2**32 - 1, of the same library and device as `positions`.
    """
    blocks = (count + 3) // 4
    column = cast(Any, positions)[:, None]
    index = _arange_like(positions, blocks)[None, :]
    zero = (column + index) * 0
    high = ((column >> 32) << 16) | purpose
    counter = (zero + (column & MASK32), zero + high, zero + (epoch & MASK32), zero + index)
    words = philox(counter, (seed & MASK32, (seed >> 32) & MASK32))
    joined = _empty_like(positions, (*zero.shape, 4))
    for place, word in enumerate(words):
        joined[..., place] = word
    return joined.reshape(positions.shape[0], blocks * 4)[:, :count]


@overload
def uniform(seed: int, epoch: int, positions: NDArray[np.int64], purpose: int, count: int) -> NDArray[np.float32]: ...
@overload
def uniform(seed: int, epoch: int, positions: "Tensor", purpose: int, count: int) -> "Tensor": ...
def uniform(seed: int, epoch: int, positions: Any, purpose: int, count: int) -> Any:
    """Draw float32 `[N, count]` uniform in [0, 1), multiples of 2**-24, so exact on every device.

    Takes the arguments of `draws`; returns a numpy array or a torch tensor like `positions`.
    """
    return _as_float32(draws(seed, epoch, positions, purpose, count) >> 8) * 2.0**-24


@overload
def normal_like(
    seed: int, epoch: int, positions: NDArray[np.int64], purpose: int, count: int
) -> NDArray[np.float32]: ...
@overload
def normal_like(seed: int, epoch: int, positions: "Tensor", purpose: int, count: int) -> "Tensor": ...
def normal_like(seed: int, epoch: int, positions: Any, purpose: int, count: int) -> Any:
    """Draw float32 `[N, count]` noise of mean 0 and variance 1, cheap enough for every pixel.

    Each value is a sum of four bytes (Irwin-Hall, 1,021 levels, within ±3.45), so it is integer arithmetic and the
    same on every device, which a Box-Muller transform would not be. The bytes come from SplitMix64 (Steele, Lea,
    Flood, OOPSLA 2014, doi:10.1145/2660193.2660195) started from a Philox word pair of each position.

    Takes the arguments of `draws`; returns a numpy array or a torch tensor like `positions`.
    """
    words = draws(seed, epoch, positions, purpose, 2)
    start = ((words[:, 0] << 32) | words[:, 1])[:, None]
    z = start + (_arange_like(positions, (count + 1) // 2)[None, :] + 1) * SPLITMIX_STEP
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * SPLITMIX_MULTIPLIERS[0]
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * SPLITMIX_MULTIPLIERS[1]
    z = z ^ ((z >> 31) & ((1 << 33) - 1))
    pairs = (z & 0x00FF_00FF_00FF_00FF) + ((z >> 8) & 0x00FF_00FF_00FF_00FF)
    sums = pairs + (pairs >> 16)
    both = _empty_like(positions, (*sums.shape, 2))
    both[..., 0] = sums & 0xFFFF
    both[..., 1] = (sums >> 32) & 0xFFFF
    both = both.reshape(positions.shape[0], -1)
    # Four bytes: mean 4 * 127.5, variance 4 * (256**2 - 1) / 12. One float32 product of two exact numbers.
    return _as_float32(both[:, :count] - 510) * float(np.float32(21845.0**-0.5))


def permutations(seed: int, epoch: int, positions: Array, purpose: int, n: int) -> Array:
    """Draw one uniform permutation of 0 … n-1 for each position: int64 `[N, n]`.

    The draws are sorted with their index as tie-break, so that the result does not depend on the sorting algorithm.
    Takes the arguments of `draws`; n must be below 2**31.
    """
    keys = (cast(Any, draws(seed, epoch, positions, purpose, n)) << 31) | _arange_like(positions, n)[None, :]
    return keys.argsort(1) if isinstance(positions, np.ndarray) else keys.argsort(dim=1)


def _arange_like(positions: Any, n: int) -> Any:
    if isinstance(positions, np.ndarray):
        return np.arange(n, dtype=np.int64)
    # cumsum needs no import of torch: this module stays light for those who use numpy alone.
    return positions.new_ones((n,)).cumsum(0) - 1


def _empty_like(positions: Any, shape: tuple[int, ...]) -> Any:
    return np.empty(shape, dtype=np.int64) if isinstance(positions, np.ndarray) else positions.new_empty(shape)


def _as_float32(values: Any) -> Any:
    return cast(Any, values).astype(np.float32) if isinstance(values, np.ndarray) else values.float()
