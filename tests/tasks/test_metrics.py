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

from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.tasks.base import SingleRank
from hmtl_dist.tasks.head_pose import HeadPose, HeadPoseConfig
from hmtl_dist.tasks.metrics import ClassificationMetrics, NumberMetrics
from hmtl_dist.tasks.regression import Regression, RegressionConfig
from hmtl_dist.tasks.valence_arousal import ValenceArousal, ValenceArousalConfig

CLASSES = ("neutral", "happy", "sad", "angry")
CPU = torch.device("cpu")


def classification() -> ClassificationMetrics:
    return ClassificationMetrics("mood", len(CLASSES), CPU)


def count(
    meter: ClassificationMetrics, predicted: Sequence[int], true: Sequence[int], weight: Sequence[float] | None = None
) -> None:
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), len(CLASSES)).float()
    meter.update(logits, {"mood": torch.tensor(true)}, torch.tensor(weight or [1.0] * len(true)))


def regression() -> NumberMetrics:
    fields = {"yaw": Field(kind="number", unit="degrees"), "pitch": Field(kind="number", unit="degrees")}
    task = Regression("pose", RegressionConfig(labels=("yaw", "pitch"), scale={"yaw": 10.0, "pitch": 10.0}), fields)
    return NumberMetrics(task, CPU, SingleRank())


def test_figures_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    true, predicted = generator.integers(0, 4, (2, 200)).tolist()
    meter = classification()
    count(meter, predicted[:150], true[:150])
    count(meter, predicted[150:], true[150:])
    metrics = meter.compute()
    del metrics["ece"]
    assert metrics == pytest.approx(
        {
            "accuracy": accuracy_score(true, predicted),
            "balanced_accuracy": balanced_accuracy_score(true, predicted),
            "macro_f1": f1_score(true, predicted, average="macro"),
        }
    )


def test_classes_that_do_not_occur_take_no_part() -> None:
    true, predicted = [0, 0, 0, 1, 1, 0], [0, 0, 2, 1, 0, 0]
    meter = classification()
    count(meter, predicted, true)
    metrics = meter.compute()
    assert metrics["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert metrics["macro_f1"] == pytest.approx(f1_score(true, predicted, labels=[0, 1], average="macro"))


def test_perfect_predictions_are_1() -> None:
    meter = classification()
    logits = torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 3]), 4) * 100.0
    meter.update(logits, {"mood": torch.tensor([0, 1, 1, 3])}, torch.ones(4))
    assert meter.compute() == {"accuracy": 1.0, "balanced_accuracy": 1.0, "macro_f1": 1.0, "ece": 0.0}


def test_one_answer_to_everything_has_the_balanced_accuracy_of_chance() -> None:
    meter = classification()
    count(meter, [0] * 8, [0, 0, 0, 0, 0, 1, 2, 3])
    metrics = meter.compute()
    assert (metrics["accuracy"], metrics["balanced_accuracy"]) == (5 / 8, 1 / 4)
    assert metrics["macro_f1"] == pytest.approx(2 * 5 / (5 + 8) / 4)


def test_samples_without_label_or_weight_are_left_out() -> None:
    meter = classification()
    count(meter, [0, 1, 2, 0], [0, 1, -1, 3], [1.0, 1.0, 1.0, 0.0])
    assert meter.compute()["accuracy"] == 1.0
    assert meter.confusion().sum() == 2


