from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.utils.class_weight import (  # pyright: ignore[reportMissingTypeStubs]  # it has none
    compute_class_weight,  # pyright: ignore[reportUnknownVariableType]
)

from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.errors import UserError
from hmtl_dist.tasks.base import Prepared, SingleRank
from hmtl_dist.tasks.classification import Classification, ClassificationConfig
from hmtl_dist.tasks.head_pose import HeadPoseConfig
from hmtl_dist.tasks.registry import label_geometry
from hmtl_dist.tasks.regression import Regression, RegressionConfig
from hmtl_dist.tasks.so3 import GEOMETRY
from tests.tasks.batches import around, make_inputs
from tests.tasks.reference import Array, check_loss, log_softmax

FIELDS = {
    "expression": Field(kind="category", classes=("happy", "sad", "angry")),
    "yaw": Field(kind="number", unit="degrees"),
    "age": Field(kind="number"),
    "height": Field(kind="number", unit="cm"),
}
COUNTS = {"expression": [40, 10, 0]}
LABELS = np.array([0, -1, 2, 1, 1, 0])
WEIGHT = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 1.0])
YAW = np.array([10.0, np.nan, -35.0, 3.0, 80.0, np.nan])
AGE = np.array([np.nan, np.nan, 30.0, 77.0, 12.0, 5.0])


def logits(columns: int) -> torch.Tensor:
    return torch.randn(6, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def expression(class_weights: str = "none") -> Classification:
    config = ClassificationConfig.model_validate({"class_weights": class_weights})
    return config.build("expression", around(FIELDS, COUNTS))


def cross_entropies(values: NDArray[np.float64], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    shifted = values - values.max(1, keepdims=True)
    return np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(values)), targets.clip(0)]


@pytest.mark.parametrize(("class_weights", "by_class"), [("none", [1, 1, 1]), ("index", [1, 4, 0])])
def test_cross_entropy_is_the_weighted_sum_over_labelled_samples(class_weights: str, by_class: list[int]) -> None:
    output = logits(3)
    inputs = make_inputs(num_samples=6, labels={"expression": torch.tensor(LABELS)}, weight=torch.tensor(WEIGHT))

    terms = expression(class_weights).loss({"clean": output}, Prepared(), inputs, SingleRank())

    weights = np.array(by_class, float)[LABELS.clip(0)] * (LABELS >= 0) * WEIGHT
    assert terms.sum.item() == pytest.approx((cross_entropies(output.numpy(), LABELS) * weights).sum(), rel=1e-12)
    assert terms.count.item() == weights.sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.15])
@pytest.mark.parametrize(("class_weights", "by_class"), [("none", [1, 1, 1]), ("index", [1, 4, 0])])
def test_label_smoothing_spreads_a_share_over_all_classes(
    class_weights: str, by_class: list[int], smoothing: float
) -> None:
    config = ClassificationConfig.model_validate({"class_weights": class_weights, "label_smoothing": smoothing})
    task = config.build("expression", around(FIELDS, COUNTS))
    inputs = make_inputs(num_samples=6, labels={"expression": torch.tensor(LABELS)}, weight=torch.tensor(WEIGHT))
    weights = np.array(by_class, float)[LABELS.clip(0)] * (LABELS >= 0) * WEIGHT

    def reference(output: Array) -> float:
        smooth = (1 - smoothing) * np.eye(3)[LABELS.clip(0)] + smoothing / 3
        return float((-(smooth * log_softmax(output)).sum(1) * weights).sum() / weights.sum())

    check_loss(task, inputs, reference, logits(3).numpy())


def test_weights_that_are_balanced_as_scikit_learn_does_are_the_same_loss() -> None:
    present = LABELS[LABELS >= 0]
    balanced = cast("NDArray[np.float64]", compute_class_weight("balanced", classes=np.unique(present), y=present))
    counts = np.bincount(present).tolist()
    task = ClassificationConfig(class_weights="index").build("expression", around(FIELDS, {"expression": counts}))
    output = logits(3)

    terms = task.loss(
        {"clean": output},
        Prepared(),
        make_inputs(num_samples=6, labels={"expression": torch.tensor(LABELS)}),
        SingleRank(),
    )

    expected = torch.nn.functional.cross_entropy(output, torch.tensor(LABELS), torch.tensor(balanced), ignore_index=-1)
    assert (terms.sum / terms.count).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("loss", ["l1", "l2", "huber"])
def test_the_gradient_of_a_regression_is_that_of_its_formula(loss: str) -> None:
    inputs = make_inputs(
        num_samples=6, labels={"yaw": torch.tensor(YAW), "age": torch.tensor(AGE)}, weight=torch.tensor(WEIGHT)
    )
    targets = np.stack([YAW / 30, (AGE - 40) / 20], axis=1)
    valid = ~np.isnan(targets) * WEIGHT[:, None]

    def reference(output: Array) -> float:
        return float((distance(loss, output - np.nan_to_num(targets)) * valid).sum() / valid.sum())

    check_loss(pose(loss), inputs, reference, logits(2).numpy())


def test_accuracy_counts_every_labelled_sample_alike() -> None:
    output = torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 1, 1, 2]), 3).double()
    inputs = make_inputs(num_samples=6, labels={"expression": torch.tensor(LABELS)}, weight=torch.tensor(WEIGHT))

    right, count = expression("index").loss({"clean": output}, Prepared(), inputs, SingleRank()).metrics["accuracy"]

    assert (right.item(), count.item()) == (2, 4)


