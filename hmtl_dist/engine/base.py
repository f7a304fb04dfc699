"""What the loop needs of an engine: a forward, a backward, a step, and a state that outlives the process."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn


@dataclass
class EngineState:
    """The consolidated training state: the same tensors for every engine, ZeRO stage and world size.

    Tensor names are those of `nn.Module.state_dict()` of the unwrapped module; nothing in it needs unpickling.
    """

    model: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Parameters and buffers, full precision."""
    optimizer: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Per-parameter optimizer state as `<parameter name>/<state name>`, such as `backbone.conv_stem.weight/exp_avg`."""
    ema: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Averaged parameters and buffers; empty when EMA is off."""
    counters: dict[str, int] = field(default_factory=dict[str, int])
    """`global_step` (optimizer steps) and `micro_step` (forward passes)."""


class Engine(Protocol):
    """Owns the optimizer, the learning-rate schedule, accumulation, clipping, autocast and EMA of one rank."""

    module: nn.Module
    """The unwrapped model, on the device."""
    device: torch.device
    global_step: int
    """Optimizer steps so far, skipped ones too."""
    micro_step: int
    """Micro-batches processed so far."""

    def forward(self, views: Mapping[str, Tensor]) -> Mapping[str, Mapping[str, Tensor]]:
        """Run the model in training mode on the named views; returns head outputs as task -> view -> tensor."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch; the engine divides by the number of accumulated micro-batches."""
        ...

    def gradient_norm(self) -> Tensor:
        """Return the norm of the accumulated gradients that this rank holds, a scalar on the device; collective.

        It is not finite where any of them is not. Under ZeRO a rank may hold a part only, so the ranks must agree on
        what it says. Clipping takes the norm that was asked for; nothing here waits for the device.
        """
        ...

    def step(self) -> None:
        """Take an optimizer step with the accumulated gradients; collective."""
        ...

    def skip(self) -> None:
        """Count a step without taking it: drop its gradients and what its forward passes did to BatchNorm."""
        ...

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next optimizer step."""
        ...

    def evaluation_module(self) -> nn.Module:
        """Return the module to evaluate: the EMA weights where EMA is on, else the current ones; in evaluation mode."""
        ...

    def state(self) -> EngineState:
        """Gather the consolidated state in rank 0's host memory; collective: every rank must call it.

        Other ranks get the counters and no tensors.
        """
        ...

    def load_state(self, state: EngineState) -> None:
        """Restore a consolidated state, whatever engine or world size wrote it; collective."""
        ...

    def close(self) -> None:
        """Release what the engine holds outside itself, such as a process group that it made; the module stays."""
        ...
