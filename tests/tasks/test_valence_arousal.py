import numpy as np
import pytest
import torch

from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.errors import UserError
from hmtl_dist.tasks.base import Prepared, SingleRank
from hmtl_dist.tasks.valence_arousal import ValenceArousal, ValenceArousalConfig
from tests.tasks.batches import around, make_inputs
from tests.tasks.reference import Array, check_loss

FIELDS = {
    "valence": Field(kind="number"),
    "arousal": Field(kind="number"),
    "age": Field(kind="number", unit="years"),
    "mood": Field(kind="category", classes=("good", "bad")),
}
NAN = np.nan
VALENCE = np.array([0.1, -0.8, NAN, 0.5, 0.9, -0.2])
AROUSAL = np.array([NAN, 0.3, 0.2, 0.7, -0.1, NAN])
WEIGHT = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 1.0])


def task() -> ValenceArousal:
    return ValenceArousalConfig().build("affect", around(FIELDS))


def lin(predictions: Array, targets: Array) -> float:
    apart = (predictions.mean() - targets.mean()) ** 2
    covariance = np.cov(predictions, targets, ddof=0)[0, 1]
    return float(2 * covariance / (predictions.var() + targets.var() + apart))


def test_the_loss_is_one_less_lins_concordance_of_the_labelled_samples() -> None:
    labels = {"valence": torch.tensor(VALENCE), "arousal": torch.tensor(AROUSAL)}
    inputs = make_inputs(num_samples=6, labels=labels, weight=torch.tensor(WEIGHT))

    def reference(output: Array) -> float:
        there = [~np.isnan(values) & (WEIGHT > 0) for values in (VALENCE, AROUSAL)]
        return 1 - float(np.mean([lin(output[rows, i], (VALENCE, AROUSAL)[i][rows]) for i, rows in enumerate(there)]))

    check_loss(task(), inputs, reference, np.random.default_rng(0).normal(0.3, 0.5, (6, 2)))


@pytest.mark.parametrize(("sign", "expected"), [(1.0, 0.0), (-1.0, 2.0), (0.0, 1.0)])
def test_perfect_opposite_and_constant_predictions_lose_0_2_and_1(sign: float, expected: float) -> None:
    values = torch.tensor([-0.5, 0.5, -0.1, 0.1], dtype=torch.float64)
    inputs = make_inputs(labels={"valence": values, "arousal": values})

    terms = task().loss({"clean": sign * torch.stack([values, values], 1)}, Prepared(), inputs, SingleRank())

    assert (terms.sum / terms.count).item() == pytest.approx(expected, abs=1e-9)


def test_a_label_of_a_single_sample_has_no_concordance() -> None:
    alone = torch.tensor([0.5, NAN, NAN, NAN], dtype=torch.float64)
    output = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    inputs = make_inputs(labels={"valence": alone, "arousal": alone})

    terms = task().loss({"clean": output}, Prepared(), inputs, SingleRank())

    assert (terms.sum.item(), terms.count.item()) == (0, 0)
    assert torch.equal(torch.autograd.grad(terms.sum, output)[0], torch.zeros_like(output))


def test_any_numbers_may_be_concorded_in_their_own_units() -> None:
    config = ValenceArousalConfig(labels=("age",))

    ages = config.build("ages", around(FIELDS)).predictions(torch.tensor([[0.5]]))

    assert ages.item() == 50.0


def test_a_category_has_no_concordance() -> None:
    with pytest.raises(UserError, match=r"^tasks\.affect\.labels: 'mood' is a category, not a number"):
        ValenceArousalConfig(labels=("mood",)).build("affect", around(FIELDS))
