"""Classification: one category label, such as the expression of a face.

Shape legend: B samples, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hmtl_dist.errors import UserError
from hmtl_dist.tasks.base import Inputs, LinearHead, LossTerms, Prepared, Ranks, Surroundings, TaskConfig
from hmtl_dist.tasks.metrics import ClassificationMetrics
from hmtl_dist.tasks.reading import HeadOutput, at_least_float32
from hmtl_dist.tasks.supervised import SupervisedTask, label_field, moved


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
        if len(field.classes) < 2:
            raise UserError(
                f"tasks.{name}.label: '{label}' has one class, {', '.join(field.classes)}: there is nothing to tell "
                "apart; build the shards with two classes or more, or leave the task out"
            )
        counts = around.label_counts.get(label, ())
        if self.class_weights == "index" and len(counts) != len(field.classes):
            raise UserError(
                f"tasks.{name}.class_weights: the index holds no sample counts of '{label}'; use class_weights=none"
            )
        return Classification(name, self, field.classes, counts)


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
        super().__init__(name, config)
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

    def metric_names(self) -> tuple[str, ...]:
        """Names of these figures."""
        return ClassificationMetrics.NAMES
