"""What every engine shares: schedule, counters, accumulation, EMA and the consolidated state of the model."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from hmtl_dist.engine.base import EngineState
from hmtl_dist.engine.ema import WeightAverage
from hmtl_dist.engine.optim import (
    EngineConfig,
    OptimConfig,
    build_optimizer,
    check_device_fits,
    check_optimizer_fits,
    learning_rate_at,
)
from hmtl_dist.engine.ranks import is_first, world_size
from hmtl_dist.engine.statistics import RunningStatistics
from hmtl_dist.errors import UserError
from hmtl_dist.model.backbone import import_timm

Outputs = Mapping[str, Mapping[str, Tensor]]
NamedParameters = list[tuple[str, nn.Parameter]]


class EngineCore(ABC):
    """The common part of `hmtl_dist.engine.base.Engine`; a subclass wraps the module and owns the gradients."""

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
        check_optimizer_fits(optim, config)
        self.optim = optim
        self.config = config
        self.device = device
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.global_step = 0
        self.micro_step = 0
        self._channels_last = config.memory_format_is_channels_last
        _set_determinism(config.deterministic, device)
        self.module = _prepared(module, config, device)
        self._average = WeightAverage(self.module, config.ema_decay) if config.ema_decay else None
        if self._average is not None and self._channels_last:
            to_channels_last(self._average.module)
        self._parallel: DistributedDataParallel | None = None
        self._statistics = RunningStatistics(self.module)
        self.optimizer: Optimizer = build_optimizer(self.module, optim)
        self._norm: Tensor | None = None
        self._wrap()
        broadcast_buffers(self.module)
        self._statistics.remember()
        if self._average is not None:
            self._average.reset(self.module)
        self.module.train()

    @abstractmethod
    def _wrap(self) -> None:
        """Wrap the module for training, and give all ranks the weights of the first."""

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next optimizer step."""
        return learning_rate_at(
            self.optim, self.global_step, total_steps=self.total_steps, steps_per_epoch=self.steps_per_epoch
        )

    @property
    def _closes_accumulation(self) -> bool:
        return (self.micro_step + 1) % self.config.accumulation_steps == 0

    def forward(self, views: Mapping[str, Tensor]) -> Outputs:
        """Run the model in training mode on the named views; head outputs are float32 whatever the precision."""
        if not self.module.training:
            self.module.train()
        if self._channels_last:
            views = {name: view.contiguous(memory_format=torch.channels_last) for name, view in views.items()}
        # DDP decides in the forward pass whether the backward pass after it will communicate
        sync = nullcontext() if self._parallel is None or self._closes_accumulation else self._parallel.no_sync()
        with sync:
            outputs = self._forward(views)
        return {task: {view: output.float() for view, output in heads.items()} for task, heads in outputs.items()}

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch; divides by the number of accumulated micro-batches."""
        self._backward(loss)
        self.micro_step += 1
        if self.micro_step % self.config.accumulation_steps:
            self._between_micro_batches()

    def gradient_norm(self) -> Tensor:
        """Return the norm of the accumulated gradients that this rank holds, for `step` to clip by; collective."""
        self._norm = self._gradient_norm()
        return self._norm

    def step(self) -> None:
        """Take an optimizer step with the accumulated gradients.

        Raises:
            RuntimeError: Called between the micro-batches of one optimizer step.
        """
        self._check_accumulated()
        learning_rate = self.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self._step()
        self._norm = None
        self.global_step += 1
        self._statistics.average()
        if self._average is not None:
            self._average.update(self.module, self.global_step)

    def skip(self) -> None:
        """Count a step without taking it: drop its gradients and what its forward passes did to BatchNorm."""
        self._check_accumulated()
        self._discard()
        self._norm = None
        self.global_step += 1
        self._statistics.recall()

    def evaluation_module(self) -> nn.Module:
        """Return the module to evaluate, in evaluation mode: the EMA weights where EMA is on, else the current ones."""
        return (self.module if self._average is None else self._average.module).eval()

    def state(self) -> EngineState:
        """Gather the consolidated state in rank 0's host memory; collective.

        Other ranks get the counters and no tensors.

        Raises:
            RuntimeError: Called between the micro-batches of one optimizer step.
        """
        self._check_accumulated()
        counters = {"global_step": self.global_step, "micro_step": self.micro_step}
        optimizer = self._optimizer_state()
        if not is_first():
            return EngineState(counters=counters)
        return EngineState(
            model=_snapshot(self.module),
            optimizer=optimizer,
            ema={} if self._average is None else _snapshot(self._average.module),
            counters=counters,
        )

    @torch.no_grad()
    def load_state(self, state: EngineState) -> None:
        """Restore a consolidated state, whatever engine or world size wrote it; collective.

        A state without EMA starts the average from the restored weights.

        Raises:
            UserError: The state belongs to a model or optimizer of another shape.
        """
        _restore(self.module, state.model, "model")
        self._load_optimizer_state(state.optimizer)
        if self._average is not None:
            if state.ema:
                _restore(self._average.module, state.ema, "averaged model")
            else:
                self._average.reset(self.module)
        self.global_step = state.counters["global_step"]
        self.micro_step = state.counters["micro_step"]
        for group in self.optimizer.param_groups:
            if "lookahead_step" in group:  # timm's Lookahead counts in its groups, not in its state
                group["lookahead_step"] = self.global_step
        self._statistics.remember()
        self._after_load()

    def close(self) -> None:
        """Release what the engine holds outside itself; the module stays usable."""
        return

    @abstractmethod
    def _forward(self, views: Mapping[str, Tensor]) -> Outputs: ...

    @abstractmethod
    def _backward(self, loss: Tensor) -> None: ...

    def _between_micro_batches(self) -> None:
        return

    @abstractmethod
    def _gradient_norm(self) -> Tensor: ...

    @abstractmethod
    def _step(self) -> None: ...

    @abstractmethod
    def _discard(self) -> None: ...

    @abstractmethod
    def _optimizer_state(self) -> dict[str, Tensor]:
        """Gather it on rank 0, empty on others; collective."""

    @abstractmethod
    def _load_optimizer_state(self, state: Mapping[str, Tensor]) -> None: ...

    def _after_load(self) -> None:
        return

    def _check_accumulated(self) -> None:
        if self.micro_step % self.config.accumulation_steps:
            raise RuntimeError("half-accumulated gradients are no step: their last micro-batch is missing")

    def _whole_gradient_norm(self) -> Tensor:
        """Return the norm of the gradients of a module whose parameters hold them whole."""
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        return get_total_norm(gradients).to(self.device)

    def _clip_whole_gradients(self) -> None:
        """Clip by the norm that was asked for, else by one taken now; the two calls are `clip_grad_norm_`."""
        if self.config.clip_grad_norm:
            norm = self._whole_gradient_norm() if self._norm is None else self._norm
            clip_grads_with_norm_(self.module.parameters(), self.config.clip_grad_norm, norm)

    def trainable(self) -> NamedParameters:
        """Return the parameters the optimizer moves, by name."""
        return [(name, parameter) for name, parameter in self.module.named_parameters() if parameter.requires_grad]


def _set_determinism(deterministic: bool, device: torch.device) -> None:
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
        torch.use_deterministic_algorithms(True)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not deterministic


def _prepared(module: nn.Module, config: EngineConfig, device: torch.device) -> nn.Module:
    module = module.to(device)
    if config.sync_batchnorm:
        check_device_fits(config, device.type)
        if world_size() > 1:
            # timm's own keeps the activation that its BatchNorm layers hold
            convert = cast("Callable[[nn.Module], nn.Module]", import_timm().layers.convert_sync_batchnorm)
            module = convert(module)
    return module


def data_parallel(module: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Wrap a module so that its ranks average their gradients while the backward pass still runs; collective."""
    return DistributedDataParallel(
        module,
        device_ids=[device.index] if device.type == "cuda" else None,
        forward_sync_buffers=False,  # the running statistics are averaged after every step instead
        gradient_as_bucket_view=True,
    )


