"""Tasks whose targets are labels of the shards: what they share, classification and regression.

Shape legend: B samples, K classes, R regressed labels.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hmtl_dist.data.dataset.schema import Field as LabelField
from hmtl_dist.errors import UserError
from hmtl_dist.tasks.base import (
    Inputs,
    LinearHead,
    LossTerms,
    Prepared,
    Ranks,
    Surroundings,
    Task,
    TaskConfig,
)
from hmtl_dist.tasks.metrics import ClassificationMetrics, NumberMetrics, TaskMetrics
from hmtl_dist.tasks.reading import HeadOutput, at_least_float32

STANDARD_BY_UNIT: dict[str, tuple[float, float]] = {"degrees": (0.0, 30.0), "years": (40.0, 20.0)}
"""Offset and scale that bring labels of a unit to about zero mean and unit spread."""
UNIT_BY_NAME = {"age": "years", "yaw": "degrees", "pitch": "degrees", "roll": "degrees"}
"""Units of labels whose field does not name one."""
HUBER_DELTA = 1.0
"""Where the Huber loss turns linear, in standardised units."""


class ClassificationConfig(TaskConfig):
    """Predict one category label."""

    learns_from_mixed = True

    type: Literal["classification"] = "classification"
    """Kind of task."""
    label: str | None = None
    """Category label of the shards to predict; empty: the label that bears the task's name."""
    class_weights: Literal["none", "index"] = "none"
    """`index`: weigh each class by (samples of the largest class) / (its samples), counted as an epoch draws them."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each target that is spread evenly over all classes (Szegedy et al. 2016)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Dropout before the linear layer."""

    def build(self, name: str, around: Surroundings) -> "Classification":
        """Build the task, checked against the labels that the shards hold."""
        label = self.label or name
        field = label_field(f"tasks.{name}.label", label, "category", around.fields)
        counts = around.label_counts.get(label, ())
        if self.class_weights == "index" and len(counts) != len(field.classes):
            raise UserError(
                f"tasks.{name}.class_weights: the index holds no sample counts of '{label}'; use class_weights=none"
            )
        return Classification(name, self, field.classes, counts)


class StandardisedConfig(TaskConfig):
    """What the section of every task on standardised numbers shares."""

    offset: dict[str, float] = Field(default_factory=dict[str, float])
    """What is subtracted from a label, by name; by default 0 for degrees, 40 for years, else 0."""
    scale: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict[str, float])
    """What the rest is divided by, by name; by default 30 for degrees, 20 for years, else 1."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Dropout before the linear layer."""


class RegressionConfig(StandardisedConfig):
    """Predict number labels, such as age or head pose."""

    type: Literal["regression"] = "regression"
    """Kind of task."""
    labels: tuple[str, ...] | None = None
    """Number labels of the shards to predict; empty: the one label that bears the task's name."""
    loss: Literal["l1", "l2", "huber"] = "huber"
    """Loss of the standardised labels; `huber` turns linear at one `scale`."""

    def build(self, name: str, around: Surroundings) -> "Regression":
        """Build the task, checked against the labels that the shards hold."""
        for label in self.labels or (name,):
            label_field(f"tasks.{name}.labels", label, "number", around.fields)
        return Regression(name, self, around.fields)


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
    def figure_names(self) -> tuple[str, ...]:
        """Return what these figures will be called; nothing is built for it."""

    def prepare(self, inputs: Inputs) -> Prepared:
        """Add nothing: pictures and targets are in the batch already."""
        del inputs
        return Prepared()


