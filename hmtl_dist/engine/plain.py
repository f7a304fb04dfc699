"""The reference engine: PyTorch alone, with DistributedDataParallel where there are several ranks."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from hmtl_dist.engine.core import (
    EngineCore,
    Outputs,
    data_parallel,
    load_replicated_state,
    replicated_state,
    to_channels_last,
)
from hmtl_dist.engine.ranks import world_size


class PlainEngine(EngineCore):
    """An `hmtl_dist.engine.base.Engine` without DeepSpeed, which the DeepSpeed engine is tested against."""

    def _wrap(self) -> None:
        if self._channels_last:
            to_channels_last(self.module)
        if self.config.compile:
            self.module.compile()  # pyright: ignore[reportUnknownMemberType]  # partial in torch
        if world_size() > 1:
            self._parallel = data_parallel(self.module, self.device)

    def _forward(self, views: Mapping[str, Tensor]) -> Outputs:
        module = self._parallel or self.module
        autocast = self.config.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=autocast):
            return cast("Outputs", module(views))

    def _backward(self, loss: Tensor) -> None:
        (loss / self.config.accumulation_steps).backward()  # pyright: ignore[reportUnknownMemberType]  # partial in torch

    def _gradient_norm(self) -> Tensor:
        return self._whole_gradient_norm()

    def _step(self) -> None:
        self._clip_whole_gradients()
        self.optimizer.step()
        self._discard()

    def _discard(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def _optimizer_state(self) -> dict[str, Tensor]:
        return replicated_state(self.optimizer, self.trainable())

    def _load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        load_replicated_state(self.optimizer, self.trainable(), state)
