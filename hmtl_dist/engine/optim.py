"""The sections `optim` and `engine`, the learning rate as a function of the step, and the optimizer."""

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from hmtl_dist.config.base import Section
from hmtl_dist.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

Fraction = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]

OptimizerName = Literal[
    "adamw",
    "adam",
    "nadamw",
    "radam",
    "lion",
    "sgd",
    "lookahead_adamw",
    "lookahead_adam",
    "lookahead_radam",
    "lookahead_sgd",
]
"""Element-wise optimizers only: ZeRO steps flat pieces, where a per-tensor norm would be another algorithm."""


class OptimConfig(Section):
    """The optimizer and its learning-rate schedule."""

    optimizer: OptimizerName = "adamw"
    """Optimizer by its timm name; `lookahead_…` wraps one (Zhang et al. 2019), at `engine.zero_stage=0` only."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate after warm-up, for the whole global batch; it is never scaled by batch or world size."""
    weight_decay: NotNegative = 0.05
    """Weight decay of matrices and kernels; norms, biases and other one-dimensional parameters have none."""
    momentum: Fraction = 0.9
    """Momentum of `sgd` (Nesterov where it is not 0); other optimizers use `betas`."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of the running means of the gradient and of its square."""
    fused: bool = True
    """Let `adamw`, `adam` and `sgd` step in one kernel, on a CPU four times as fast; off, every ZeRO stage and the
    plain engine round alike, to the last bit."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """What the learning rate does after warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps of linear warm-up."""
    warmup_epochs: NotNegative = 0.0
    """Warm-up in epochs (fractions allowed), instead of `warmup_steps`."""
    min_learning_rate: NotNegative = 1e-6
    """Where `cosine` ends; `step` never goes below it."""
    step_milestones: tuple[Fraction, ...] = (0.5, 0.75)
    """Shares of the run after which `step` multiplies the learning rate by `step_factor`."""
    step_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Factor of `step` at each milestone."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.warmup_steps and self.warmup_epochs:
            raise ValueError("optim.warmup_steps and optim.warmup_epochs are both set; keep one and set the other to 0")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"optim.min_learning_rate={self.min_learning_rate} is above optim.learning_rate={self.learning_rate}"
            )
        return self


class EngineConfig(Section):
    """How losses become optimizer steps."""

    kind: Literal["deepspeed", "plain"] = "deepspeed"
    """`deepspeed`, or `plain`: PyTorch alone (DDP where there are several ranks), the reference."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    """DeepSpeed's ZeRO: 0 replicates everything, 1 shards the optimizer state over ranks, 2 the gradients too."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` runs the forward pass under autocast; parameters, optimizer and losses stay in fp32."""
    accumulation_steps: Annotated[int, Field(ge=1)] = 1
    """Micro-batches whose gradients are averaged into one optimizer step."""
    clip_grad_norm: NotNegative = 0.0
    """Largest norm of the whole gradient; 0 does not clip."""
    ema_decay: Fraction = 0.0
    """Decay of the moving average of the weights, which is then evaluated and exported; 0 keeps none."""
    compile: bool = False
    """Compile the model with `torch.compile`; pays on a GPU after minutes of warm-up, needs a C++ compiler."""
    channels_last: bool | None = None
    """Keep pictures and kernels in NHWC; empty: on wherever it is sound, which is everywhere but at ZeRO 1-2."""
    sync_batchnorm: bool = False
    """Take BatchNorm statistics over all ranks; on GPUs only."""
    deterministic: bool = False
    """Refuse kernels whose result varies from run to run; a CPU needs no such thing, a GPU pays for it in speed."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.zero_stage == 3:
            raise ValueError(
                "engine.zero_stage=3 is not supported: no rank holds the whole weights there, so the run could not be "
                "resumed on another number of workers; allowed are 0, 1, 2"
            )
        if self.kind == "plain" and self.zero_stage:
            raise ValueError(f"engine.zero_stage={self.zero_stage} needs engine.kind=deepspeed; plain allows 0 alone")
        if self.channels_last and self.zero_stage:
            raise ValueError(
                f"engine.channels_last=true needs engine.zero_stage=0, given {self.zero_stage}: ZeRO flattens the "
                "weights; leave channels_last empty"
            )
        return self

    @property
    def memory_format_is_channels_last(self) -> bool:
        """Whether kernels and pictures are kept in NHWC."""
        return self.zero_stage == 0 if self.channels_last is None else self.channels_last


def check_optimizer_fits(optim: OptimConfig, engine: EngineConfig) -> None:
    """Refuse what neither section can see alone.

    Raises:
        UserError: The optimizer does not work at the chosen ZeRO stage.
    """
    if optim.optimizer.startswith("lookahead_") and engine.zero_stage:
        raise UserError(
            f"optim.optimizer={optim.optimizer} needs engine.zero_stage=0, given {engine.zero_stage}: ZeRO steps the "
            "parameter groups one by one, which Lookahead's step counter does not survive"
        )


def check_device_fits(engine: EngineConfig, device: str) -> None:
    """Refuse what the kind of device does not allow.

    Args:
        engine: The section `engine`.
        device: `cpu` or `cuda`.

    Raises:
        UserError: BatchNorm over all workers is asked for without GPUs.
    """
    if engine.sync_batchnorm and device != "cuda":
        raise UserError(f"engine.sync_batchnorm=true needs GPUs, given {device}; set it to false")


def learning_rate_at(config: OptimConfig, step: int, *, total_steps: int, steps_per_epoch: int) -> float:
    """Return the learning rate of optimizer step `step` (0 is the first), a pure function of its arguments.

    Warm-up is linear from one step's share to `learning_rate`; `cosine` is SGDR's half period (Loshchilov & Hutter
    2017, eq. 5) over the steps that are left, so that the last step runs just above `min_learning_rate`.

    Args:
        config: The section `optim`.
        step: Optimizer steps taken so far; steps beyond `total_steps` keep the last value.
        total_steps: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps of an epoch, to translate `warmup_epochs`.
    """
    warmup = config.warmup_steps or round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "step":
        passed = sum(step >= round(milestone * total_steps) for milestone in config.step_milestones)
        return max(config.learning_rate * config.step_factor**passed, config.min_learning_rate)
    progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    span = config.learning_rate - config.min_learning_rate
    return config.min_learning_rate + span * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(module: "nn.Module", config: OptimConfig) -> "Optimizer":
    """Build the optimizer over the module's trainable parameters through timm's factory.

    timm makes the two parameter groups: no weight decay for parameters of at most one dimension, for biases, and for
    those the module names in `no_weight_decay()`.
    """
    from hmtl_dist.model.backbone import import_timm

    arguments: dict[str, Any] = {"betas": config.betas}
    base = config.optimizer.removeprefix("lookahead_")
    if base == "sgd":
        arguments = {"momentum": config.momentum, "nesterov": config.momentum > 0}
    if base in {"adamw", "adam", "sgd"}:
        arguments["fused"] = config.fused
    import_timm()
    from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]  # its public home

    return create_optimizer_v2(
        module, config.optimizer, lr=config.learning_rate, weight_decay=config.weight_decay, **arguments
    )
