import numpy as np
import pytest
import torch

from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.tasks.age import Age, AgeConfig
from hmtl_dist.tasks.base import Prepared, SingleRank
from tests.tasks.batches import around, make_inputs
from tests.tasks.reference import Array, check_loss, log_softmax

FIELDS = {"age": Field(kind="number", unit="years")}
AGES = np.array([20.0, 33.4, np.nan, 71.0, 5.0, 12.0])
WEIGHT = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 1.0])


def task(**settings: object) -> Age:
    return AgeConfig.model_validate({"youngest": 15, "oldest": 70, **settings}).build("age", around(FIELDS))


def test_the_loss_is_cross_entropy_distance_and_variance() -> None:
    inputs = make_inputs(num_samples=6, labels={"age": torch.tensor(AGES)}, weight=torch.tensor(WEIGHT))
    years = np.arange(15, 71)

    def reference(output: Array) -> float:
        losses: list[float] = []
        for b in (0, 1, 3, 5):
            logs = log_softmax(output[b])
            age = np.clip(AGES[b], 15, 70)
            mean = (np.exp(logs) * years).sum()
            variance = (np.exp(logs) * (years - mean) ** 2).sum()
            losses.append(float(-logs[np.abs(years - age).argmin()] + 0.3 * abs(mean - age) + 0.01 * variance))
        return float(np.mean(losses))

    output = np.random.default_rng(0).normal(0, 1, (6, 56))
    check_loss(task(l1=0.3, variance=0.01), inputs, reference, output)


def test_the_error_is_in_years_of_the_true_age() -> None:
    inputs = make_inputs(num_samples=6, labels={"age": torch.tensor(AGES)}, weight=torch.tensor(WEIGHT))
    even = torch.zeros(6, 56)  # says 42.5

    error, count = task().loss({"clean": even}, Prepared(), inputs, SingleRank()).metrics["mae_age"]

    assert (error.item(), count.item()) == (pytest.approx(22.5 + 9.1 + 28.5 + 30.5), 4)


def test_a_sure_bin_is_read_as_its_year() -> None:
    logits = torch.full((1, 56), -1e4)
    logits[0, 27] = 0

    assert task().predictions(logits).item() == 42.0


def test_bins_need_two_ends() -> None:
    with pytest.raises(ValueError, match="oldest=20 must be above youngest=30"):
        AgeConfig(youngest=30, oldest=20)
