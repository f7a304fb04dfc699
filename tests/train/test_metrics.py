"""Evaluation figures beside those of scikit-learn, and by hand."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.metrics import (  # pyright: ignore[reportMissingTypeStubs]  # it has none
    accuracy_score,  # pyright: ignore[reportUnknownVariableType]
    balanced_accuracy_score,  # pyright: ignore[reportUnknownVariableType]
    f1_score,  # pyright: ignore[reportUnknownVariableType]
)

from hmtl_dist.data.schema import Field
from hmtl_dist.tasks.supervised import Classification, ClassificationConfig, Regression, RegressionConfig
from hmtl_dist.train.metrics import ClassificationMetrics, RegressionMetrics, build_metrics

CLASSES = ("neutral", "happy", "sad", "angry")
CPU = torch.device("cpu")


def classification() -> ClassificationMetrics:
    return ClassificationMetrics(Classification("mood", ClassificationConfig(), CLASSES, ()), CPU)


def count(
    metrics: ClassificationMetrics, predicted: Sequence[int], true: Sequence[int], weight: Sequence[float] | None = None
) -> None:
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), len(CLASSES)).float()
    metrics.update(logits, {"mood": torch.tensor(true)}, torch.tensor(weight or [1.0] * len(true)))


def regression() -> RegressionMetrics:
    fields = {"yaw": Field(kind="number", unit="degrees"), "pitch": Field(kind="number", unit="degrees")}
    task = Regression("pose", RegressionConfig(labels=("yaw", "pitch"), scale={"yaw": 10.0, "pitch": 10.0}), fields)
    return RegressionMetrics(task, CPU)


def test_figures_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    true, predicted = generator.integers(0, 4, (2, 200)).tolist()
    metrics = classification()
    count(metrics, predicted[:150], true[:150])
    count(metrics, predicted[150:], true[150:])
    assert metrics.figures() == pytest.approx(
        {
            "accuracy": accuracy_score(true, predicted),
            "balanced_accuracy": balanced_accuracy_score(true, predicted),
            "macro_f1": f1_score(true, predicted, average="macro"),
        }
    )


def test_classes_that_do_not_occur_take_no_part() -> None:
    true, predicted = [0, 0, 0, 1, 1, 0], [0, 0, 2, 1, 0, 0]
    metrics = classification()
    count(metrics, predicted, true)
    figures = metrics.figures()
    assert figures["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert figures["macro_f1"] == pytest.approx(f1_score(true, predicted, labels=[0, 1], average="macro"))


def test_perfect_predictions_are_1() -> None:
    metrics = classification()
    count(metrics, [0, 1, 1, 3], [0, 1, 1, 3])
    assert metrics.figures() == {"accuracy": 1.0, "balanced_accuracy": 1.0, "macro_f1": 1.0}


def test_one_answer_to_everything_has_the_balanced_accuracy_of_chance() -> None:
    metrics = classification()
    count(metrics, [0] * 8, [0, 0, 0, 0, 0, 1, 2, 3])
    figures = metrics.figures()
    assert (figures["accuracy"], figures["balanced_accuracy"]) == (5 / 8, 1 / 4)
    assert figures["macro_f1"] == pytest.approx(2 * 5 / (5 + 8) / 4)


def test_samples_without_label_or_weight_are_left_out() -> None:
    metrics = classification()
    count(metrics, [0, 1, 2, 0], [0, 1, -1, 3], [1.0, 1.0, 1.0, 0.0])
    assert metrics.figures()["accuracy"] == 1.0
    assert metrics.confusion.sum() == 2


def test_a_row_of_the_confusion_matrix_is_a_true_class() -> None:
    metrics = classification()
    count(metrics, [2, 2, 1], [0, 0, 1])
    metrics.figures()
    assert metrics.confusion.tolist() == [[0, 0, 2, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_a_split_without_labels_has_no_accuracy() -> None:
    metrics = classification()
    count(metrics, [0, 1], [-1, -1])
    assert all(np.isnan(value) for value in metrics.figures().values())


def test_errors_of_a_regression_are_in_the_unit_of_the_label() -> None:
    metrics = regression()
    labels = {"yaw": torch.tensor([10.0, -20.0]), "pitch": torch.tensor([0.0, 5.0])}
    metrics.update(torch.tensor([[1.3, 0.0], [-2.0, 0.0]]), labels, torch.ones(2))
    assert metrics.figures() == pytest.approx({"mae_yaw": 1.5, "mae_pitch": 2.5})


def test_missing_numbers_and_masked_samples_have_no_error() -> None:
    metrics = regression()
    nan = float("nan")
    labels = {"yaw": torch.tensor([10.0, nan, 500.0]), "pitch": torch.tensor([nan, nan, nan])}
    metrics.update(torch.zeros(3, 2), labels, torch.tensor([1.0, 1.0, 0.0]))
    figures = metrics.figures()
    assert figures["mae_yaw"] == 10.0
    assert np.isnan(figures["mae_pitch"])


def test_batches_weigh_by_their_labelled_samples() -> None:
    metrics = regression()
    for yaw, number in ((4.0, 3), (8.0, 1)):
        labels = {"yaw": torch.full((number,), yaw), "pitch": torch.zeros(number)}
        metrics.update(torch.zeros(number, 2), labels, torch.ones(number))
    assert metrics.figures()["mae_yaw"] == 5.0


def test_every_supervised_task_has_figures() -> None:
    fields = {"age": Field(kind="number", unit="years")}
    tasks = [
        Classification("mood", ClassificationConfig(), CLASSES, ()),
        Regression("age", RegressionConfig(), fields),
    ]
    assert list(build_metrics(tasks, CPU)) == ["mood", "age"]
