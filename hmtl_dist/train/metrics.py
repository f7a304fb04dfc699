"""Evaluation figures of the supervised tasks, counted over all ranks with masked samples left out.

Shape legend: B samples, K classes, R regressed labels.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl_dist.model.backbone import import_timm
from hmtl_dist.tasks.base import Task
from hmtl_dist.tasks.supervised import Classification, Regression


class TaskMetrics(Protocol):
    """Figures of one task, gathered batch by batch."""

    def update(self, output: Tensor, labels: Mapping[str, Tensor], weight: Tensor) -> None:
        """Count a batch: the head's output, labels `[B]` by name, and weights `[B]` of which 0 leaves a sample out."""
        ...

    def figures(self) -> dict[str, float]:
        """Return the figures over all ranks, by name without the task's; collective."""
        ...


class ClassificationMetrics:
    """Accuracy, balanced accuracy (mean recall of the classes that occur), macro F1 and the confusion matrix."""

    def __init__(self, task: Classification, device: torch.device) -> None:
        self.classes = task.classes
        self._label = task.label
        import_timm()  # torchmetrics imports torchvision, which needs the same care
        from torchmetrics.classification import MulticlassConfusionMatrix

        matrix = MulticlassConfusionMatrix(len(task.classes), ignore_index=-1, validate_args=False)
        self._matrix = matrix.to(device)
        self.confusion: NDArray[np.int64] = np.zeros((len(task.classes),) * 2, np.int64)
        """Counts `[K, K]` of the last `figures`: row = true class, column = predicted class."""

    def update(self, output: Tensor, labels: Mapping[str, Tensor], weight: Tensor) -> None:
        """Count a batch of logits `[B, K]`."""
        targets = labels[self._label]
        self._matrix.update(output.argmax(1), torch.where(weight > 0, targets, -torch.ones_like(targets)))

    def figures(self) -> dict[str, float]:
        """Return `accuracy`, `balanced_accuracy` and `macro_f1`; NaN where no sample is labelled."""
        self.confusion = self._matrix.compute().cpu().numpy().astype(np.int64)
        return confusion_figures(self.confusion)


class RegressionMetrics:
    """Mean absolute error of each label, in its unit."""

    def __init__(self, task: Regression, device: torch.device) -> None:
        self._task = task
        import_timm()
        from torchmetrics import MeanMetric

        self._means = {label: MeanMetric(nan_strategy="disable").to(device) for label in task.labels}

    def update(self, output: Tensor, labels: Mapping[str, Tensor], weight: Tensor) -> None:
        """Count a batch of outputs `[B, R]`."""
        predictions_BR = self._task.predictions(output)
        for column, (label, mean) in enumerate(self._means.items()):
            targets = labels[label]
            valid = (weight > 0) & ~targets.isnan()
            # the valid ones alone: with nan_strategy="disable" torchmetrics 1.9 ignores weights
            mean.update((predictions_BR[:, column] - targets).abs()[valid])

    def figures(self) -> dict[str, float]:
        """Return `mae_LABEL` for every label."""
        return {f"mae_{label}": float(mean.compute()) for label, mean in self._means.items()}


def build_metrics(tasks: Sequence[Task], device: torch.device) -> dict[str, TaskMetrics]:
    """Build the figures of every supervised task, by its name."""
    metrics: dict[str, TaskMetrics] = {}
    for task in tasks:
        if isinstance(task, Classification):
            metrics[task.name] = ClassificationMetrics(task, device)
        elif isinstance(task, Regression):
            metrics[task.name] = RegressionMetrics(task, device)
    return metrics


def confusion_figures(confusion: NDArray[np.int64]) -> dict[str, float]:
    """Reduce a confusion matrix `[K, K]` (rows: true class) to accuracy, balanced accuracy and macro F1.

    Classes that do not occur have no recall and no F1, so they take no part in the means.
    """
    right = np.diag(confusion).astype(np.float64)
    true, predicted = confusion.sum(1), confusion.sum(0)
    occurs = true > 0
    if not occurs.any():
        return dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1"), float("nan"))
    recall = right[occurs] / true[occurs]
    f1 = 2 * right[occurs] / (true + predicted)[occurs]
    return {
        "accuracy": float(right.sum() / true.sum()),
        "balanced_accuracy": float(recall.mean()),
        "macro_f1": float(f1.mean()),
    }
