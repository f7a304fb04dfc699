"""How a supervised head's numbers are read, in training and in the stored model alike.

Shape legend: B samples, R numbers, K bins or classes.
"""

from typing import Literal

import torch
from torch import Tensor

from hmtl_dist.config.base import Section
from hmtl_dist.tasks.so3 import DEGREES, angles_from_matrix, matrix_from_sixd, wrap


class HeadOutput(Section):
    """How to read one supervised head; all that a stored model needs to know of its task."""

    type: Literal["classification", "regression", "bins", "rotation"]
    """`classification`: logits; `regression`: numbers; `bins`: logits of `bins` bins for each number, read as their
    expectation; `rotation`: six numbers of a head's rotation, read as yaw, pitch and roll in degrees."""
    names: tuple[str, ...]
    """Classes or labels, in the order in which they are read."""
    offset: tuple[float, ...] = ()
    """A label is output * scale + offset for `regression`, number of the bin * scale + offset for `bins`."""
    scale: tuple[float, ...] = ()
    """See `offset`."""
    bins: int = 0
    """Bins of a number, for `bins`."""

    @property
    def out_features(self) -> int:
        """Numbers that the head puts out for a picture."""
        return {"rotation": 6, "bins": len(self.names) * self.bins}.get(self.type, len(self.names))

    @property
    def mixes_units(self) -> bool:
        """Whether its numbers may differ in their units, so that errors are only alike in units of their scales."""
        return self.type == "regression" and len(self.names) > 1


def read_output(head: HeadOutput, output: Tensor) -> Tensor:
    """Turn a head's output `[B, out_features]` into probabilities or numbers in their units, `[B, len(names)]`."""
    values = at_least_float32(output)
    if head.type == "classification":
        return values.softmax(1)
    if head.type == "rotation":
        return angles_from_matrix(matrix_from_sixd(values))
    if head.type == "bins":
        # `len(values)` would fix the batch of an exported graph
        values = expected_bin(values.reshape(-1, len(head.names), head.bins))
    return values * values.new_tensor(head.scale) + values.new_tensor(head.offset)


def expected_bin(logits: Tensor) -> Tensor:
    """Return the expected number of the bin, sum_k k * softmax(logits)_k: `[..., K]` to `[...]`."""
    return (logits.softmax(-1) * torch.arange(logits.shape[-1], device=logits.device)).sum(-1)


def at_least_float32(output: Tensor) -> Tensor:
    """Lift half precision to float32: losses are never summed in 8 or 11 bits."""
    return output.float() if output.dtype in {torch.bfloat16, torch.float16} else output


def own_difference(head: HeadOutput, one: Tensor, other: Tensor) -> Tensor:
    """Return how far two answers are apart in the unit that the head computes in, float64 `[N, len(names)]`.

    A head computes numbers of about unit size, and they are read in degrees or years.
    """
    difference = one.double() - other.double()
    if head.type == "classification":
        return difference.abs()
    if head.type == "rotation":  # 180 and -180 degrees are one angle
        return (wrap(difference) / DEGREES).abs()
    return (difference / (difference.new_tensor(head.scale) * max(1, head.bins))).abs()
