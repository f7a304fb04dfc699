"""BatchNorm's running statistics, kept equal on every rank."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]  # the one base of all of them


class RunningStatistics:
    """The running means and variances of a module's batch normalisation.

    Each rank moves them by what it saw. Left alone they drift apart, and whatever reads them in training (a moving
    average of the encoder, a checkpoint taken at an odd moment) would depend on when ranks were last made equal. After
    every optimizer step all ranks take the mean: one small all-reduce, and a state that is whole at any step.
    """

    def __init__(self, module: nn.Module) -> None:
        layers = [layer for layer in module.modules() if isinstance(layer, _NormBase) and layer.track_running_stats]
        found = [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var)]
        self._buffers = [buffer for buffer in found if buffer is not None]

    @torch.no_grad()
    def average(self) -> None:
        """Give every rank the mean over ranks; collective, nothing for a single process."""
        if not self._buffers or not dist.is_initialized() or dist.get_world_size() == 1:
            return
        flat = torch.cat([buffer.reshape(-1) for buffer in self._buffers])
        dist.all_reduce(flat)  # pyright: ignore[reportUnknownMemberType]  # partial in torch
        flat /= dist.get_world_size()
        parts = torch.split_with_sizes(flat, [buffer.numel() for buffer in self._buffers])
        for buffer, part in zip(self._buffers, parts, strict=True):
            buffer.copy_(part.view_as(buffer))
