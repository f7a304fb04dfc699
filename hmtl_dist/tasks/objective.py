"""All tasks of a step at once: which views exist, which head reads which, and one loss out of all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from hmtl_dist.augment import AugmentConfig
from hmtl_dist.augment.photometric import cutout
from hmtl_dist.tasks.base import CLEAN, HeadSpec, Inputs, LossTerms, Prepared, Ranks, Task
from hmtl_dist.tasks.so3 import wrap
from hmtl_dist.tasks.weighting import WeightingConfig, build_weighting

WEIGHTING = "weighting"
"""Key of the model's outputs, and of the state, that belongs to the weighting; no task may be called so."""
LOG_VARS = "log_vars"


class Means(NamedTuple):
    """Global means, as scalars on the device."""

    losses: dict[str, Tensor]
    """Mean loss by task; 0 where no sample counted."""
    metrics: dict[str, Tensor]
    """Further means as `TASK/METRIC`; 0 where no sample counted."""
    present: dict[str, Tensor]
    """1 where anything counted for a figure (a task, or `TASK/METRIC`), else 0."""


@dataclass(frozen=True)
class StepLosses:
    """What one micro-batch says about the model."""

    total: Tensor
    """The global total, the same on every rank; backward of it, averaged over ranks, is the global mean's gradient."""
    by_task: Mapping[str, Tensor]
    """Global mean loss of each task, detached float64 scalars; 0 where missing."""
    metrics: Mapping[str, Tensor]
    """Global means as `TASK/METRIC`, detached float64 scalars."""
    sums: Tensor
    """The global sums and counts behind `by_task` and `metrics`: add those of several steps, then call `means`."""


