"""How the tasks' global mean losses become one number, and what that means for each gradient.

A weighting sees detached global losses L_i only and returns, besides the total, the derivative of the total by each
loss. The gradient of sum_i (dT/dL_i) * L_i is then that of the total itself (chain rule), although every rank holds
only its own part of L_i.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from hmtl_dist.config.base import Section

EPSILON = 1e-12


class WeightingConfig(Section):
    """How the tasks' losses become one; each task's own `weight` applies in all of them."""

    type: Literal["sum", "geometric", "uncertainty", "dwa"] = "sum"
    """`sum`: weighted sum; `geometric`: weighted geometric mean; `uncertainty`: a learned variance for each task
    (Kendall et al. 2018); `dwa`: tasks that improve slowly weigh more (Liu et al. 2019)."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """For `dwa`: the higher, the more even the weights."""

    @model_validator(mode="before")
    @classmethod
    def _type_alone(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value


@dataclass(frozen=True)
class Weighted:
    """The total of a step and its derivative by each task's global mean loss."""

    total: Tensor
    """Scalar float64; carries a gradient to the log-variances of `uncertainty` and to nothing else."""
    by_loss: Tensor
    """dT/dL_i, float64 `[n]`, detached."""


class Weighting:
    """The weighted sum T = sum_i w_i L_i, and the base of the others.

    A task whose labels are missing everywhere in a step has no loss there: it takes no part in the total.
    """

    needs_log_vars = False

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights
        """The tasks' own weights, float64 `[n]`."""

    def combine(self, losses: Tensor, present: Tensor, log_vars: Tensor | None) -> Weighted:
        """Combine the global mean losses of a step.

        Args:
            losses: Global means, float64 `[n]`, detached; 0 where missing.
            present: 1 where the task has a loss in this step, else 0, float64 `[n]`.
            log_vars: The model's log-variances `[n]`, where the weighting learns them.

        Returns:
            The total and its derivatives.
        """
        del log_vars
        by_loss = self._to(losses.device) * present
        return Weighted((by_loss * losses).sum(), by_loss)

    def end_epoch(self) -> None:
        """Take note that an epoch is complete."""

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must keep."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""

    def _to(self, device: torch.device) -> Tensor:
        self.weights = self.weights.to(device)
        return self.weights


class GeometricWeighting(Weighting):
    """The weighted geometric mean T = prod_i L_i ** (w_i / sum_j w_j), as in Chennupati et al. (MultiNet++, 2019).

    dT/dL_i = T * w_i / (sum_j w_j * L_i): every task is scaled by the inverse of its own loss.
    """

    def combine(self, losses: Tensor, present: Tensor, log_vars: Tensor | None) -> Weighted:
        """Combine the losses that are there; a tiny constant keeps the derivative of a zero loss finite."""
        del log_vars
        weights = self._to(losses.device) * present
        shares = weights / weights.sum().clamp_min(EPSILON)
        safe = losses + EPSILON
        total = torch.exp((shares * safe.log()).sum()) * (weights.sum() > 0)
        return Weighted(total, total * shares / safe)


class UncertaintyWeighting(Weighting):
    """T = sum_i w_i (exp(-s_i) L_i + s_i / 2) with learned s_i = log sigma_i^2.

    Source: Kendall, Gal, Cipolla, "Multi-task learning using uncertainty to weigh losses", CVPR 2018, eq. 7-10. The
    factor 1/2 of their regression likelihood is a constant of the loss's scale, which s_i learns anyway.
    """

    needs_log_vars = True

    def combine(self, losses: Tensor, present: Tensor, log_vars: Tensor | None) -> Weighted:
        """Combine the losses; raises ValueError without log-variances."""
        if log_vars is None:
            raise ValueError("the model returned no log-variances: build it with log_vars=objective.log_vars")
        weights = self._to(losses.device) * present
        precision = torch.exp(-log_vars.to(losses.dtype))
        total = (weights * (precision * losses + log_vars / 2)).sum()
        return Weighted(total, (weights * precision).detach())


class DynamicWeighting(Weighting):
    """Dynamic weight average: T = sum_i w_i lambda_i L_i, lambda_i = n exp(r_i / t) / sum_j exp(r_j / t).

    r_i is the mean loss of the last epoch over that of the one before; in the first two epochs every lambda_i is 1.
    Source: Liu, Johns, Davison, "End-to-end multi-task learning with attention", CVPR 2019, eq. 7 (temperature 2).
    """

    def __init__(self, weights: Tensor, temperature: float) -> None:
        super().__init__(weights)
        self._temperature = temperature
        zeros = torch.zeros_like(weights)
        self._state = {
            "sum": zeros.clone(),  # of this epoch's losses
            "count": zeros.clone(),  # of the steps in which a task had a loss
            "last": zeros.clone(),  # mean loss of the last epoch, 0 = unknown
            "before": zeros.clone(),  # mean loss of the epoch before that
        }

    def combine(self, losses: Tensor, present: Tensor, log_vars: Tensor | None) -> Weighted:
        """Combine the losses by the trends of the past epochs, and remember them for the next."""
        del log_vars
        self.load_state(self._state, losses.device)
        last, before = self._state["last"], self._state["before"]
        known = (last > 0) & (before > 0)
        ratio = torch.where(known, last / before.clamp_min(EPSILON), 1.0)
        factor = torch.softmax(ratio / self._temperature, 0) * len(ratio)
        counted = present * losses.isfinite()  # a loss that is not belongs to a step that is not taken
        self._state["sum"] = self._state["sum"] + torch.where(counted > 0, losses, 0.0) * counted
        self._state["count"] = self._state["count"] + counted
        by_loss = self._to(losses.device) * factor * present
        return Weighted((by_loss * losses).sum(), by_loss)

    def end_epoch(self) -> None:
        """Shift: this epoch's means become the last epoch's."""
        mean = self._state["sum"] / self._state["count"].clamp_min(1)
        zeros = torch.zeros_like(mean)
        self._state = {"sum": zeros, "count": zeros.clone(), "last": mean, "before": self._state["last"]}

    def state(self) -> dict[str, Tensor]:
        """Return the running means."""
        return {name: value.clone() for name, value in self._state.items()}

    def load_state(self, state: Mapping[str, Tensor], device: torch.device | None = None) -> None:
        """Restore the running means."""
        self._state = {name: state[name].to(device or state[name].device) for name in self._state}


def build_weighting(config: WeightingConfig, weights: list[float]) -> Weighting:
    """Build the weighting of tasks with these weights."""
    tensor = torch.tensor(weights, dtype=torch.float64)
    match config.type:
        case "sum":
            return Weighting(tensor)
        case "geometric":
            return GeometricWeighting(tensor)
        case "uncertainty":
            return UncertaintyWeighting(tensor)
        case "dwa":
            return DynamicWeighting(tensor, config.temperature)
