"""A moving average of the weights, the same function of the step count wherever the run was interrupted."""

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Exponential moving average of parameters and floating-point buffers (Polyak averaging; Tarvainen & Valpola 2017).

    The decay rises as `(1 + t) / (10 + t)` over the optimizer steps t up to its setting, so that the random start does
    not linger in a short run.
    """

    module: nn.Module
    """The averaged copy, in evaluation mode, without gradients."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(module).requires_grad_(False).eval()

    @torch.no_grad()
    def reset(self, source: nn.Module) -> None:
        """Start again from the source's present weights."""
        for averaged, current in zip(_tensors(self.module), _tensors(source), strict=True):
            averaged.copy_(current)

    @torch.no_grad()
    def update(self, source: nn.Module, global_step: int) -> None:
        """Take in the weights after optimizer step number `global_step` (1 is the first)."""
        averaged = _tensors(self.module)
        current = [tensor.detach() for tensor in _tensors(source)]
        floating = [index for index, tensor in enumerate(averaged) if tensor.is_floating_point()]
        decay = min(self.decay, (1 + global_step) / (10 + global_step))
        mix = cast("Callable[[list[Tensor], list[Tensor], int], None]", get_ema_multi_avg_fn(decay))
        mix([averaged[index] for index in floating], [current[index] for index in floating], 0)
        for target, tensor in zip(averaged, current, strict=True):
            if not target.is_floating_point():
                target.copy_(tensor)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
