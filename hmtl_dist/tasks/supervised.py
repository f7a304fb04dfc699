"""Tasks whose targets are labels of the shards: classification and regression.

Shape legend: B samples, K classes, R regressed labels.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hmtl_dist.data.schema import Field as LabelField
from hmtl_dist.errors import UserError
from hmtl_dist.tasks.base import Inputs, LinearHead, LossTerms, Prepared, Ranks, Task, TaskConfig

STANDARD_BY_UNIT: dict[str, tuple[float, float]] = {"degrees": (0.0, 30.0), "years": (40.0, 20.0)}
"""Offset and scale that bring labels of a unit to about zero mean and unit spread."""
UNIT_BY_NAME = {"age": "years", "yaw": "degrees", "pitch": "degrees", "roll": "degrees"}
"""Units of labels whose field does not name one."""
HUBER_DELTA = 1.0
"""Where the Huber loss turns linear, in standardised units."""


class ClassificationConfig(TaskConfig):
    """Predict one category label."""

    type: Literal["classification"] = "classification"
    """Kind of task."""
    label: str | None = None
    """Category label of the shards to predict; empty: the label that bears the task's name."""
    class_weights: Literal["none", "index"] = "none"
    """`index`: weigh each class by (samples of the largest class) / (its samples), counted in the training index."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Dropout before the linear layer."""


class RegressionConfig(TaskConfig):
    """Predict number labels, such as age or head pose."""

    type: Literal["regression"] = "regression"
    """Kind of task."""
    labels: tuple[str, ...] | None = None
    """Number labels of the shards to predict; empty: the one label that bears the task's name."""
    loss: Literal["l1", "l2", "huber"] = "huber"
    """Loss of the standardised labels; `huber` turns linear at one `scale`."""
    offset: dict[str, float] = Field(default_factory=dict[str, float])
    """What is subtracted from a label, by name; by default 0 for degrees, 40 for years, else 0."""
    scale: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict[str, float])
    """What the rest is divided by, by name; by default 30 for degrees, 20 for years, else 1."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Dropout before the linear layer."""


class SupervisedTask(Task):
    """A task with labels: its head is what inference keeps."""

    labels: tuple[str, ...]
    """The labels it predicts, in the order of its outputs."""

    @abstractmethod
    def predictions(self, output: Tensor) -> Tensor:
        """Turn the head's output `[B, out_features]` into what a person reads, in the units of the labels."""

    def prepare(self, inputs: Inputs) -> Prepared:
        """Add nothing: pictures and targets are in the batch already."""
        del inputs
        return Prepared()


class Classification(SupervisedTask):
    """Softmax cross-entropy over the classes of one category label; a missing label (-1) counts nowhere.

    With class weights c_k the loss of N samples is sum_n c_{y_n} * -log p_n(y_n) / sum_n c_{y_n}, the weighted mean of
    `torch.nn.CrossEntropyLoss`; c_k = max_j n_j / n_k is the weighting of the HMTL authors (arXiv 2105.06421).
    Pictures that are read in several views count once a view.
    """

    def __init__(self, name: str, config: ClassificationConfig, classes: Sequence[str], counts: Sequence[int]) -> None:
        super().__init__(name, config.weight)
        self.label = config.label or name
        self.labels = (self.label,)
        self.classes = tuple(classes)
        self._dropout = config.dropout
        weights = [1.0] * len(self.classes)
        if config.class_weights == "index":
            largest = max(counts, default=0)
            weights = [largest / count if count else 0.0 for count in counts]
        self._class_weights = torch.tensor(weights)

    def head_spec(self) -> LinearHead:
        """One logit a class."""
        return LinearHead(len(self.classes), self._dropout)

    def loss(self, outputs: Mapping[str, Tensor], prepared: Prepared, inputs: Inputs, ranks: Ranks) -> LossTerms:
        """Weighted cross-entropy; metric `accuracy` counts every labelled sample alike."""
        del prepared, ranks
        labels = inputs.labels[self.label]
        targets = labels.clamp_min(0)
        valid = inputs.weight * (labels >= 0)
        self._class_weights = moved(self._class_weights, valid.device)
        weight = valid * self._class_weights[targets]
        losses: list[Tensor] = []
        correct: list[Tensor] = []
        for output in outputs.values():
            logits = at_least_float32(output)
            losses.append((F.cross_entropy(logits, targets, reduction="none") * weight).sum())
            correct.append(((logits.detach().argmax(1) == targets) * valid).sum())
        views = len(outputs)
        return LossTerms(
            sum=torch.stack(losses).sum(),
            count=weight.sum() * views,
            metrics={"accuracy": (torch.stack(correct).sum(), valid.sum() * views)},
        )

    def predictions(self, output: Tensor) -> Tensor:
        """Number of the most probable class, int64 `[B]`."""
        return output.argmax(1)


