"""What all tasks share whose targets are labels of the shards.

Shape legend: B samples, K classes.
"""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from hmtl_dist.data.dataset.schema import Field as LabelField
from hmtl_dist.errors import UserError, unknown
from hmtl_dist.tasks.base import Inputs, Prepared, Ranks, Task
from hmtl_dist.tasks.metrics import TaskMetrics
from hmtl_dist.tasks.reading import HeadOutput


class SupervisedTask(Task):
    """A task with labels: its head is what inference keeps."""

    labels: tuple[str, ...]
    """The labels it predicts, in the order of its outputs."""

    @abstractmethod
    def reading(self) -> HeadOutput:
        """Say how a stored model reads the head's output."""

    @abstractmethod
    def answer(self, output: Tensor) -> Tensor:
        """Turn the head's output into probabilities or numbers, `[B, classes or labels]`, as a stored model does."""

    @abstractmethod
    def labelled(self, labels: Mapping[str, Tensor]) -> Tensor:
        """Return which samples have what the task predicts, bool `[B]`."""

    @abstractmethod
    def score(self, answer: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
        """Return how right or wrong each number of an answer is, float64 `[B, n]`; NaN where there is no label.

        1 or 0 for right or wrong classes, n = 1; absolute errors of numbers in the units of their labels.
        """

    @abstractmethod
    def metrics(self, device: torch.device, ranks: Ranks) -> TaskMetrics:
        """Return what counts the figures of an evaluation."""

    @abstractmethod
    def metric_names(self) -> tuple[str, ...]:
        """Return what these figures will be called; nothing is built for it."""

    def prepare(self, inputs: Inputs) -> Prepared:
        """Add nothing: pictures and targets are in the batch already."""
        del inputs
        return Prepared()


def moved(constant: Tensor, device: torch.device) -> Tensor:
    """Put a constant on a device; outside of inference mode, whose tensors no later training could use."""
    if constant.device == device:
        return constant
    with torch.inference_mode(mode=False):
        return constant.to(device)


def label_field(path: str, label: str, kind: str, fields: Mapping[str, LabelField]) -> LabelField:
    """Return the field of a label that must be there and of this kind; the error starts with the dotted path."""
    allowed = sorted(name for name, field in fields.items() if field.kind == kind)
    if label not in fields:
        raise UserError(unknown(path, label, allowed) + f" (the {kind} labels of the shards)")
    if fields[label].kind != kind:
        other = "regression" if kind == "category" else "classification"
        raise UserError(f"{path}: '{label}' is a {fields[label].kind}, not a {kind}; use type={other}")
    return fields[label]


def check_degrees(path: str, label: str, field: LabelField) -> None:
    """Refuse an angle that is not in degrees, or could not be turned with its picture.

    Raises:
        UserError: It has another unit.
    """
    if field.unit not in ("", "degrees"):
        raise UserError(f"{path}: label '{label}' is in {field.unit}, not in degrees; build the shards so")
