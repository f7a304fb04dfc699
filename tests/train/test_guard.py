"""A step that is not finite is found before the optimizer moves, and told by task, step and sample."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hmtl_dist.engine.base import Engine
from hmtl_dist.tasks.base import Inputs, SingleRank
from hmtl_dist.tasks.objective import Objective
from hmtl_dist.train.guard import Guard, NonFiniteError
from hmtl_dist.train.loop import RankBatch, Run, train
from tests.train.test_loop import Record, make_run
from tests.train.toy import batch, build, config


def planted(at: int, row: int = 5) -> Iterator[RankBatch]:
    """The same batch for ever, but one picture of one step (and of every tenth after it) is not finite."""
    for step in range(1000):
        inputs: Inputs = batch()
        if step % 10 == at - 1:
            inputs.images[row] = torch.nan
        yield RankBatch(8, [inputs], torch.arange(100, 108))


def guarded(policy: str, max_skipped: int = 1, total_steps: int = 8) -> tuple[Run, Record, Guard]:
    built: tuple[Objective, Engine] = build(config(weighting={"type": "dwa"}))
    run, record = make_run(built, total_steps=total_steps, report_every_steps=1)
    guard = Guard(
        "skip" if policy == "skip" else "stop",
        max_skipped,
        built[0],
        SingleRank(),
        lambda ids: [f"sample {sample}" for sample in ids],
    )
    return replace(run, batches=planted(3), guard=guard), record, guard


def test_the_run_stops_before_the_step_and_names_task_step_and_sample() -> None:
    run, _, _ = guarded("stop")
    with pytest.raises(NonFiniteError, match=r"the loss of mood, puzzling is not finite at step 3 \(sample 105\)"):
        train(run)
    assert all(tensor.isfinite().all() for tensor in run.engine.state().model.values())


def test_a_skipped_step_is_counted_and_changes_nothing_else() -> None:
    run, record, guard = guarded("skip")
    outcome = train(run)
    assert (outcome.status, outcome.global_step, guard.skipped) == ("FINISHED", 8, 1)
    assert all(tensor.isfinite().all() for tensor in run.engine.state().model.values())
    assert all(tensor.isfinite().all() for tensor in run.objective.state().values())
    assert [sorted(line.losses) for line in record.shown[2:4]] == [[], ["mood", "puzzling", "total"]]
    assert "train/skipped_steps" in dict(record.recorded)[3]


def test_so_many_steps_are_skipped_and_no_more() -> None:
    run, _, _ = guarded("skip", max_skipped=1, total_steps=20)
    with pytest.raises(NonFiniteError, match=r"at step 13 \(sample 105\), and 1 steps were skipped before it"):
        train(run)


def test_a_gradient_that_overflows_is_told_as_such() -> None:
    run, _, _ = guarded("stop")
    parameter = next(iter(run.engine.module.parameters()))
    parameter.register_hook(overflow)  # pyright: ignore[reportUnknownMemberType]
    with pytest.raises(NonFiniteError, match=r"the gradient is not finite at step 1 \(no sample alone is the cause\)"):
        train(run)


def overflow(gradient: Tensor) -> Tensor:
    return gradient * float("inf")
