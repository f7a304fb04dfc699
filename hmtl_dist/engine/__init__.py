"""The engines that turn losses into optimizer steps, and the consolidated checkpoint."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hmtl_dist.engine.base import Engine
    from hmtl_dist.engine.optim import EngineConfig, OptimConfig


def build_engine(
    module: "nn.Module",
    optim: "OptimConfig",
    config: "EngineConfig",
    *,
    device: "torch.device",
    total_steps: int,
    steps_per_epoch: int,
) -> "Engine":
    """Build the engine that the configuration names around the module, which it takes over.

    With several ranks the process group must be initialised first; collective. Only `kind: deepspeed` imports
    DeepSpeed.

    Args:
        module: The model; `forward(views) -> {task: {view: Tensor}}`.
        optim: The section `optim`.
        config: The section `engine`.
        device: Where to train.
        total_steps: Optimizer steps of the whole run, for the learning-rate schedule.
        steps_per_epoch: Optimizer steps of an epoch.

    Raises:
        UserError: The settings do not go together, or not with the device.
    """
    if config.kind == "plain":
        from hmtl_dist.engine.plain import PlainEngine as Built
    else:
        from hmtl_dist.engine.deepspeed import DeepSpeedEngine as Built
    return Built(module, optim, config, device=device, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
