"""What two gloo ranks find out about the engines, in one start of two processes (DeepSpeed takes seconds to import)."""

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from hmtl_dist.engine.base import Engine, EngineState
from hmtl_dist.engine.checkpoint import load_checkpoint, save_checkpoint
from hmtl_dist.engine.optim import EngineConfig, OptimConfig
from hmtl_dist.engine.ranks import TorchRanks, read_by_first, tensors_of_first
from hmtl_dist.errors import UserError
from hmtl_dist.train.parts import read_weights
from tests.engine.nets import (
    EXACT,
    IMAGE_SIZE,
    STEPS,
    SmallNet,
    TimmNet,
    difference,
    make_engine,
    train,
    without_batchnorm,
)

KINDS = {
    "plain": EngineConfig(kind="plain", channels_last=False),
    "zero0": EngineConfig(zero_stage=0, channels_last=False),
    "zero1": EngineConfig(zero_stage=1),
    "zero2": EngineConfig(zero_stage=2),
}
HALF = STEPS // 2
FEW = 6
"""Steps of a real model: the warm-up of the learning rate, and as many after it."""


def explore(rank: int, folder: Path) -> None:
    """Run as one of two ranks; rank 0 writes `figures.json`, and both what they printed as `printed-RANK`."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder / "extensions")
    printed = os.open(folder / f"printed-{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(printed, 1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    metrics = {
        **_engines_agree(rank),
        **_resume(rank, folder),
        **_accumulate(rank),
        **_average(rank),
        **_ranks(rank),
        **_skip(rank),
        **_first_reads(rank, folder),
        "mlflow is loaded": "mlflow" in sys.modules,
    }
    if rank == 0:
        (folder / "figures.json").write_text(json.dumps(metrics))
    dist.barrier()  # pyright: ignore[reportUnknownMemberType]  # partial in torch
    dist.destroy_process_group()


def _run(
    config: EngineConfig, rank: int, optim: OptimConfig = EXACT, net: Callable[[], nn.Module] = TimmNet
) -> EngineState:
    engine = make_engine(config, optim=optim, net=net, seed=rank)  # ranks start apart: the engine must broadcast
    train(engine, STEPS if net is SmallNet else FEW, rank=rank)
    return engine.state()


def _engines_agree(rank: int) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for setting, change in (("", {}), ("clipped ", {"clip_grad_norm": 0.01}), ("bf16 ", {"precision": "bf16"})):
        net = SmallNet if change else TimmNet
        states = {name: _run(config.model_copy(update=change), rank, net=net) for name, config in KINDS.items()}
        if not change:
            for name in ("plain", "zero1"):
                again = [_run(KINDS[name], rank, net=SmallNet) for _ in range(2)]
                metrics[f"again {name}"] = difference(*again)
        for name, state in states.items():
            metrics[f"{setting}{name}"] = difference(states["plain"], state)
        if setting == "clipped ":
            metrics["clipping moved"] = difference(states["plain"], _run(KINDS["plain"], rank, net=net))
    defaults = OptimConfig()
    metrics["defaults zero0"] = difference(
        _run(EngineConfig(kind="plain"), rank, defaults), _run(EngineConfig(), rank, defaults)
    )
    return metrics


def _resume(rank: int, folder: Path) -> dict[str, float]:
    """Stop every kind half way, go on with every kind from its checkpoint, compare with the uninterrupted run."""
    url = str(folder / "checkpoints")
    whole: dict[str, EngineState] = {}
    for index, (name, config) in enumerate(KINDS.items()):
        engine = make_engine(config.model_copy(update={"ema_decay": 0.9}), seed=rank)
        train(engine, HALF, rank=rank)
        state = engine.state()
        if rank == 0:
            save_checkpoint(url, index, state, {}, {"kind": name})
        train(engine, STEPS, rank=rank)
        whole[name] = engine.state()
    dist.barrier()  # pyright: ignore[reportUnknownMemberType]  # partial in torch
    metrics: dict[str, float] = {}
    for index, source in enumerate(KINDS):
        state, _, _ = load_checkpoint(f"{url}/step-{index:08d}")
        for name, config in KINDS.items():
            engine = make_engine(config.model_copy(update={"ema_decay": 0.9}), seed=7)
            engine.load_state(state)
            train(engine, STEPS, rank=rank)
            metrics[f"resume {source} -> {name}"] = difference(whole[source], engine.state())
    return metrics


def _accumulate(rank: int) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, config in KINDS.items():
        once, twice = (config.model_copy(update={"accumulation_steps": count}) for count in (1, 2))
        sgd = OptimConfig(optimizer="sgd")
        one, two = (make_engine(each, net=without_batchnorm, optim=sgd) for each in (once, twice))
        train(one, HALF, rank=rank)
        train(two, HALF, rank=rank, micro_batches=2)
        model, other = one.state().model, two.state().model
        metrics[f"accumulation {name}"] = max(
            ((model[key] - other[key]).abs().max().item() for key in model), default=0.0
        )
        metrics[f"accumulation {name} micro-steps"] = two.micro_step
    return metrics


def _skip(rank: int) -> dict[str, float]:
    """Plant a NaN on one rank: every rank must see it, and a skipped step must leave everything as it was."""
    metrics: dict[str, float] = {}
    for name, plain in KINDS.items():
        for setting, change in (("", {}), ("clipped ", {"clip_grad_norm": 0.5})):
            engine = make_engine(plain.model_copy(update={"ema_decay": 0.9, **change}), seed=rank)
            train(engine, HALF, rank=rank)
            finite = torch.isfinite(engine_norm(engine, rank, planted=False))
            engine.step()
            before = engine.state()
            norm = engine_norm(engine, rank, planted=rank == 1)
            seen = TorchRanks().all_reduce_sum(norm.isfinite().logical_not().double()[None])
            engine.skip()
            after = engine.state()
            after.counters.update(before.counters)
            for key in [key for key in before.model if key.endswith("num_batches_tracked")]:
                before.model[key] = after.model[key] = torch.zeros(1)  # counts forward passes, and nothing reads it
            metrics[f"{setting}finite {name}"] = float(finite)
            metrics[f"{setting}planted seen {name}"] = seen.item()
            metrics[f"{setting}skipped {name}"] = difference(before, after)
            train(engine, STEPS, rank=rank)
            metrics[f"{setting}went on {name}"] = float(
                all(tensor.isfinite().all() for tensor in engine.state().model.values())
            )
    return metrics


def engine_norm(engine: Engine, rank: int, *, planted: bool) -> torch.Tensor:
    """Do all of a step but the step, on pictures of which one may be NaN."""
    images = torch.rand(8, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(rank))
    if planted:
        images[3] = torch.nan
    engine.backward(engine.forward({"clean": images})["task"]["clean"].square().mean())
    return engine.gradient_norm()


def _average(rank: int) -> dict[str, float]:
    """Compare the EMA with one made by hand, and what the ranks evaluate with each other."""
    engine = make_engine(KINDS["zero1"].model_copy(update={"ema_decay": 0.5}), seed=rank)
    weight = engine.module.get_parameter("linear.weight")
    expected = weight.detach().clone()
    for step in range(1, 6):
        train(engine, step, rank=rank)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach()
    evaluated = engine.evaluation_module()
    averaged = evaluated.get_parameter("linear.weight")
    buffers = torch.cat([buffer.float().flatten() for buffer in evaluated.buffers()])
    both = TorchRanks().all_gather(buffers[None])
    return {
        "ema": (averaged - expected).abs().max().item(),
        "ema moved": (averaged - weight).abs().max().item(),
        "buffers on ranks": (both[0] - both[1]).abs().max().item(),
    }


def _ranks(rank: int) -> dict[str, float]:
    ranks = TorchRanks()
    own = torch.tensor([[1.0 + rank]], requires_grad=True)
    gathered = ranks.all_gather(own)
    (gathered * torch.tensor([[10.0], [20.0]])).sum().backward()  # pyright: ignore[reportUnknownMemberType]
    gradient = 0.0 if own.grad is None else own.grad.item()
    total = ranks.all_reduce_sum(own)
    return {
        "gathered": float(torch.equal(gathered, torch.tensor([[1.0], [2.0]]))),
        "own gradient": gradient,  # of rank 0, whose element is weighted with 10
        "sum": total.item(),
        "sum has gradient": float(total.requires_grad),
    }


def _first_reads(rank: int, folder: Path) -> dict[str, float]:
    """What rank 0 reads is everybody's, its refusal too; figures are sums over both ranks."""
    mine = {
        "weights": torch.arange(6.0).reshape(2, 3),
        "a scalar": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "halves": torch.ones(3, dtype=torch.bfloat16),
        "nothing": torch.empty(0, 4),
        "transposed": torch.arange(6).reshape(2, 3).T,
    }
    given = tensors_of_first({name: tensor.clone() for name, tensor in mine.items()} if rank == 0 else {})
    equal = list(given) == list(mine) and all(
        torch.equal(given[name], tensor) and given[name].dtype == tensor.dtype for name, tensor in mine.items()
    )
    reads, heard = 0, 0

    def read(refusal: str = "") -> str:
        nonlocal reads
        reads += 1
        if refusal:
            raise UserError(refusal)
        return "said"

    said = read_by_first(read)
    try:
        read_by_first(lambda: read("refused"))
    except UserError as error:
        heard = int(str(error) == "refused")
    # rank 1 is told of a checkpoint that is not there, and must not need it
    url = f"{folder}/checkpoints/step-{0 if rank == 0 else 99:08d}"
    weights, known = read_weights(url), load_checkpoint(f"{folder}/checkpoints/step-00000000")[0].model
    same = weights.keys() == known.keys() and all(torch.equal(weights[name], known[name]) for name in known)
    states = [make_engine(KINDS[name].model_copy(update={"ema_decay": 0.9}), seed=rank) for name in ("plain", "zero1")]
    for engine in states:
        train(engine, 1, rank=rank)
    held = [sum(map(len, (one.model, one.optimizer, one.ema))) for one in (engine.state() for engine in states)]
    told = {"tensors given": equal, "weights read": same, "said": said == "said", "reads": reads, "refused": heard}
    told |= {"both held something": all(held), "held on rank 1": rank * sum(held)}
    sums = TorchRanks().all_reduce_sum(torch.tensor([float(value) for value in told.values()]))
    return {name: float(value) for name, value in zip(told, sums, strict=True)}
