"""What all tasks share whose labels are numbers: masked targets by view, errors, and standardised labels.

Shape legend: B samples, R labels.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from hmtl_dist.data.dataset.schema import Field as LabelField
from hmtl_dist.errors import UserError, unknown
from hmtl_dist.tasks.base import Inputs, LinearHead, Ranks, TaskConfig
from hmtl_dist.tasks.metrics import NumberMetrics
from hmtl_dist.tasks.reading import HeadOutput, at_least_float32
from hmtl_dist.tasks.supervised import SupervisedTask, moved

STANDARD_BY_UNIT: dict[str, tuple[float, float]] = {"degrees": (0.0, 30.0), "years": (40.0, 20.0)}
"""Offset and scale that bring labels of a unit to about zero mean and unit spread."""
UNIT_BY_NAME = {"age": "years", "yaw": "degrees", "pitch": "degrees", "roll": "degrees"}
"""Units of labels whose field does not name one."""


class StandardisedConfig(TaskConfig):
    """What the section of every task on standardised numbers shares."""

    offset: dict[str, float] = Field(default_factory=dict[str, float])
    """What is subtracted from a label, by name; by default 0 for degrees, 40 for years, else 0."""
    scale: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict[str, float])
    """What the rest is divided by, by name; by default 30 for degrees, 20 for years, else 1."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Dropout before the linear layer."""


class View(NamedTuple):
    """What the head says of one view, beside what it should say."""

    output: Tensor
    """The head's output, at least float32, `[B, out_features]`."""
    targets: Tensor
    """Numbers, without NaN, `[B, R]`."""
    valid: Tensor
    """Weight of each number, 0 where there is none, `[B, R]`."""


class NumberTask(SupervisedTask):
    """A task whose labels are numbers; a missing number (NaN) counts nowhere."""

    one_unit = False
    """Whether the labels share a unit, so that the mean of their figures says something."""
    concordance = False
    """Whether the concordance of predictions and labels is a figure of this task."""

    @abstractmethod
    def predictions(self, output: Tensor) -> Tensor:
        """Turn the head's output `[B, out_features]` into numbers in the units of the labels, `[B, R]`."""

    def targets(self, labels: Mapping[str, Tensor]) -> Tensor:
        """Return the numbers to be predicted, float `[B, R]`; NaN is what counts nowhere."""
        return torch.stack([labels[label] for label in self.labels], dim=1)

    def views(self, outputs: Mapping[str, Tensor], inputs: Inputs, missing: Tensor | float) -> list[View]:
        """Return the head's output of each view beside the numbers that it shows.

        Args:
            outputs: The head's outputs by view, `[B, out_features]`.
            inputs: The micro-batch.
            missing: What stands for a number that is not there: one for all, or `[R]`.
        """
        found: list[View] = []
        for view, output in outputs.items():
            targets_BR = self.targets(inputs.labels_of(view))
            there_BR = ~targets_BR.isnan()
            # The missing are replaced before any arithmetic: 0 * NaN would still be NaN, in the gradient too.
            given_BR = torch.where(there_BR, targets_BR, missing)
            found.append(View(at_least_float32(output), given_BR, inputs.weight[:, None] * there_BR))
        return found

    def errors(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Return predictions less targets, `[B, R]`, in the units of the labels."""
        return predictions - targets

    def answer(self, output: Tensor) -> Tensor:
        """Numbers in the units of the labels, `[B, R]`."""
        return self.predictions(output)

    def labelled(self, labels: Mapping[str, Tensor]) -> Tensor:
        """Samples with one of the numbers at least."""
        return ~self.targets(labels).isnan().all(1)

    def score(self, answer: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
        """Absolute errors, `[B, R]`."""
        return self.errors(answer, self.targets(labels)).abs().double()

    def metrics(self, device: torch.device, ranks: Ranks) -> NumberMetrics:
        """Mean absolute errors, and concordances where the task asks for them."""
        return NumberMetrics(self, device, ranks)

    def metric_names(self) -> tuple[str, ...]:
        """Names of these figures."""
        return NumberMetrics.names(self)

    def mean_errors(self, views: Sequence[View]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the metrics `mae_LABEL` of a loss: mean absolute errors over all views, in the label's unit."""
        errors = [self.errors(self.predictions(view.output.detach()), view.targets) for view in views]
        pairs = zip(errors, views, strict=True)
        errors_R = torch.stack([(errors_BR.abs() * view.valid).sum(0) for errors_BR, view in pairs]).sum(0)
        counts_R = torch.stack([view.valid.sum(0) for view in views]).sum(0)
        return {f"mae_{label}": (errors_R[i], counts_R[i]) for i, label in enumerate(self.labels)}


class StandardisedTask(NumberTask):
    """A task that learns each label y as z = (y - offset) / scale, one output of the head each."""

    concordance = True

    def __init__(
        self,
        name: str,
        config: StandardisedConfig,
        labels: Sequence[str],
        fields: Mapping[str, LabelField],
    ) -> None:
        super().__init__(name, config)
        self.labels = tuple(labels)
        self._dropout = config.dropout
        for option, given in (("offset", config.offset), ("scale", config.scale)):
            for label in given:
                if label not in self.labels:
                    raise UserError(unknown(f"tasks.{name}.{option}", label, self.labels))
        standard = {label: _standard(label, fields[label].unit) for label in self.labels}
        self._offset = torch.tensor([config.offset.get(label, standard[label][0]) for label in self.labels])
        self._scale = torch.tensor([config.scale.get(label, standard[label][1]) for label in self.labels])

    def head_spec(self) -> LinearHead:
        """One number a label."""
        return LinearHead(len(self.labels), self._dropout)

    def standardised(self, outputs: Mapping[str, Tensor], inputs: Inputs) -> list[tuple[View, Tensor]]:
        """Return the views, each with its targets standardised, `[B, R]`."""
        self._move(inputs.weight.device)
        views = self.views(outputs, inputs, self._offset)
        return [(view, (view.targets - self._offset) / self._scale) for view in views]

    def predictions(self, output: Tensor) -> Tensor:
        """Numbers in the labels' units, float `[B, R]`."""
        self._move(output.device)
        return at_least_float32(output) * self._scale + self._offset

    def reading(self) -> HeadOutput:
        """Numbers that are scaled and shifted."""
        offset, scale = (tuple(map(float, values.cpu())) for values in (self._offset, self._scale))
        return HeadOutput(type="regression", names=self.labels, offset=offset, scale=scale)

    def _move(self, device: torch.device) -> None:
        self._offset, self._scale = moved(self._offset, device), moved(self._scale, device)


def _standard(label: str, unit: str) -> tuple[float, float]:
    return STANDARD_BY_UNIT.get(unit or UNIT_BY_NAME.get(label, ""), (0.0, 1.0))