def test_two_views_count_as_two_samples() -> None:
    one, two = logits(3), logits(3).flip(0)
    inputs = make_inputs(num_samples=6, labels={"expression": torch.tensor(LABELS)}, weight=torch.tensor(WEIGHT))
    task = expression()

    both = task.loss({"clean": one, "puzzling": two}, Prepared(), inputs, SingleRank())

    single = [task.loss({"clean": view}, Prepared(), inputs, SingleRank()) for view in (one, two)]
    assert both.sum.item() == pytest.approx(sum(terms.sum.item() for terms in single))
    assert both.count.item() == sum(terms.count.item() for terms in single)


def distance(loss: str, error: NDArray[np.float64]) -> NDArray[np.float64]:
    size = np.abs(error)
    return {"l1": size, "l2": size**2, "huber": np.where(size < 1, 0.5 * size**2, size - 0.5)}[loss]


def pose(loss: str = "huber") -> Regression:
    return RegressionConfig.model_validate({"labels": ["yaw", "age"], "loss": loss}).build("pose", around(FIELDS))


@pytest.mark.parametrize("loss", ["l1", "l2", "huber"])
def test_regression_sums_the_distances_of_standardised_labels(loss: str) -> None:
    output = logits(2)
    labels = {"yaw": torch.tensor(YAW), "age": torch.tensor(AGE)}
    inputs = make_inputs(num_samples=6, labels=labels, weight=torch.tensor(WEIGHT))

    terms = pose(loss).loss({"clean": output}, Prepared(), inputs, SingleRank())

    targets = np.stack([YAW / 30, (AGE - 40) / 20], axis=1)
    valid = ~np.isnan(targets) * WEIGHT[:, None]
    expected = (distance(loss, output.numpy() - np.nan_to_num(targets)) * valid).sum()
    assert terms.sum.item() == pytest.approx(expected, rel=1e-12)
    assert terms.count.item() == valid.sum()


def test_mean_absolute_errors_are_in_the_unit_of_the_label() -> None:
    output = torch.zeros(6, 2, dtype=torch.float64)  # says 0 degrees and 40 years
    labels = {"yaw": torch.tensor(YAW), "age": torch.tensor(AGE)}
    inputs = make_inputs(num_samples=6, labels=labels, weight=torch.tensor(WEIGHT))

    metrics = pose().loss({"clean": output}, Prepared(), inputs, SingleRank()).metrics

    assert [value.item() for value in metrics["mae_yaw"]] == [48, 3]
    assert [value.item() for value in metrics["mae_age"]] == [82, 3]


def test_predictions_are_in_the_unit_of_the_label() -> None:
    output = torch.tensor([[1.0, -1.0]])

    assert pose().predictions(output).numpy().tolist() == [[30.0, 20.0]]


def test_labels_missing_everywhere_give_no_loss_and_no_gradient() -> None:
    output = logits(2).requires_grad_()
    nowhere = torch.full((6,), torch.nan)
    inputs = make_inputs(num_samples=6, labels={"yaw": nowhere, "age": nowhere})

    terms = pose().loss({"clean": output}, Prepared(), inputs, SingleRank())

    assert (terms.sum.item(), terms.count.item()) == (0, 0)
    assert torch.equal(torch.autograd.grad(terms.sum, output)[0], torch.zeros_like(output))


def test_offset_and_scale_of_the_configuration_win() -> None:
    config = RegressionConfig(labels=("yaw", "height"), offset={"height": 170.0}, scale={"height": 10.0})

    task = config.build("body", around(FIELDS))

    assert task.predictions(torch.tensor([[1.0, 1.0]])).numpy().tolist() == [[30.0, 180.0]]


def test_a_misspelt_label_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^tasks\.mood\.label: 'expresion' .*did you mean 'expression'\?"):
        ClassificationConfig(label="expresion").build("mood", around(FIELDS, COUNTS))


def test_a_number_cannot_be_classified() -> None:
    with pytest.raises(UserError, match=r"^tasks\.yaw\.label: 'yaw' is a number, not a category; use type=regression"):
        ClassificationConfig().build("yaw", around(FIELDS, COUNTS))


def test_class_weights_need_counts() -> None:
    with pytest.raises(UserError, match=r"^tasks\.expression\.class_weights: the index holds no sample counts"):
        ClassificationConfig(class_weights="index").build("expression", around(FIELDS, {}))


def test_a_scale_of_an_unused_label_is_refused() -> None:
    with pytest.raises(UserError, match=r"^tasks\.yaw\.scale: 'age' is not one of yaw"):
        RegressionConfig(scale={"age": 3.0}).build("yaw", around(FIELDS))


def test_an_angle_that_turns_with_its_picture_is_in_degrees() -> None:
    radians = Field(kind="number", unit="radians")
    with pytest.raises(UserError, match=r"^tasks\.roll\.labels: label 'roll' is in radians, not in degrees"):
        RegressionConfig().build("roll", around({"roll": radians}))
    assert RegressionConfig().build("pitch", around({"pitch": radians})).labels == ("pitch",)


def test_a_class_is_no_angle_whatever_its_name() -> None:
    assert (
        label_geometry({"roll": ClassificationConfig(), "yaw": RegressionConfig(), "pose": HeadPoseConfig()})
        == GEOMETRY
    )
    assert label_geometry({"roll": ClassificationConfig()}) == {}
