from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hmtl_dist.tasks.weighting import Weighting, WeightingConfig, build_weighting

WEIGHTS = [1.0, 0.3, 2.0]
LOSSES = torch.tensor([2.1, 0.04, 0.7], dtype=torch.float64)
LOG_VARS = torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64)
ALL = torch.ones(3, dtype=torch.float64)


def build(kind: str) -> Weighting:
    weighting = build_weighting(WeightingConfig.model_validate({"type": kind, "temperature": 2.0}), WEIGHTS)
    if kind == "dwa":
        for scale in (1.0, 0.5):
            weighting.combine(LOSSES * torch.tensor([1.0, scale, 1.0]), ALL, None)
            weighting.end_epoch()
    return weighting


def true_sum(losses: Tensor, log_vars: Tensor) -> Tensor:
    del log_vars
    return losses[0] * 1.0 + losses[1] * 0.3 + losses[2] * 2.0


def true_geometric(losses: Tensor, log_vars: Tensor) -> Tensor:
    del log_vars
    return (losses[0] ** 1.0 * losses[1] ** 0.3 * losses[2] ** 2.0) ** (1 / 3.3)


def true_uncertainty(losses: Tensor, log_vars: Tensor) -> Tensor:
    terms = [w * (loss / s.exp() + 0.5 * s) for w, loss, s in zip(WEIGHTS, losses, log_vars, strict=True)]
    return terms[0] + terms[1] + terms[2]


def true_dwa(losses: Tensor, log_vars: Tensor) -> Tensor:
    del log_vars
    trends = torch.tensor([1.0, 0.5, 1.0], dtype=torch.float64).div(2.0).exp()
    factors = 3 * trends / trends.sum()
    return true_sum(losses * factors, LOG_VARS)


TRUE = {"sum": true_sum, "geometric": true_geometric, "uncertainty": true_uncertainty, "dwa": true_dwa}


@pytest.mark.parametrize(("kind", "true"), TRUE.items())
def test_the_derivative_by_each_loss_is_that_of_the_formula(
    kind: str, true: Callable[[Tensor, Tensor], Tensor]
) -> None:
    losses, log_vars = LOSSES.clone().requires_grad_(), LOG_VARS.clone()
    (expected,) = torch.autograd.grad(true(losses, log_vars), losses)

    weighted = build(kind).combine(LOSSES, ALL, LOG_VARS)

    torch.testing.assert_close(weighted.by_loss, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("kind", "true"), TRUE.items())
def test_the_total_is_that_of_the_formula(kind: str, true: Callable[[Tensor, Tensor], Tensor]) -> None:
    weighted = build(kind).combine(LOSSES, ALL, LOG_VARS)

    torch.testing.assert_close(weighted.total, true(LOSSES, LOG_VARS), rtol=1e-9, atol=0)


def test_log_variances_have_the_gradient_of_the_formula() -> None:
    ours, theirs = LOG_VARS.clone().requires_grad_(), LOG_VARS.clone().requires_grad_()

    (actual,) = torch.autograd.grad(build("uncertainty").combine(LOSSES, ALL, ours).total, ours)

    (expected,) = torch.autograd.grad(true_uncertainty(LOSSES, theirs), theirs)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("kind", TRUE)
def test_a_task_without_loss_takes_no_part(kind: str) -> None:
    missing = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    log_vars = LOG_VARS.clone().requires_grad_()

    weighted = build(kind).combine(LOSSES * missing, missing, log_vars)

    assert weighted.by_loss[1] == 0
    assert torch.isfinite(weighted.by_loss).all()
    if kind == "uncertainty":
        assert torch.autograd.grad(weighted.total, log_vars)[0][1] == 0


def test_the_geometric_mean_of_the_present_losses_ignores_the_missing_one() -> None:
    missing = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)

    weighted = build("geometric").combine(LOSSES * missing, missing, None)

    assert weighted.total.item() == pytest.approx((2.1 * 0.7**2) ** (1 / 3))


@pytest.mark.parametrize("kind", TRUE)
def test_nothing_present_gives_zero_and_not_nan(kind: str) -> None:
    weighted = build(kind).combine(LOSSES * 0, ALL * 0, LOG_VARS)

    assert weighted.total == 0
    assert (weighted.by_loss == 0).all()


def test_dynamic_weights_are_even_in_the_first_two_epochs() -> None:
    weighting = build_weighting(WeightingConfig(type="dwa"), WEIGHTS)

    for _ in range(2):
        weighted = weighting.combine(LOSSES, ALL, None)
        torch.testing.assert_close(weighted.by_loss, torch.tensor(WEIGHTS, dtype=torch.float64))
        weighting.end_epoch()


def test_dynamic_weights_go_on_from_their_state() -> None:
    first, second = build("dwa"), build_weighting(WeightingConfig(type="dwa"), WEIGHTS)
    first.combine(LOSSES, ALL, None)

    second.load_state(first.state())
    first.end_epoch()
    second.end_epoch()

    expected = first.combine(LOSSES, ALL, None).by_loss
    assert torch.equal(second.combine(LOSSES, ALL, None).by_loss, expected)
    assert not torch.equal(expected, torch.tensor(WEIGHTS, dtype=torch.float64))


def test_a_weighting_is_named_alone() -> None:
    assert WeightingConfig.model_validate("geometric") == WeightingConfig(type="geometric")
