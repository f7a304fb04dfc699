"""One rank: what every engine promises."""

import copy
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import get_args

import pytest
import torch

from hmtl_dist.engine.base import Engine
from hmtl_dist.engine.optim import EngineConfig, OptimConfig, OptimizerName
from hmtl_dist.errors import UserError
from tests.engine.nets import STEPS, difference, make_engine, train

Make = Callable[..., Engine]


@pytest.fixture
def make() -> Generator[Make]:
    """`make_engine`, with the engines closed at the end, the last first."""
    made: list[Engine] = []

    def build(config: EngineConfig, **arguments: object) -> Engine:
        made.append(make_engine(config, **arguments))  # pyright: ignore[reportArgumentType]  # passed through
        return made[-1]

    yield build
    for engine in reversed(made):
        engine.close()


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_every_optimizer_goes_on_exactly_where_it_stopped(make: Make, name: OptimizerName) -> None:
    config, optim = EngineConfig(kind="plain"), OptimConfig(optimizer=name)
    whole, resumed = make(config, optim=optim), make(config, optim=optim, seed=1)
    train(whole, STEPS // 2)
    resumed.load_state(whole.state())
    train(whole, STEPS)
    train(resumed, STEPS)
    assert difference(whole.state(), resumed.state()) == 0


@pytest.mark.parametrize("name", [name for name in get_args(OptimizerName) if not name.startswith("lookahead")])
def test_every_optimizer_has_a_consolidated_state_under_zero(make: Make, name: OptimizerName) -> None:
    optim = OptimConfig(optimizer=name, fused=False)
    plain = make(EngineConfig(kind="plain", channels_last=False), optim=optim)
    zero, resumed = make(EngineConfig(zero_stage=2), optim=optim), make(EngineConfig(zero_stage=1), optim=optim)
    train(plain, 8)
    train(zero, 4)
    resumed.load_state(zero.state())
    train(resumed, 8)
    assert difference(plain.state(), resumed.state()) == 0


def test_the_state_before_the_first_step_can_be_restored(make: Make) -> None:
    for config in (EngineConfig(kind="plain"), EngineConfig(zero_stage=1)):
        fresh, other = make(config), make(config, seed=1)
        other.load_state(fresh.state())
        assert difference(fresh.state(), other.state()) == 0


def test_evaluation_does_not_move_training(make: Make) -> None:
    config = EngineConfig(kind="plain", ema_decay=0.9)
    quiet, evaluated = make(config), make(config)
    for step in (5, STEPS):
        train(quiet, step)
        train(evaluated, step)
        assert not evaluated.evaluation_module().training
    assert difference(quiet.state(), evaluated.state()) == 0


def test_without_ema_the_weights_themselves_are_evaluated(make: Make) -> None:
    engine = make(EngineConfig(kind="plain"))
    assert engine.evaluation_module() is engine.module


def test_a_state_without_ema_starts_the_average_from_its_weights(make: Make) -> None:
    source = make(EngineConfig(kind="plain"))
    train(source, 3)
    engine = make(EngineConfig(kind="plain", ema_decay=0.9), seed=1)
    engine.load_state(source.state())
    state = engine.state()
    assert all(torch.equal(tensor, state.ema[name]) for name, tensor in state.model.items())


def test_a_state_shares_no_memory_with_the_model(make: Make) -> None:
    engine = make(EngineConfig(kind="plain", ema_decay=0.9))
    train(engine, 2)
    state = engine.state()
    before = copy.deepcopy(state)
    train(engine, 4)
    assert difference(before, state) == 0


@pytest.mark.parametrize("kind", ["plain", "deepspeed"])
def test_channels_last_keeps_its_layout_and_the_numbers(make: Make, kind: str) -> None:
    nhwc, nchw = (make(EngineConfig.model_validate({"kind": kind, "channels_last": on})) for on in (True, False))
    train(nhwc, 5)
    train(nchw, 5)
    assert nhwc.module.get_parameter("body.3.weight").is_contiguous(memory_format=torch.channels_last)
    assert difference(nhwc.state(), nchw.state()) < 1e-3


def test_outputs_are_float32_under_autocast(make: Make) -> None:
    engine = make(EngineConfig(kind="plain", precision="bf16"))
    assert engine.forward({"clean": torch.rand(4, 3, 32, 32)})["task"]["clean"].dtype == torch.float32


def test_a_step_is_taken_when_the_accumulation_is_full(make: Make) -> None:
    engine = make(EngineConfig(kind="plain", accumulation_steps=2))
    for _ in range(2):
        engine.backward(engine.forward({"clean": torch.rand(4, 3, 32, 32)})["task"]["clean"].sum())
        with pytest.raises(RuntimeError, match="half-accumulated"):
            engine.step()
        engine.backward(engine.forward({"clean": torch.rand(4, 3, 32, 32)})["task"]["clean"].sum())
        engine.step()
    assert (engine.global_step, engine.micro_step) == (2, 4)


def test_half_an_accumulation_is_no_state(make: Make) -> None:
    engine = make(EngineConfig(kind="plain", accumulation_steps=2))
    engine.backward(engine.forward({"clean": torch.rand(4, 3, 32, 32)})["task"]["clean"].sum())
    with pytest.raises(RuntimeError, match="half-accumulated"):
        engine.state()


def test_a_state_of_another_model_is_refused(make: Make) -> None:
    engine = make(EngineConfig(kind="plain"))
    state = engine.state()
    model = dict(state.model)
    weight = model.pop("linear.weight")
    with pytest.raises(UserError, match=r"does not fit the model: 1 tensors are missing \(linear\.weight\)"):
        engine.load_state(replace(state, model=model))
    with pytest.raises(UserError, match=r"linear\.weight is \[5, 12\] there and \[4, 12\] here"):
        engine.load_state(replace(state, model=model | {"linear.weight": weight.new_zeros(5, 12)}))


def test_synchronised_batchnorm_is_refused_on_a_cpu(make: Make) -> None:
    with pytest.raises(UserError, match=r"engine\.sync_batchnorm=true needs GPUs, given cpu"):
        make(EngineConfig(kind="plain", sync_batchnorm=True))


def test_a_process_may_train_with_deepspeed_twice() -> None:
    for _ in range(2):
        engine = make_engine(EngineConfig())
        train(engine, 1)
        engine.close()
        assert not torch.distributed.is_initialized()
