"""The sections of a space beside its parameters: search, schedule, budget, constraints."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from hmtl_dist.config.base import Section

Count = Annotated[int, Field(ge=1)]
Mode = Literal["max", "min"]
Metric = Annotated[str, Field(pattern=r"^(eval/)?[^/]+/[^/]+$")]
MAX_TRIALS = 10_000
MAX_STARTUP = 10


class SearchConfig(Section):
    """How the values of the next trial are chosen."""

    method: Literal["random", "grid", "optuna"] = "optuna"
    """`random`: independent draws; `grid`: every combination; `optuna`: learns from the trials before."""
    sampler: Literal["tpe", "cmaes", "gp"] = "tpe"
    """For `optuna`: tree-structured Parzen estimators, CMA-ES (numbers only), or a Gaussian process."""
    startup: Annotated[int, Field(ge=1)] | None = None
    """For `optuna`: random trials before it begins to learn; a quarter of the trials, ten at most, if empty."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Moves every draw of the search."""

    @model_validator(mode="before")
    @classmethod
    def _method_alone(cls, value: Any) -> Any:
        return {"method": value} if isinstance(value, str) else value


class Fifo(Section):
    """Every trial trains to its end."""

    type: Literal["fifo"]


class Asha(Section):
    """Asynchronous successive halving (Li et al. 2018): at each rung only the best 1/`reduction` go on."""

    type: Literal["asha"]
    grace_epochs: Count = 1
    """Epochs that every trial trains, where the first rung is."""
    reduction: Annotated[float, Field(gt=1)] = 3.0
    """Each rung is so many times as far as the one before, and so many times fewer trials pass it."""


class Median(Section):
    """Stops a trial whose best is worse than the median of the others' running means (Golovin et al. 2017)."""

    type: Literal["median"]
    grace_epochs: Count = 1
    """Epochs that every trial trains."""
    min_trials: Annotated[int, Field(ge=2)] = 3
    """Trials that must have come as far before any is judged."""


class Pbt(Section):
    """Population based training (Jaderberg et al. 2017): the worst go on from the best one's weights, changed."""

    type: Literal["pbt"]
    interval_epochs: Count = 1
    """Epochs between two exchanges."""
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Share of the population that counts as worst, and as best."""
    resample: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Probability that a value is drawn anew; otherwise it is multiplied by one of `factors`."""
    factors: tuple[float, float] = (0.8, 1.25)
    """What a number is multiplied by."""


class Pb2(Section):
    """Population based bandits (Parker-Holder et al. 2020): as `pbt`, but a Gaussian process chooses the new values."""

    type: Literal["pb2"]
    interval_epochs: Count = 1
    """Epochs between two exchanges."""
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Share of the population that counts as worst, and as best."""


AnySchedule = Annotated[Fifo | Asha | Median | Pbt | Pb2, Field(discriminator="type")]


class Budget(Section):
    """What a sweep may cost."""

    trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] | None = None
    """Trials, those that are stopped early included; all combinations of a grid if empty."""
    hours: Annotated[float, Field(gt=0)] | None = None
    """Hours of wall-clock time, over all parts of a sweep that was interrupted."""
    epochs: Count | None = None
    """Epochs of a trial that trains to its end; the recipe's `train.epochs` if empty."""


class Second(Section):
    """A second figure of every trial, for a Pareto front."""

    metric: Metric
    """Figure of an evaluation."""
    mode: Mode = "max"
    """Whether more or less of it is better."""


class Constraint(Section):
    """A bound on a sum of parameters, or on a figure of the evaluation."""

    sum: tuple[str, ...] | None = None
    """Parameters whose sum is bounded; a draw outside is never tried."""
    metric: Metric | None = None
    """Figure that is bounded; a trial outside is no winner, and `optuna` keeps away from it."""
    max: float | None = None
    """Greatest value."""
    min: float | None = None
    """Least value."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.sum is None) == (self.metric is None):
            raise ValueError("give one of sum (parameters) and metric (a figure)")
        if self.max is None and self.min is None:
            raise ValueError("give max or min, or both")
        return self

    def violation(self, value: float) -> float:
        """Return how far a value lies outside, 0 or less if it does not."""
        above = value - self.max if self.max is not None else float("-inf")
        below = self.min - value if self.min is not None else float("-inf")
        return max(above, below)
