# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""The DeepSpeed engine (ZeRO 0-2): same protocol, same consolidated state, same numbers as the plain one."""

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from hmtl_dist.engine.core import (
    EngineCore,
    Outputs,
    by_parameter,
    cpu_copy,
    data_parallel,
    like_parameter,
    load_replicated_state,
    replicated_state,
    to_channels_last,
)
from hmtl_dist.engine.optim import EngineConfig
from hmtl_dist.engine.ranks import is_first, world_size


@dataclass(frozen=True)
class _FlatGroup:
    """One parameter group as ZeRO 1-2 keeps it: laid end to end, padded, and cut into one partition a rank."""

    index: int
    parameters: list[tuple[str, nn.Parameter]]
    offsets: list[int]
    """Of each parameter in the flat group, in elements."""
    partition: nn.Parameter
    """This rank's fp32 master weights, the one parameter that the optimizer sees of the group."""


class DeepSpeedEngine(EngineCore):
    """An `hmtl_dist.engine.base.Engine` over `deepspeed.initialize` with our own torch optimizer.

    At ZeRO 0 the gradients are exchanged by torch's own reducer, as in the plain engine; from ZeRO 1 on by DeepSpeed.

    It joins the process group it finds. A single process without one gets a group of one, released by `close`.
    """

    def _wrap(self) -> None:
        deepspeed = _import_deepspeed(self.device)
        self._owns_group = not dist.is_initialized()
        if self._owns_group:
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it loads torch's compiler, whose own parts are deprecated
            self._deepspeed, *_ = deepspeed.initialize(
                model=self.module,
                optimizer=self.optimizer,
                config=deepspeed_config(self.config),
                dist_init_required=False,
            )
        if self._channels_last:
            to_channels_last(self.module)  # after initialize, which cannot broadcast such weights
        if self.config.compile:
            self._deepspeed.compile()
        if self.config.zero_stage == 0:
            # its own exchange copies every gradient there and back when the backward pass is over: 4 % of a step
            self._deepspeed.enable_backward_allreduce = False
            if world_size() > 1:
                self._parallel = data_parallel(self._deepspeed, self.device)

    def _forward(self, views: Mapping[str, Tensor]) -> Outputs:
        return cast("Outputs", (self._parallel or self._deepspeed)(views))

    def _backward(self, loss: Tensor) -> None:
        self._deepspeed.backward(loss)

    def _between_micro_batches(self) -> None:
        self._deepspeed.step()  # which only counts

    def _gradient_norm(self) -> Tensor:
        if self.config.zero_stage == 0:
            return self._whole_gradient_norm()
        zero = self._deepspeed.optimizer
        if self.config.clip_grad_norm:
            norm = cast("Tensor", type(zero).scaled_global_norm(zero))
            return torch.where(norm < 0, torch.nan, norm)  # -1 is its word for a norm that is not finite
        gradients = cast("dict[int, list[Tensor]]", zero.averaged_gradients)
        return get_total_norm([part for parts in gradients.values() for part in parts]).to(self.device)

    def _step(self) -> None:
        if self.config.zero_stage == 0:
            self._clip_whole_gradients()  # DeepSpeed's own waits for the GPU
        elif self.config.clip_grad_norm and self._norm is not None:
            norm = self._norm
            self._deepspeed.optimizer.scaled_global_norm = lambda: norm  # instead of a second pass over the gradients
        self._deepspeed.step()
        if self.config.zero_stage:
            vars(self._deepspeed.optimizer).pop("scaled_global_norm", None)

    def _discard(self) -> None:
        if self.config.zero_stage == 0:
            self.module.zero_grad(set_to_none=True)
            self._deepspeed.micro_steps += 1
            return
        # DeepSpeed drops the gradients of a step itself where their norm is not finite, of which -1 is the sign
        zero = self._deepspeed.optimizer
        computes, zero.compute_grad_norm = zero.compute_grad_norm, True
        zero.scaled_global_norm = lambda: torch.tensor(-1.0)
        self._deepspeed.step()
        zero.compute_grad_norm = computes
        del zero.scaled_global_norm

    def close(self) -> None:
        """Release DeepSpeed's hooks and the process group, if this engine made it."""
        self._deepspeed.destroy()
        if self._owns_group and dist.is_initialized():
            importlib.import_module("deepspeed.comm").destroy_process_group()

    def _optimizer_state(self) -> dict[str, Tensor]:
        if self.config.zero_stage == 0:
            return replicated_state(self.optimizer, self.trainable())
        states = cast("dict[int, dict[str, Any]]", self.optimizer.state_dict()["state"])
        gathered: dict[str, Tensor] = {}
        for group in self._flat_groups():
            for kind, value in states.get(group.index, {}).items():
                if not isinstance(value, Tensor):
                    continue
                whole = None if value.dim() == 0 else _gather(value)
                if not is_first():
                    continue
                for (name, parameter), offset in zip(group.parameters, group.offsets, strict=True):
                    piece = value if whole is None else whole[offset : offset + parameter.numel()].view(parameter.shape)
                    gathered[f"{name}/{kind}"] = cpu_copy(piece)
        return gathered

    def _load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        if self.config.zero_stage == 0:
            load_replicated_state(self.optimizer, self.trainable(), state)
            return
        by_name = by_parameter(state, [name for name, _ in self.trainable()])
        states: dict[int, dict[str, Any]] = {}
        for group in self._flat_groups():
            kinds = {kind for name, _ in group.parameters for kind in by_name.get(name, {})}
            states[group.index] = {kind: _partitioned(group, kind, by_name) for kind in sorted(kinds)}
        states = {index: kinds for index, kinds in states.items() if kinds}
        self.optimizer.load_state_dict({"state": states, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def _after_load(self) -> None:
        self._deepspeed.global_steps = self.global_step
        self._deepspeed.micro_steps = self.micro_step
        if self.config.zero_stage:
            self._deepspeed.optimizer.refresh_fp32_params()  # the step moves the master copy, not the parameters

    def _flat_groups(self) -> Iterator[_FlatGroup]:
        zero = self._deepspeed.optimizer
        names = {id(parameter): name for name, parameter in self.trainable()}
        for index, parameters in enumerate(cast("list[list[nn.Parameter]]", zero.round_robin_bit16_groups)):
            yield _FlatGroup(
                index=index,
                parameters=[(names[id(parameter)], parameter) for parameter in parameters],
                offsets=cast("list[int]", zero.round_robin_bit16_offsets[index]),
                partition=cast("nn.Parameter", zero.single_partition_of_fp32_groups[index]),
            )


def deepspeed_config(config: EngineConfig) -> dict[str, Any]:
    """Return the dictionary that DeepSpeed is configured with.

    `gradient_clipping` is always passed, since it defaults to 1.0 (0.19.8); at ZeRO 0 the engine clips itself.
    Autocast stands in for DeepSpeed's bf16 mode, which breaks BatchNorm; all parameters then exchange fp32 gradients,
    as with DDP.
    """
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # only for its own counters: batches are made elsewhere
        "gradient_accumulation_steps": config.accumulation_steps,
        "gradient_clipping": config.clip_grad_norm if config.zero_stage else 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": config.zero_stage},
        "timers": {"throughput": {"enabled": False}},
    }
    if config.zero_stage:
        settings["zero_optimization"]["compute_grad_norm"] = config.clip_grad_norm > 0
    if config.precision == "bf16":
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return settings


def _import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for this kind of device, with its log going to `logging` and not to standard output."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    if device.type == "cuda":
        os.environ["LOCAL_RANK"] = str(device.index or 0)  # where DeepSpeed takes its device from
    else:
        os.environ.setdefault("LOCAL_RANK", "0")
    with warnings.catch_warnings(), _without_autotuner():
        warnings.simplefilter("ignore")  # loads parts of torch that are deprecated there
        deepspeed = importlib.import_module("deepspeed")
    # how DeepSpeed 0.19.8 gathers; torch 2.13 has another name for it
    warnings.filterwarnings("ignore", "`torch.distributed.all_gather_into_tensor` is deprecated", FutureWarning)
    # a shared-memory reduction for inference, which would be compiled with g++ at the start of every first run
    importlib.import_module("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False
    logger = logging.getLogger("DeepSpeed")
    logger.handlers.clear()
    logger.propagate = True
    return deepspeed


@contextmanager
def _without_autotuner() -> Generator[None]:
    """Leave out the autotuner, which only DeepSpeed's own launcher runs, and which imports MLflow: seconds a rank."""
    stub = ModuleType("deepspeed.autotuning.autotuner")
    vars(stub)["Autotuner"] = None
    known = sys.modules.setdefault(stub.__name__, stub)
    try:
        yield
    finally:
        if known is stub:
            del sys.modules[stub.__name__]


def _gather(partition: Tensor) -> Tensor | None:
    """Return the ranks' equal partitions end to end on rank 0, None on others; collective."""
    parts = [torch.empty_like(partition) for _ in range(world_size())] if is_first() else None
    dist.gather(partition.contiguous(), parts, dst=0)
    return None if parts is None else torch.cat(parts)


def _partitioned(group: _FlatGroup, kind: str, by_name: Mapping[str, Mapping[str, Tensor]]) -> Any:
    """Lay a state of the group's parameters end to end and cut out this rank's partition."""
    values = [by_name.get(name, {}).get(kind) for name, _ in group.parameters]
    sample = next(value for value in values if value is not None)
    if sample.dim() == 0:
        return like_parameter(sample, group.partition)
    size = group.partition.numel()
    whole = torch.zeros(size * world_size(), dtype=sample.dtype)
    for value, (_, parameter), offset in zip(values, group.parameters, group.offsets, strict=True):
        if value is not None:
            whole[offset : offset + parameter.numel()] = value.reshape(-1)
    start = dist.get_rank() * size
    return like_parameter(whole[start : start + size], group.partition)