def test_a_row_of_the_confusion_matrix_is_a_true_class() -> None:
    meter = classification()
    count(meter, [2, 2, 1], [0, 0, 1])
    meter.compute()
    assert meter.confusion().tolist() == [[0, 0, 2, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_a_split_without_labels_has_no_accuracy() -> None:
    meter = classification()
    count(meter, [0, 1], [-1, -1])
    assert all(np.isnan(value) for value in meter.compute().values())


def test_errors_of_a_regression_are_in_the_unit_of_the_label() -> None:
    meter = regression()
    labels = {"yaw": torch.tensor([10.0, -20.0]), "pitch": torch.tensor([0.0, 5.0])}
    meter.update(torch.tensor([[1.3, 0.0], [-2.0, 0.0]]), labels, torch.ones(2))
    metrics = meter.compute()
    assert (metrics["mae_yaw"], metrics["mae_pitch"]) == (1.5, 2.5)


def test_missing_numbers_and_masked_samples_have_no_error() -> None:
    meter = regression()
    nan = float("nan")
    labels = {"yaw": torch.tensor([10.0, nan, 500.0]), "pitch": torch.tensor([nan, nan, nan])}
    meter.update(torch.zeros(3, 2), labels, torch.tensor([1.0, 1.0, 0.0]))
    metrics = meter.compute()
    assert metrics["mae_yaw"] == 10.0
    assert np.isnan(metrics["mae_pitch"])


def test_batches_weigh_by_their_labelled_samples() -> None:
    meter = regression()
    for yaw, number in ((4.0, 3), (8.0, 1)):
        labels = {"yaw": torch.full((number,), yaw), "pitch": torch.zeros(number)}
        meter.update(torch.zeros(number, 2), labels, torch.ones(number))
    assert meter.compute()["mae_yaw"] == 5.0


def test_calibration_error_is_the_gap_of_confidence_and_accuracy_in_15_bins() -> None:
    generator = np.random.default_rng(1)
    logits, true = generator.normal(0, 2, (300, 4)), generator.integers(0, 4, 300)
    meter = classification()
    for rows in (slice(0, 100), slice(100, 300)):
        batch = torch.tensor(logits[rows], dtype=torch.float32)
        meter.update(batch, {"mood": torch.tensor(true[rows])}, torch.ones(len(batch)))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == true
    bins = (confidence * 15).astype(int)
    gaps = [abs(right[bins == k].mean() - confidence[bins == k].mean()) * (bins == k).mean() for k in set(bins)]
    assert meter.compute()["ece"] == pytest.approx(sum(gaps), rel=1e-5)


def test_constant_predictions_have_the_calibration_error_of_their_confidence() -> None:
    meter = classification()
    count(meter, [0] * 8, [0, 0, 0, 0, 0, 1, 2, 3])
    confidence = np.e / (np.e + 3)
    assert meter.compute()["ece"] == pytest.approx(abs(5 / 8 - confidence), rel=1e-5)


def valence_arousal() -> NumberMetrics:
    fields = {name: Field(kind="number") for name in ("valence", "arousal")}
    return NumberMetrics(ValenceArousal("va", ValenceArousalConfig(), fields), CPU, SingleRank())


def test_concordance_is_lins_coefficient_of_all_batches_together() -> None:
    generator = np.random.default_rng(2)
    predicted, true = generator.normal(0.2, 0.3, (2, 60, 2))
    true[::7] = np.nan
    meter = valence_arousal()
    for rows in (slice(0, 13), slice(13, 60)):
        labels = {name: torch.tensor(true[rows, i]) for i, name in enumerate(("valence", "arousal"))}
        meter.update(torch.tensor(predicted[rows]), labels, torch.ones(len(true[rows])))
    metrics = meter.compute()
    there = ~np.isnan(true[:, 0])
    expected: list[float] = []
    for column in range(2):
        p, t = predicted[there, column], true[there, column]
        covariance = float(((p - p.mean()) * (t - t.mean())).mean())
        apart = float(p.mean() - t.mean()) ** 2
        expected.append(2 * covariance / (float(p.var()) + float(t.var()) + apart))
    assert [metrics["ccc_valence"], metrics["ccc_arousal"]] == pytest.approx(expected, rel=1e-6)
    assert metrics["ccc"] == pytest.approx(np.mean(expected), rel=1e-6)


@pytest.mark.parametrize(("predicted", "expected"), [([0.1, 0.5, -0.3], 1.0), ([0.2, 0.2, 0.2], 0.0)])
def test_perfect_predictions_have_concordance_1_and_constant_ones_0(predicted: list[float], expected: float) -> None:
    meter = valence_arousal()
    true = torch.tensor([0.1, 0.5, -0.3])
    meter.update(torch.tensor(predicted)[:, None].expand(3, 2), {"valence": true, "arousal": true}, torch.ones(3))
    assert meter.compute()["ccc"] == pytest.approx(expected, abs=1e-9)


def test_errors_of_a_pose_leave_out_extreme_heads_and_go_the_short_way_round() -> None:
    meter = NumberMetrics(HeadPose("pose", HeadPoseConfig()), CPU, SingleRank())
    nothing = torch.zeros(4, 6)  # says frontal
    labels = {
        "yaw": torch.tensor([10.0, -20.0, 5.0, 99.5]),
        "pitch": torch.tensor([0.0, 8.0, float("nan"), 0.0]),
        "roll": torch.tensor([3.0, 6.0, 0.0, 0.0]),
    }
    meter.update(nothing, labels, torch.ones(4))
    expected = {"mae_yaw": 15.0, "mae_pitch": 4.0, "mae_roll": 4.5, "mae": 23.5 / 3}
    assert meter.compute() == pytest.approx(expected, rel=1e-6)
    task = HeadPose("pose", HeadPoseConfig())
    assert task.errors(torch.tensor([[175.0]]), torch.tensor([[-95.0]])).item() == -90.0
