"""The reference engine: PyTorch alone, with DistributedDataParallel where there are several ranks."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from hmtl_dist.engine.core import (
    EngineCore,
    Outputs,
    data_parallel,
    load_replicated_state,
    replicated_state,
    to_channels_last,
    world_size,
)
from hmtl_dist.engine.optim import EngineConfig, OptimConfig


class PlainEngine(EngineCore):
    """An `hmtl_dist.engine.base.Engine` without DeepSpeed, which the DeepSpeed engine is tested against."""

    def __init__(
        self,
        module: nn.Module,
        optim: OptimConfig,
        config: EngineConfig,
        *,
        device: torch.device,
        total_steps: int,
        steps_per_epoch: int,
    ) -> None:
        super().__init__(module, optim, config, device=device, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
        if self._channels_last:
            to_channels_last(self.module)
        if config.compile:
            self.module.compile()  # pyright: ignore[reportUnknownMemberType]  # partial in torch
        if world_size() > 1:
            self._parallel = data_parallel(self.module, device)
        self._start()

    def _forward(self, views: Mapping[str, Tensor]) -> Outputs:
        module = self._parallel or self.module
        autocast = self.config.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=autocast):
            return cast("Outputs", module(views))

    def _backward(self, loss: Tensor) -> None:
        (loss / self.config.accumulation_steps).backward()  # pyright: ignore[reportUnknownMemberType]  # partial in torch

    def _step(self, closes: bool) -> None:
        if not closes:
            return
        if self.config.clip_grad_norm:
            clip_grad_norm_(self.module.parameters(), self.config.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _optimizer_state(self) -> dict[str, Tensor]:
        return replicated_state(self.optimizer, self.trainable())

    def _load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        load_replicated_state(self.optimizer, self.trainable(), state)
