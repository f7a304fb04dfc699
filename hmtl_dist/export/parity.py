"""Whether an exported model says what the trained one said."""

from collections.abc import Mapping

from torch import Tensor

from hmtl_dist.errors import UserError
from hmtl_dist.inference.info import Parity
from hmtl_dist.tasks.reading import HeadOutput, own_difference

TOLERANCE = 1e-5
"""Largest difference allowed in float32: of a probability, or of a number in the unit that its head computes in."""


def check_parity(
    heads: Mapping[str, HeadOutput], trained: Mapping[str, Tensor], exported: Mapping[str, Tensor]
) -> Parity:
    """Compare what two models say of the same pictures.

    A head computes numbers of about unit size, and reads them in degrees or years: their difference is taken in its
    own unit, since 1e-5 of 90 degrees is less than float32 can tell apart.

    Args:
        heads: How each head is read.
        trained: What the trained model says, `[N, len(names)]` by task.
        exported: What the exported one says.

    Raises:
        UserError: They differ by more than `TOLERANCE`, or one says what is no number.
    """
    worst, where, count = 0.0, "", 0
    for task, head in heads.items():
        difference = own_difference(head, exported[task], trained[task])
        if difference.isnan().any():
            raise UserError(f"the exported model says of head '{task}' what is no number; nothing was written")
        count = len(difference)
        if (largest := float(difference.max())) >= worst:
            worst, where = largest, task
    if worst > TOLERANCE:
        raise UserError(
            f"the exported model differs from the trained one by {worst:.2g} at head '{where}' on {count} pictures, "
            f"allowed {TOLERANCE:g}; nothing was written; use --format safetensors"
        )
    return Parity(num_samples=count, max_difference=worst, tolerance=TOLERANCE)