def to_channels_last(module: nn.Module) -> None:
    """Lay out four-dimensional parameters and buffers as NHWC, in place."""
    module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # missing in torch's overloads


@torch.no_grad()
def broadcast_buffers(module: nn.Module) -> None:
    """Give every rank rank 0's buffers; collective, one broadcast a dtype."""
    if world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for buffer in module.buffers():
        by_dtype.setdefault(buffer.dtype, []).append(buffer)
    for buffers in by_dtype.values():
        flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
        dist.broadcast(flat, 0)
        parts = torch.split_with_sizes(flat, [buffer.numel() for buffer in buffers])
        for buffer, part in zip(buffers, parts, strict=True):
            buffer.copy_(part.view_as(buffer))


def cpu_copy(tensor: Tensor) -> Tensor:
    """Return a contiguous copy on CPU that shares no memory with the tensor."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: cpu_copy(tensor) for name, tensor in module.state_dict().items()}


def _restore(module: nn.Module, saved: Mapping[str, Tensor], what: str) -> None:
    own = cast("dict[str, Tensor]", module.state_dict())
    check_names(own, saved, what)
    for name, tensor in own.items():
        if tensor.shape != saved[name].shape:
            raise UserError(
                f"the checkpoint does not fit the {what}: {name} is {list(saved[name].shape)} there and "
                f"{list(tensor.shape)} here; resume with the configuration that wrote it"
            )
        tensor.copy_(saved[name])


def check_names(own: Iterable[str], saved: Iterable[str], what: str) -> None:
    """Compare two sets of tensor names.

    Raises:
        UserError: They differ; names the first that is missing on either side.
    """
    missing, unknown = sorted(set(own) - set(saved)), sorted(set(saved) - set(own))
    if not missing and not unknown:
        return
    parts = [f"{len(missing)} tensors are missing ({missing[0]})"] if missing else []
    parts += [f"{len(unknown)} are unknown ({unknown[0]})"] if unknown else []
    raise UserError(
        f"the checkpoint does not fit the {what}: {' and '.join(parts)}; resume with the configuration that wrote it"
    )


def by_parameter(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """Split `<parameter name>/<state name>` keys; a parameter that never had a gradient has no state.

    Raises:
        UserError: A key names no parameter of `names`.
    """
    split: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, _, kind = key.rpartition("/")
        split.setdefault(name, {})[kind] = value
    known = set(names)
    check_names(known & set(split), split, "optimizer")
    return split


def replicated_state(optimizer: Optimizer, trainable: NamedParameters) -> dict[str, Tensor]:
    """Return the state of an optimizer that holds whole parameters, as `<parameter name>/<state name>` on CPU.

    It is the same on every rank, and empty but on the first.
    """
    if not is_first():
        return {}
    states = cast("dict[int, dict[str, Any]]", optimizer.state_dict()["state"])
    return {
        f"{name}/{kind}": cpu_copy(value)
        for index, (name, _) in enumerate(_indexed(optimizer, trainable))
        for kind, value in states.get(index, {}).items()
        if isinstance(value, Tensor)
    }


def load_replicated_state(optimizer: Optimizer, trainable: NamedParameters, state: Mapping[str, Tensor]) -> None:
    """Restore what `replicated_state` returned.

    Raises:
        UserError: The state names a parameter that the optimizer does not have.
    """
    by_name = by_parameter(state, [name for name, _ in trainable])
    states = {
        index: {kind: like_parameter(value, parameter) for kind, value in by_name[name].items()}
        for index, (name, parameter) in enumerate(_indexed(optimizer, trainable))
        if name in by_name
    }
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def like_parameter(value: Tensor, parameter: Tensor) -> Tensor:
    """Copy a state's tensor to the parameter's device and memory layout, which fused kernels take for granted."""
    if value.dim() == 0 and parameter.dim():
        return value.clone()
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _indexed(optimizer: Optimizer, trainable: NamedParameters) -> NamedParameters:
    """Return parameters by name in the order of `Optimizer.state_dict()`."""
    names = {id(parameter): name for name, parameter in trainable}
    groups = cast("list[dict[str, list[nn.Parameter]]]", optimizer.param_groups)
    return [(names[id(parameter)], parameter) for group in groups for parameter in group["params"]]
