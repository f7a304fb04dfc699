"""Figures by group of people, and the gap between the best and the worst group.

A gap is the greatest less the least of a figure over the groups that have it, so it is never negative; which of the two
is better does not matter to it. Every figure is counted over all ranks, as those of the whole split are.

Shape legend: B samples.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.errors import UserError, unknown
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tasks.base import Ranks, Task
from hmtl_dist.tasks.metrics import TaskMetrics
from hmtl_dist.tasks.supervised import SupervisedTask


@dataclass(frozen=True)
class Grouping:
    """A label that tells the groups apart."""

    label: str
    names: tuple[str, ...]
    """Groups in order, named as figures may be."""
    edges: tuple[float, ...] = ()
    """Where a number label's groups end: group i has edge[i-1] <= number < edge[i]."""

    def numbers(self, labels: Mapping[str, Tensor]) -> Tensor:
        """Return the group of each sample, int64 `[B]`; -1 where the label is missing."""
        values = labels[self.label]
        if not self.edges:
            return values
        groups = torch.bucketize(values, values.new_tensor(self.edges), right=True)
        return torch.where(values.isnan(), -1, groups)


def groupings_of(
    config: RunConfig, fields: Mapping[str, Field], tasks: Sequence[Task], *, strict: bool = True
) -> list[Grouping]:
    """Build what tells the groups of an evaluation apart, as a configuration asks for.

    Args:
        config: The configuration, whose `train.gap_metrics` are looked at too.
        fields: Labels of the shards that are evaluated on.
        tasks: The tasks.
        strict: Whether a label that the shards lack is an error; else it is left out.

    Raises:
        UserError: A label or figure is not there, or a label is a number without bands.
    """
    check_metrics(tasks, config.train.gap_metrics)
    known = config.data.wanted(fields)
    labels = [label for label in config.train.groups if strict or label in known]
    return build_groupings(labels, config.train.bands, known)


def build_groupings(
    labels: Sequence[str], bands: Mapping[str, Sequence[float]], fields: Mapping[str, Field]
) -> list[Grouping]:
    """Build the groupings of an evaluation, checked against the labels that the shards hold.

    Args:
        labels: Labels that tell groups apart.
        bands: Where the groups of number labels end, by label.
        fields: Labels of the shards.

    Raises:
        UserError: A label is not there, or is a number without bands.
    """
    groupings: list[Grouping] = []
    for label in labels:
        if label not in fields:
            raise UserError(unknown("train.groups", label, sorted(fields)) + " (the labels of the shards)")
        field = fields[label]
        if field.kind == "category":
            groupings.append(Grouping(label, tuple(_plain(name) for name in field.classes)))
        elif edges := tuple(bands.get(label, ())):
            groupings.append(Grouping(label, _band_names(edges), edges))
        else:
            raise UserError(
                f"train.groups: '{label}' is a number; say where its groups end, such as train.bands.{label}=[20,40]"
            )
    return groupings


def check_metrics(tasks: Sequence[Task], metrics: Sequence[str]) -> None:
    """See that figures to be told by group, as `TASK/METRIC`, are figures of the tasks.

    Raises:
        UserError: One of them is not.
    """
    known = _supervised_metrics(tasks)
    for metric in metrics:
        if metric not in known:
            raise UserError(unknown("train.gap_metrics", metric, known))


def check_monitored(path: str, metric: str, tasks: Sequence[Task]) -> None:
    """See that a figure that decides something, as `eval/TASK/METRIC`, will be evaluated, before a run begins.

    Those of pretext tasks and of groups are only known once they are evaluated.

    Raises:
        UserError: Its task is a supervised one, and has no such figure.
    """
    name = metric.removeprefix("eval/")
    task, _, rest = name.partition("/")
    known = [one for one in _supervised_metrics(tasks) if one.startswith(f"{task}/")]
    known += [f"{task}/loss"] if known else []
    if known and name not in known and not rest.startswith(("group/", "gap/")):
        raise UserError(unknown(path, metric, [f"eval/{one}" for one in known]))