class Regression(SupervisedTask):
    """L1, L2 or Huber (1964) loss of standardised numbers; a missing number (NaN) counts nowhere.

    A label y is learned as z = (y - offset) / scale. The loss is the mean over all labels that are there, of all
    samples; pictures that are read in several views count once a view.
    """

    def __init__(self, name: str, config: RegressionConfig, fields: Mapping[str, LabelField]) -> None:
        super().__init__(name, config.weight)
        self.labels = config.labels or (name,)
        self._dropout = config.dropout
        self._loss = config.loss
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

    def loss(self, outputs: Mapping[str, Tensor], prepared: Prepared, inputs: Inputs, ranks: Ranks) -> LossTerms:
        """Sum over labels that are there; metrics `mae_LABEL` are mean absolute errors in the label's unit."""
        del prepared, ranks
        labels_BR = torch.stack([inputs.labels[label] for label in self.labels], dim=1)
        self._move(labels_BR.device)
        missing = labels_BR.isnan()
        valid_BR = inputs.weight[:, None] * ~missing
        # The missing are replaced before any arithmetic: 0 * NaN would still be NaN, in the gradient too.
        targets_BR = torch.where(missing, self._offset, labels_BR)
        standard_BR = (targets_BR - self._offset) / self._scale
        losses: list[Tensor] = []
        errors: list[Tensor] = []
        for output in outputs.values():
            values_BR = at_least_float32(output)
            losses.append((self._distance(values_BR, standard_BR.to(values_BR.dtype)) * valid_BR).sum())
            errors.append(((self.predictions(values_BR.detach()) - targets_BR).abs() * valid_BR).sum(0))
        views = len(outputs)
        errors_R, counts_R = torch.stack(errors).sum(0), valid_BR.sum(0) * views
        return LossTerms(
            sum=torch.stack(losses).sum(),
            count=valid_BR.sum() * views,
            metrics={f"mae_{label}": (errors_R[i], counts_R[i]) for i, label in enumerate(self.labels)},
        )

    def predictions(self, output: Tensor) -> Tensor:
        """Numbers in the labels' units, float `[B, R]`."""
        self._move(output.device)
        return at_least_float32(output) * self._scale + self._offset

    def _move(self, device: torch.device) -> None:
        self._offset, self._scale = moved(self._offset, device), moved(self._scale, device)

    def _distance(self, values: Tensor, targets: Tensor) -> Tensor:
        if self._loss == "l1":
            return F.l1_loss(values, targets, reduction="none")
        if self._loss == "l2":
            return F.mse_loss(values, targets, reduction="none")
        return F.huber_loss(values, targets, reduction="none", delta=HUBER_DELTA)


def build_classification(
    name: str, config: ClassificationConfig, fields: Mapping[str, LabelField], counts: Mapping[str, Sequence[int]]
) -> Classification:
    """Build a classification task, checked against the labels that the shards hold."""
    label = config.label or name
    field = _field(f"tasks.{name}.label", label, "category", fields)
    label_counts = counts.get(label, ())
    if config.class_weights == "index" and len(label_counts) != len(field.classes):
        raise UserError(
            f"tasks.{name}.class_weights: the index holds no sample counts of '{label}'; use class_weights=none"
        )
    return Classification(name, config, field.classes, label_counts)


def build_regression(name: str, config: RegressionConfig, fields: Mapping[str, LabelField]) -> Regression:
    """Build a regression task, checked against the labels that the shards hold."""
    for label in config.labels or (name,):
        _field(f"tasks.{name}.labels", label, "number", fields)
    return Regression(name, config, fields)


def at_least_float32(output: Tensor) -> Tensor:
    """Lift half precision to float32: losses are never summed in 8 or 11 bits."""
    return output.float() if output.dtype in {torch.bfloat16, torch.float16} else output


def moved(constant: Tensor, device: torch.device) -> Tensor:
    """Put a constant on a device; outside of inference mode, whose tensors no later training could use."""
    if constant.device == device:
        return constant
    with torch.inference_mode(mode=False):
        return constant.to(device)


def unknown(path: str, given: str, allowed: Sequence[str]) -> str:
    """Say in one line that a name is not among the allowed ones, and which is nearest."""
    near = get_close_matches(given, allowed, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"{path}: '{given}' is not one of {', '.join(allowed) or '(none)'}{hint}"


def _field(path: str, label: str, kind: str, fields: Mapping[str, LabelField]) -> LabelField:
    allowed = sorted(name for name, field in fields.items() if field.kind == kind)
    if label not in fields:
        raise UserError(unknown(path, label, allowed) + f" (the {kind} labels of the shards)")
    if fields[label].kind != kind:
        other = "regression" if kind == "category" else "classification"
        raise UserError(f"{path}: '{label}' is a {fields[label].kind}, not a {kind}; use type={other}")
    return fields[label]


def _standard(label: str, unit: str) -> tuple[float, float]:
    return STANDARD_BY_UNIT.get(unit or UNIT_BY_NAME.get(label, ""), (0.0, 1.0))