class Classification(SupervisedTask):
    """Softmax cross-entropy over the classes of one category label; a missing label (-1) counts nowhere.

    With class weights c_k the loss of N samples is sum_n c_{y_n} * -log p_n(y_n) / sum_n c_{y_n}, the weighted mean of
    `torch.nn.CrossEntropyLoss`; c_k = max_j n_j / n_k is the weighting of the HMTL authors (arXiv 2105.06421). A common
    factor of the weights cancels, so scikit-learn's `balanced`, N / (K n_k), is the same loss.
    With label smoothing e the target of class k is (1 - e) [k = y] + e / K, before the weight of the true class y.
    A picture that is mixed (mixup, cutmix) counts as two samples, its own by its share s and its partner by 1 - s: its
    loss is s * L(y) + (1 - s) * L(y'), Zhang et al. (2018), section 2; where one label is missing, the other remains.
    Pictures that are read in several views count once a view.
    """

    def __init__(self, name: str, config: ClassificationConfig, classes: Sequence[str], counts: Sequence[int]) -> None:
        super().__init__(name, config.weight)
        self.label = config.label or name
        self.labels = (self.label,)
        self.classes = tuple(classes)
        self._dropout = config.dropout
        self._smoothing = config.label_smoothing
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
        parts = [self._weighted(targets_B, share_B) for targets_B, share_B in self._targets(inputs)]
        losses: list[Tensor] = []
        correct: list[Tensor] = []
        for output in outputs.values():
            logits = at_least_float32(output)
            said_B = logits.detach().argmax(1)
            for targets_B, valid_B, weight_B in parts:
                entropy_B = F.cross_entropy(logits, targets_B, reduction="none", label_smoothing=self._smoothing)
                losses.append((entropy_B * weight_B).sum())
                correct.append(((said_B == targets_B) * valid_B).sum())
        views = len(outputs)
        return LossTerms(
            sum=torch.stack(losses).sum(),
            count=torch.stack([weight_B.sum() for _, _, weight_B in parts]).sum() * views,
            metrics={
                "accuracy": (
                    torch.stack(correct).sum(),
                    torch.stack([valid_B.sum() for _, valid_B, _ in parts]).sum() * views,
                )
            },
        )

    def _targets(self, inputs: Inputs) -> list[tuple[Tensor, Tensor]]:
        """Return each label of the pictures, int64 `[B]`, and how much it counts, `[B]`: two where they are mixed."""
        labels_B, mix = inputs.labels[self.label], inputs.mix
        if mix is None:
            return [(labels_B, inputs.weight)]
        own_B = inputs.weight * mix.share
        return [(labels_B, own_B), (labels_B[mix.partners], inputs.weight - own_B)]

    def _weighted(self, labels_B: Tensor, share_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return targets without -1, and what each counts in the accuracy and in the loss; each `[B]`."""
        targets_B, valid_B = labels_B.clamp_min(0), share_B * (labels_B >= 0)
        self._class_weights = moved(self._class_weights, valid_B.device)
        return targets_B, valid_B, valid_B * self._class_weights[targets_B]

    def reading(self) -> HeadOutput:
        """Probabilities of the classes."""
        return HeadOutput(type="classification", names=self.classes)

    def answer(self, output: Tensor) -> Tensor:
        """Probabilities of the classes, `[B, K]`."""
        return output.softmax(1)

    def labelled(self, labels: Mapping[str, Tensor]) -> Tensor:
        """Samples whose class is known."""
        return labels[self.label] >= 0

    def score(self, answer: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
        """1 where the most probable class is the true one, else 0, `[B, 1]`."""
        right_B = (answer.argmax(1) == labels[self.label]).double()
        return right_B.masked_fill(~self.labelled(labels), torch.nan)[:, None]

    def metrics(self, device: torch.device, ranks: Ranks) -> ClassificationMetrics:
        """Accuracy, balanced accuracy, macro F1 and calibration, which torchmetrics sums over ranks by itself."""
        del ranks
        return ClassificationMetrics(self.label, len(self.classes), device)

    def figure_names(self) -> tuple[str, ...]:
        """Names of these figures."""
        return ClassificationMetrics.NAMES


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

    def figure_names(self) -> tuple[str, ...]:
        """Names of these figures."""
        return NumberMetrics.names(self)

    def mean_errors(
        self, outputs: Iterable[Tensor], targets: Tensor, valid: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the metrics `mae_LABEL` of a loss: mean absolute errors over all views, in the label's unit.

        Args:
            outputs: The head's outputs, one a view, `[B, out_features]`.
            targets: Numbers without NaN, `[B, R]`.
            valid: Weight of each number, 0 where there is none, `[B, R]`.
        """
        predictions = [self.predictions(output.detach()) for output in outputs]
        errors = [(self.errors(values_BR, targets).abs() * valid).sum(0) for values_BR in predictions]
        errors_R, counts_R = torch.stack(errors).sum(0), valid.sum(0) * len(errors)
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
        super().__init__(name, config.weight)
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

    def standardised(self, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """Return targets without NaN, the same standardised, and weights, 0 where there is no label; each `[B, R]`."""
        labels_BR = self.targets(inputs.labels)
        self._move(labels_BR.device)
        missing = labels_BR.isnan()
        # The missing are replaced before any arithmetic: 0 * NaN would still be NaN, in the gradient too.
        targets_BR = torch.where(missing, self._offset, labels_BR)
        return targets_BR, (targets_BR - self._offset) / self._scale, inputs.weight[:, None] * ~missing

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


class Regression(StandardisedTask):
    """L1, L2 or Huber (1964) loss of standardised numbers; a missing number (NaN) counts nowhere.

    The loss is the mean over all labels that are there, of all samples; pictures that are read in several views count
    once a view.
    """

    def __init__(self, name: str, config: RegressionConfig, fields: Mapping[str, LabelField]) -> None:
        super().__init__(name, config, config.labels or (name,), fields)
        self._loss = config.loss

    def loss(self, outputs: Mapping[str, Tensor], prepared: Prepared, inputs: Inputs, ranks: Ranks) -> LossTerms:
        """Sum over labels that are there; metrics `mae_LABEL` are mean absolute errors in the label's unit."""
        del prepared, ranks
        targets_BR, standard_BR, valid_BR = self.standardised(inputs)
        losses: list[Tensor] = []
        for output in outputs.values():
            values_BR = at_least_float32(output)
            losses.append((self._distance(values_BR, standard_BR.to(values_BR.dtype)) * valid_BR).sum())
        return LossTerms(
            sum=torch.stack(losses).sum(),
            count=valid_BR.sum() * len(outputs),
            metrics=self.mean_errors(outputs.values(), targets_BR, valid_BR),
        )

    def _distance(self, values: Tensor, targets: Tensor) -> Tensor:
        if self._loss == "l1":
            return F.l1_loss(values, targets, reduction="none")
        if self._loss == "l2":
            return F.mse_loss(values, targets, reduction="none")
        return F.huber_loss(values, targets, reduction="none", delta=HUBER_DELTA)


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


def label_field(path: str, label: str, kind: str, fields: Mapping[str, LabelField]) -> LabelField:
    """Return the field of a label that must be there and of this kind; the error starts with the dotted path."""
    allowed = sorted(name for name, field in fields.items() if field.kind == kind)
    if label not in fields:
        raise UserError(unknown(path, label, allowed) + f" (the {kind} labels of the shards)")
    if fields[label].kind != kind:
        other = "regression" if kind == "category" else "classification"
        raise UserError(f"{path}: '{label}' is a {fields[label].kind}, not a {kind}; use type={other}")
    return fields[label]


def _standard(label: str, unit: str) -> tuple[float, float]:
    return STANDARD_BY_UNIT.get(unit or UNIT_BY_NAME.get(label, ""), (0.0, 1.0))
