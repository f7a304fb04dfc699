"""Before each optimizer step the ranks agree: is everything finite, shall we stop, is it time to save?

One flag tensor is summed over the ranks and read once a step; it is the only thing in a step that waits for the device.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from hmtl_dist.engine.base import Engine
from hmtl_dist.errors import UserError
from hmtl_dist.tasks.base import Inputs, Ranks
from hmtl_dist.tasks.objective import Objective, StepLosses

NAMED_SAMPLES = 4
"""Most samples that a rank names."""

logger = logging.getLogger(__name__)


class NonFiniteError(UserError):
    """A loss or gradient is not finite, and the run may not skip the step."""


class Verdict(NamedTuple):
    """What the ranks agreed on before an optimizer step; equal on every rank."""

    finite: bool
    """Whether every loss and every gradient is a number."""
    stop: bool
    """Whether a rank was asked to stop."""
    save: bool
    """Whether a rank wants a checkpoint after this step."""


def agree(engine: Engine, ranks: Ranks, losses: Sequence[StepLosses], *, stop: bool, save: bool) -> Verdict:
    """Agree on a step that is about to be taken; collective, one all-reduce and one wait for the device."""
    numbers = torch.stack([engine.gradient_norm().double(), *(part.total.detach().double() for part in losses)])
    broken = numbers.isfinite().logical_not().any()
    # filled on the device: copying a number there would wait for it
    asked = [torch.full((), float(flag), dtype=torch.float64, device=numbers.device) for flag in (stop, save)]
    flags = ranks.all_reduce_sum(torch.stack([broken.double(), *asked]))
    found = cast("list[float]", cast(Any, flags).tolist())
    return Verdict(finite=found[0] == 0, stop=found[1] > 0, save=found[2] > 0)


@dataclass
class Guard:
    """What becomes of a step that is not finite: the run ends, or the step is left out, a bounded number of times."""

    policy: Literal["stop", "skip"]
    max_skipped: int
    probe: Objective
    """The run's tasks on one rank: tells which sample's loss is not finite on its own."""
    ranks: Ranks
    name: Callable[[Sequence[int]], list[str]]
    """Says where samples lie, by their global ids."""
    skipped: int = 0
    """Steps left out so far in the run's life."""

    def judge(
        self, engine: Engine, losses: Sequence[StepLosses], micro_batches: Iterable[Inputs], sample_ids: Tensor
    ) -> None:
        """Accept that a step that is not finite was skipped, or end the run; collective.

        Args:
            engine: Has skipped the step.
            losses: Of its micro-batches.
            micro_batches: This rank's inputs of the step, made again.
            sample_ids: Their global ids, int64 `[b]`.

        Raises:
            NonFiniteError: The policy is to stop, or too many steps have been skipped; names task, step and samples.
        """
        broken = sorted({name for part in losses for name, loss in part.by_task.items() if not bool(loss.isfinite())})
        what = f"the loss of {', '.join(broken)}" if broken else "the gradient"
        found = f"{what} is not finite at step {engine.global_step}"
        names = self.name(self._suspects(engine, micro_batches, sample_ids))
        found += f" ({'; '.join(names)})" if names else " (no sample alone is the cause)"
        if self.policy == "stop":
            raise NonFiniteError(
                f"{found}: lower optim.learning_rate or set engine.clip_grad_norm in a new run, mend the samples, or "
                "go on from the last checkpoint with train.on_nonfinite=skip"
            )
        self.skipped += 1
        if self.skipped > self.max_skipped:
            raise NonFiniteError(
                f"{found}, and {self.max_skipped} steps were skipped before it: lower optim.learning_rate or set "
                "engine.clip_grad_norm in a new run, or raise train.max_skipped"
            )
        if self.ranks.rank == 0:
            logger.warning("%s: skipped, %d of at most %d", found, self.skipped, self.max_skipped)

    def _suspects(self, engine: Engine, micro_batches: Iterable[Inputs], sample_ids: Tensor) -> list[int]:
        """Return the ids of samples, of all ranks, whose loss alone is not finite under the weights as they are."""
        module = engine.module.eval()
        found: list[int] = []
        row = 0
        with torch.no_grad():
            for inputs in micro_batches:
                for one in _one_by_one(inputs):
                    views, prepared = self.probe.prepare(one)
                    sums = self.probe.sums(module(views), prepared, one)
                    if not bool(sums.isfinite().all()):
                        found.append(int(sample_ids[row]))
                    row += 1
        module.train()
        padded = (found + [-1] * NAMED_SAMPLES)[:NAMED_SAMPLES]
        everywhere = self.ranks.all_gather(torch.tensor(padded, device=engine.device))
        return [int(sample) for sample in everywhere.flatten() if sample >= 0]


def _one_by_one(inputs: Inputs) -> Iterable[Inputs]:
    for row in range(len(inputs.images)):
        only = slice(row, row + 1)
        yield replace(
            inputs,
            images=inputs.images[only],
            labels={name: values[only] for name, values in inputs.labels.items()},
            weight=inputs.weight[only],
            positions=inputs.positions[only],
            mix=None,  # alone it has no partner
        )