def _supervised_metrics(tasks: Sequence[Task]) -> list[str]:
    return [f"{task.name}/{name}" for task in tasks for name in task.metric_names()]


class GroupMetrics:
    """Figures of supervised tasks by group.

    Args:
        tasks: The tasks.
        groupings: What tells groups apart.
        figures: Which figures, as `TASK/METRIC`; none means every figure of every supervised task.
        device: Where samples are counted.
        ranks: The process group.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        groupings: Sequence[Grouping],
        metrics: Sequence[str],
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        wanted = {name.partition("/")[0] for name in metrics}
        self._tasks = {
            task.name: task
            for task in tasks
            if isinstance(task, SupervisedTask) and (not metrics or task.name in wanted)
        }
        self._metrics = frozenset(metrics)
        self._groupings = groupings
        self._ranks = ranks
        self._meters = [
            [{name: task.metrics(device, ranks) for name, task in self._tasks.items()} for _ in grouping.names]
            for grouping in groupings
        ]
        self._samples = [
            torch.zeros(len(grouping.names), len(self._tasks), dtype=torch.float64, device=device)
            for grouping in groupings
        ]

    def update(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor], weight: Tensor) -> None:
        """Count a batch: head outputs by task, labels `[B]` by name, and weights `[B]`; 0 leaves a sample out."""
        for grouping, by_group, samples in zip(self._groupings, self._meters, self._samples, strict=True):
            groups = grouping.numbers(labels)
            for number, meters in enumerate(by_group):
                own = weight * (groups == number)
                for column, (name, task) in enumerate(self._tasks.items()):
                    meters[name].update(outputs[name], labels, own)
                    samples[number, column] += (task.labelled(labels) & (own > 0)).sum()

    def compute(self) -> dict[str, float]:
        """Return `TASK/group/LABEL/GROUP/METRIC` and `TASK/gap/LABEL/METRIC` over all ranks; collective.

        Groups without a labelled sample are left out; `TASK/group/LABEL/GROUP/samples` says how many the others have.
        """
        found: dict[str, float] = {}
        for grouping, by_group, samples in zip(self._groupings, self._meters, self._samples, strict=True):
            counts: NDArray[np.float64] = self._ranks.all_reduce_sum(samples).cpu().numpy()
            for column, task in enumerate(self._tasks):
                # Every rank asks for the same figures in the same order: they are collective.
                by_name = [self._chosen(task, meters[task]) for meters in by_group]
                seen: list[Mapping[str, float]] = []
                for name, metrics, count in zip(grouping.names, by_name, map(float, counts[:, column]), strict=True):
                    if count > 0:
                        seen.append(metrics)
                        named = {**metrics, "samples": count}
                        found |= {f"{task}/group/{grouping.label}/{name}/{key}": value for key, value in named.items()}
                found |= {f"{task}/gap/{grouping.label}/{key}": value for key, value in _gaps(seen).items()}
        return found

    def _chosen(self, task: str, meter: TaskMetrics) -> dict[str, float]:
        metrics = meter.compute()
        if not self._metrics:
            return metrics
        return {name: value for name, value in metrics.items() if f"{task}/{name}" in self._metrics}


def _gaps(by_group: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the greatest less the least of each figure, where two groups or more have it."""
    gaps: dict[str, float] = {}
    for metric in by_group[0] if by_group else ():
        values = [metrics[metric] for metrics in by_group if metrics[metric] == metrics[metric]]
        if len(values) > 1:
            gaps[metric] = max(values) - min(values)
    return gaps


def _band_names(edges: Sequence[float]) -> tuple[str, ...]:
    between = [f"{low:g}_to_{high:g}" for low, high in pairwise(edges)]
    return (f"under_{edges[0]:g}", *between, f"{edges[-1]:g}_and_over")


def _plain(name: str) -> str:
    """Keep what MLflow takes in the name of a metric."""
    return re.sub(r"[^\w\-. ]", "_", name)
