"""Evaluation figures of the supervised tasks, counted over all ranks with masked samples left out.

Shape legend: B samples, K classes, R number labels.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl_dist.tasks.base import Ranks
from hmtl_dist.tasks.concordance import concordance, moments
from hmtl_dist.torchvision_care import prepare_torchvision

if TYPE_CHECKING:
    from hmtl_dist.tasks.numbers import NumberTask

CALIBRATION_BINS = 15
"""Bins of confidence behind the calibration error, as Guo et al. (ICML 2017) count them."""


class TaskMetrics(Protocol):
    """Figures of one task, gathered batch by batch."""

    def update(self, output: Tensor, labels: Mapping[str, Tensor], weight: Tensor) -> None:
        """Count a batch: the head's output, labels `[B]` by name, and weights `[B]` of which 0 leaves a sample out."""
        ...

    def compute(self) -> dict[str, float]:
        """Return the figures over all ranks, by name without the task's; collective."""
        ...

    def confusion(self) -> NDArray[np.int64] | None:
        """Return the counts `[K, K]` of the last `compute`: row = true class, column = predicted; None for numbers."""
        ...


class ClassificationMetrics:
    """Accuracy, balanced accuracy (mean recall of the classes that occur), macro F1, confusion matrix and calibration.

    The expected calibration error is the mean over samples of |accuracy - confidence| of their bin of confidence.
    """

    NAMES = ("accuracy", "balanced_accuracy", "macro_f1", "ece")

    def __init__(self, label: str, num_classes: int, device: torch.device) -> None:
        self._label = label
        prepare_torchvision()
        from torchmetrics.classification import MulticlassCalibrationError, MulticlassConfusionMatrix

        matrix = MulticlassConfusionMatrix(num_classes, ignore_index=-1, validate_args=False)
        self._matrix = matrix.to(device)
        calibration = MulticlassCalibrationError(
            num_classes, n_bins=CALIBRATION_BINS, norm="l1", ignore_index=-1, validate_args=False
        )
        self._calibration = calibration.to(device)
        self._confusion: NDArray[np.int64] = np.zeros((num_classes,) * 2, np.int64)

    def update(self, output: Tensor, labels: Mapping[str, Tensor], weight: Tensor) -> None:
        """Count a batch of logits `[B, K]`."""
        targets = torch.where(weight > 0, labels[self._label], -1)
        self._matrix.update(output.argmax(1), targets)
        # Probabilities: torchmetrics takes logits that all lie in [0, 1] for such.
        self._calibration.update(output.softmax(1), targets)

    def compute(self) -> dict[str, float]:
        """Return `accuracy`, `balanced_accuracy`, `macro_f1` and `ece`; NaN where no sample is labelled."""
        self._confusion = self._matrix.compute().cpu().numpy().astype(np.int64)
        return {**confusion_metrics(self._confusion), "ece": float(self._calibration.compute())}

    def confusion(self) -> NDArray[np.int64]:
        """Return the counts `[K, K]` of the last `compute`."""
        return self._confusion


class NumberMetrics:
    """Mean absolute error of each label in its unit, and its concordance with the truth where the task asks for it."""

    def __init__(self, task: "NumberTask", device: torch.device, ranks: Ranks) -> None:
        self._task = task
        self._ranks = ranks
        prepare_torchvision()
        from torchmetrics import MeanMetric

        self._means = {label: MeanMetric(nan_strategy="disable").to(device) for label in task.labels}
        # torchmetrics' own coefficient is NaN, with a warning, where predictions are constant.
        self._moments = torch.zeros(len(task.labels), 6, dtype=torch.float64, device=device)

    def update(self, output: Tensor, labels: Mapping[str, Tensor], weight: Tensor) -> None:
        """Count a batch of outputs `[B, out_features]`."""
        predictions_BR, targets_BR = self._task.predictions(output), self._task.targets(labels)
        errors_BR = self._task.errors(predictions_BR, targets_BR).abs()
        valid_BR = (weight > 0)[:, None] & ~targets_BR.isnan()
        for column, mean in enumerate(self._means.values()):
            # the valid ones alone: with nan_strategy="disable" torchmetrics 1.9 ignores weights
            mean.update(errors_BR[:, column][valid_BR[:, column]])
        self._moments = self._moments + moments(predictions_BR, targets_BR.nan_to_num(), valid_BR)

    def compute(self) -> dict[str, float]:
        """Return `mae_LABEL`, and `ccc_LABEL`, for every label; `mae` and `ccc` are means over labels of one unit."""
        metrics = {"mae": {label: float(mean.compute()) for label, mean in self._means.items()}}
        if self._task.concordance:
            sums = self._ranks.all_reduce_sum(self._moments)
            found = torch.where(sums[:, 0] > 1, concordance(sums), torch.nan)
            metrics["ccc"] = dict(zip(self._task.labels, map(float, found.cpu()), strict=True))
        named = {f"{kind}_{label}": value for kind, values in metrics.items() for label, value in values.items()}
        if self._task.one_unit:
            named |= {kind: float(np.mean([*values.values()])) for kind, values in metrics.items()}
        return named

    def confusion(self) -> None:
        """Return nothing: numbers have no classes."""

    @staticmethod
    def names(task: "NumberTask") -> tuple[str, ...]:
        """Return what the figures of a task will be called."""
        kinds = ("mae", "ccc") if task.concordance else ("mae",)
        named = [f"{kind}_{label}" for kind in kinds for label in task.labels]
        return (*named, *kinds) if task.one_unit else tuple(named)


def confusion_metrics(confusion: NDArray[np.int64]) -> dict[str, float]:
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
