"""Losses written down again in NumPy, in double precision, and what autograd is compared with."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hmtl_dist.tasks.base import Inputs, Prepared, SingleRank, Task

Array = NDArray[np.float64]
STEP = 1e-6


def numeric_gradient(function: Callable[[Array], float], at: Array) -> Array:
    """Central differences of a scalar function."""
    gradient = np.empty_like(at)
    for index in np.ndindex(*at.shape):
        step = np.zeros_like(at)
        step[index] = STEP
        gradient[index] = (function(at + step) - function(at - step)) / (2 * STEP)
    return gradient


def check_loss(
    task: Task,
    inputs: Inputs,
    reference: Callable[[Array], float],
    output: Array,
    *,
    view: str = "clean",
    targets: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Compare the mean loss of a task on one view, and its gradient, with a function of the head's output."""
    tensor = torch.tensor(output, requires_grad=True)
    terms = task.loss({view: tensor}, Prepared(targets=targets or {}), inputs, SingleRank())
    mean = terms.sum / terms.count
    (gradient,) = torch.autograd.grad(mean, tensor)
    assert mean.item() == pytest.approx(reference(output), rel=1e-9)
    assert gradient.numpy() == pytest.approx(numeric_gradient(reference, output), rel=1e-5, abs=1e-8)


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
