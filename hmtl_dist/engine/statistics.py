"""BatchNorm's running statistics, kept equal on every rank."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]  # the one base of all of them


class RunningStatistics:
    """The running means and variances of a module's batch normalisation.

    They are remembered as they are after each step, for a step that turns out to be skipped.

    Each rank moves them by what it saw. Left alone they drift apart, and whatever reads them in training (a moving
    average of the encoder, a checkpoint taken at an odd moment) would depend on when ranks were last made equal. After
    every optimizer step all ranks take the mean: one small all-reduce, and a state that is whole at any step.
    """

    def __init__(self, module: nn.Module) -> None:
        layers = [layer for layer in module.modules() if isinstance(layer, _NormBase) and layer.track_running_stats]
        found = [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var)]
        self._buffers = [buffer for buffer in found if buffer is not None]
        self._remembered: Tensor | None = None

    @torch.no_grad()
    def average(self) -> None:
        """Give every rank the mean over ranks, and remember it; collective, one small all-reduce."""
        self.remember()
        if self._remembered is None or not dist.is_initialized() or dist.get_world_size() == 1:
            return
        dist.all_reduce(self._remembered)  # pyright: ignore[reportUnknownMemberType]  # partial in torch
        self._remembered /= dist.get_world_size()
        self.recall()

    @torch.no_grad()
    def remember(self) -> None:
        """Keep the statistics as they are now."""
        if self._buffers:
            self._remembered = torch.cat([buffer.reshape(-1) for buffer in self._buffers])

    @torch.no_grad()
    def recall(self) -> None:
        """Put the statistics back to what was remembered last."""
        if self._remembered is None:
            return
        parts = torch.split_with_sizes(self._remembered, [buffer.numel() for buffer in self._buffers])
        # one kernel on a GPU; for EfficientNet-B0 on a CPU 0.15 ms instead of 0.29 for a loop of copies
        torch._foreach_copy_(self._buffers, list(parts))  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