class Objective:
    """The tasks, and how their losses become one.

    Args:
        tasks: The tasks in the order of the configuration.
        weighting: How their losses become one.
        ranks: The process group.
        augment: Where the cut-out is set that is laid over training views; none when evaluating.
    """

    def __init__(
        self, tasks: Sequence[Task], weighting: WeightingConfig, ranks: Ranks, augment: AugmentConfig | None = None
    ) -> None:
        self.tasks = tuple(tasks)
        self.wiring = wire(tasks)
        """The views that each task's head reads, by task name."""
        self._weighting = build_weighting(weighting, [task.weight for task in tasks])
        self.log_vars = tuple(task.name for task in tasks) if self._weighting.needs_log_vars else ()
        """Tasks for which the model must hold a log-variance."""
        self._ranks = ranks
        self._augment = augment
        self._turning = tuple({label for task in tasks for label, one in task.label_geometry.items() if one.turns})
        self._turn_sign = -1.0 if augment is not None and augment.roll_positive == "clockwise" else 1.0
        self._read = {view for views in self.wiring.values() for view in views}
        self._metrics: dict[str, tuple[str, ...]] = {}

    def heads(self) -> dict[str, HeadSpec]:
        """Say what heads the model must build, by task name."""
        return {task.name: task.head_spec() for task in self.tasks}

    def prepare(self, inputs: Inputs) -> tuple[dict[str, Tensor], dict[str, Prepared]]:
        """Make the views of a micro-batch, float `[B, 3, H, W]` by name, and what each task's loss needs."""
        prepared = {task.name: task.prepare(inputs.every(task.every)) for task in self.tasks}
        clean = inputs.images if inputs.mix is None else inputs.mix.pictures(inputs.images)
        views = {CLEAN: self._cut(clean, inputs)} if CLEAN in self._read else {}
        for task in self.tasks:
            for name, view in prepared[task.name].views.items():
                views[name] = view if task.hides_pixels else self._cut(view, inputs.every(task.every))
        return views, prepared

    def losses(
        self,
        outputs: Mapping[str, Mapping[str, Tensor]],
        prepared: Mapping[str, Prepared],
        inputs: Inputs,
    ) -> StepLosses:
        """Turn the model's outputs into one loss, with one all-reduce; collective.

        Args:
            outputs: Head outputs as task -> view -> tensor.
            prepared: What `prepare` returned.
            inputs: The same micro-batch.
        """
        terms = self._terms(outputs, prepared, inputs)
        sums = self._ranks.all_reduce_sum(self._pack(terms))
        means = self.means(sums)
        counts = sums[1 : 2 * len(self.tasks) : 2]
        losses = torch.stack([means.losses[task.name] for task in self.tasks])
        present = torch.stack([means.present[task.name] for task in self.tasks])
        weighted = self._weighting.combine(losses, present, outputs.get(WEIGHTING, {}).get(LOG_VARS))

        # Ranks average their gradients, so each gives world_size times its own part of the global sums.
        factors = (self._ranks.world_size * weighted.by_loss / counts.clamp_min(tiny(counts))).unbind()
        parts = torch.stack(
            [factor.to(term.sum) * term.sum for factor, term in zip(factors, terms.values(), strict=True)]
        )
        own = parts.sum()
        # The value is the global total, the gradient that of this rank's part.
        total = own - own.detach() + weighted.total.to(own)
        return StepLosses(
            total=total,
            by_task=means.losses,
            metrics=means.metrics,
            sums=sums,
        )

    def sums(
        self,
        outputs: Mapping[str, Mapping[str, Tensor]],
        prepared: Mapping[str, Prepared],
        inputs: Inputs,
    ) -> Tensor:
        """Return this rank's sums and counts of a micro-batch, float64 `[n]`, for evaluation.

        Every rank calls it equally often: some losses (concordance) are collective.

        Add those of all micro-batches, sum over ranks once, and call `means`.
        """
        return self._pack(self._terms(outputs, prepared, inputs))

    def means(self, sums: Tensor) -> Means:
        """Divide sums by counts: the mean losses and metrics of whatever was added up."""
        names = [task.name for task in self.tasks]
        names += [f"{task}/{metric}" for task, metrics in self._metrics.items() for metric in metrics]
        numerators, counts = sums[0::2], sums[1::2]
        found = dict(zip(names, (numerators / counts.clamp_min(tiny(counts))).unbind(), strict=True))
        present = dict(zip(names, (counts > 0).to(sums).unbind(), strict=True))
        losses = {task.name: found.pop(task.name) for task in self.tasks}
        return Means(losses, found, present)

    def after_step(self) -> None:
        """Tell the tasks that the optimizer has taken a step."""
        for task in self.tasks:
            task.after_step()

    def end_epoch(self) -> None:
        """Tell the weighting that an epoch is complete."""
        self._weighting.end_epoch()

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must keep, as `TASK/NAME` and `weighting/NAME`."""
        state = {f"{WEIGHTING}/{name}": value for name, value in self._weighting.state().items()}
        for task in self.tasks:
            state |= {f"{task.name}/{name}": value for name, value in task.state().items()}
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in state.items():
            owner, _, own_name = name.partition("/")
            parts.setdefault(owner, {})[own_name] = value
        if WEIGHTING in parts:
            self._weighting.load_state(parts[WEIGHTING])
        for task in self.tasks:
            if task.name in parts:
                task.load_state(parts[task.name])

    def _cut(self, view: Tensor, inputs: Inputs) -> Tensor:
        if self._augment is None:
            return view
        return cutout(view, self._augment, inputs.seed, inputs.epoch, inputs.positions)

    def _terms(
        self, outputs: Mapping[str, Mapping[str, Tensor]], prepared: Mapping[str, Prepared], inputs: Inputs
    ) -> dict[str, LossTerms]:
        inputs = replace(inputs, labels_by_view=self._turned_labels(prepared, inputs))
        terms = {
            task.name: task.loss(outputs[task.name], prepared[task.name], inputs.every(task.every), self._ranks)
            for task in self.tasks
        }
        self._metrics = {name: tuple(term.metrics) for name, term in terms.items()}
        return terms

    def _turned_labels(self, prepared: Mapping[str, Prepared], inputs: Inputs) -> dict[str, Mapping[str, Tensor]]:
        """Return the labels of the views that supervised heads read and that show the pictures turned."""
        found: dict[str, Mapping[str, Tensor]] = {}
        for task in self.tasks:
            turned_B = prepared[task.name].turned
            if turned_B is not None and task.supervise != "clean":
                added_B = self._turn_sign * turned_B
                own = {name: wrap(inputs.labels[name] + added_B) for name in self._turning if name in inputs.labels}
                found[task.view] = {**inputs.labels, **own}
        return found

    def _pack(self, terms: Mapping[str, LossTerms]) -> Tensor:
        pairs = [(term.sum, term.count) for term in terms.values()]
        pairs += [pair for term in terms.values() for pair in term.metrics.values()]
        # float64: counts stay exact, and the order in which ranks are summed hardly shows.
        return torch.stack([value.detach().double() for pair in pairs for value in pair])


def wire(tasks: Sequence[Task]) -> dict[str, tuple[str, ...]]:
    """Say which views each task's head reads.

    A pretext task reads its own view. A supervised task reads the union of what the pretext tasks ask for, and the
    clean picture where there is none.
    """
    supervised: dict[str, None] = {}
    for task in tasks:
        if task.is_pretext:
            if task.supervise != "corrupted":
                supervised[CLEAN] = None
            if task.supervise != "clean":
                supervised[task.view] = None
    views = tuple(supervised) or (CLEAN,)
    return {task.name: (task.view,) if task.is_pretext else views for task in tasks}


def tiny(like: Tensor) -> float:
    """Smallest count that is not nothing: weights of samples and classes are far above it."""
    return torch.finfo(like.dtype).tiny
