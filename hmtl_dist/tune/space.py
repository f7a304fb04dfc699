"""Spaces: what a search varies, how it chooses, when it stops a trial early, and how much it may cost.

A space is a YAML file:

    metric: eval/expression/accuracy
    mode: max
    params:
      tasks.puzzling.weight: {type: loguniform, low: 0.05, high: 5.0}
      weighting.type: {type: choice, values: [sum, dwa]}
      weighting.temperature: {type: uniform, low: 1, high: 4, when: {weighting.type: dwa}}
    search: {method: optuna, sampler: tpe}
    schedule: {type: asha}
    budget: {trials: 16, epochs: 10}

Nothing here knows Ray.
"""

import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Self, cast

from pydantic import Field, ValidationError, field_validator, model_validator

from hmtl_dist.config.base import Section
from hmtl_dist.config.dialect import read_yaml
from hmtl_dist.config.explain import explain
from hmtl_dist.config.io import find_source
from hmtl_dist.errors import UserError
from hmtl_dist.tune.distributions import AnyDistribution, Fixed, is_active
from hmtl_dist.tune.sections import (
    MAX_TRIALS,
    AnySchedule,
    Budget,
    Constraint,
    Count,
    Fifo,
    Metric,
    Mode,
    Pb2,
    Pbt,
    SearchConfig,
    Second,
)
from hmtl_dist.tune.soundness import check_sound


class Space(Section):
    """A search over the settings of a recipe."""

    metric: Metric
    """Figure of the last evaluation that decides, such as `eval/expression/accuracy`."""
    mode: Mode = "max"
    """Whether more (`max`) or less (`min`) of it is better."""
    second: Second | None = None
    """A second figure: the trials that no other one beats in both make the Pareto front."""
    params: Annotated[dict[str, AnyDistribution], Field(min_length=1)]
    """What is varied: dotted path of the configuration to what its value is drawn from; a bare value is fixed."""
    points: tuple[dict[str, Any], ...] = ()
    """Trials to begin with: path to value; what one does not name is drawn."""
    constraints: tuple[Constraint, ...] = ()
    """Bounds on sums of parameters or on figures."""
    search: SearchConfig = SearchConfig()
    """How the next trial is chosen."""
    schedule: AnySchedule = Fifo(type="fifo")
    """When a trial is stopped early, or changed while it trains."""
    budget: Budget
    """What the sweep may cost."""
    concurrency: Count | None = None
    """Most trials at a time; as many as there is room for if empty."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """Seeds that each trial is trained with, one after another; its figure is their mean."""

    @field_validator("params", mode="before")
    @classmethod
    def _bare_values(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        given = cast("Mapping[str, Any]", value)
        return {path: one if _is_mapping(one) else {"type": "fixed", "value": one} for path, one in given.items()}

    @field_validator("schedule", mode="before")
    @classmethod
    def _type_alone(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @field_validator("metric", mode="after")
    @classmethod
    def _of_evaluation(cls, metric: str) -> str:
        return full_name(metric)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        check_sound(self)
        return self

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The parameters, every one behind those that its conditions name."""
        done: list[str] = []
        left = list(self.params)
        while left:
            ready = [path for path in left if all(other in done for other in self.params[path].when)]
            done += ready
            left = [path for path in left if path not in ready]
        return tuple(done)

    @property
    def varied(self) -> list[str]:
        """The parameters that are not fixed."""
        return [path for path, distribution in self.params.items() if not isinstance(distribution, Fixed)]

    @property
    def metrics(self) -> list[tuple[str, Mode]]:
        """The figures that decide, and whether more or less of each is better."""
        pairs: list[tuple[str, Mode]] = [(self.metric, self.mode)]
        return pairs if self.second is None else [*pairs, (full_name(self.second.metric), self.second.mode)]

    @property
    def num_trials(self) -> int:
        """How many trials the budget allows."""
        if self.budget.trials is not None:
            return self.budget.trials
        return len(self.grid()) if self.search.method == "grid" else MAX_TRIALS

    @property
    def exchanges(self) -> bool:
        """Whether trials go on from one another's weights."""
        return isinstance(self.schedule, Pbt | Pb2)

    def grid(self) -> list[dict[str, Any]]:
        """Return every combination, each without the parameters that its others switch off."""
        paths = self.order
        values = [self.params[path].steps() or [] for path in paths]
        found: list[dict[str, Any]] = []
        for combination in itertools.product(*values):
            drawn: dict[str, Any] = {}
            for path, value in zip(paths, combination, strict=True):
                if is_active(self.params[path], drawn):
                    drawn[path] = value
            if drawn not in found and not self.violated(drawn):
                found.append(drawn)
        return found

    def violated(self, drawn: Mapping[str, Any]) -> bool:
        """Whether drawn values break a constraint on parameters."""
        for constraint in self.constraints:
            if (
                constraint.sum is not None
                and constraint.violation(sum(drawn.get(path, 0) for path in constraint.sum)) > 0
            ):
                return True
        return False

    def violations(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return how far the figures of a trial lie outside of each constraint on figures."""
        named = {full_name(one.metric): one for one in self.constraints if one.metric is not None}
        return {name: one.violation(metrics[name]) for name, one in named.items() if name in metrics}


def full_name(metric: str) -> str:
    """Return a figure's name as evaluations tell it."""
    return metric if metric.startswith("eval/") else f"eval/{metric}"


def load_space(source: str, overrides: Sequence[str] = ()) -> Space:
    """Read a space by its file or shipped name.

    Args:
        source: YAML file, or the name of a shipped space.
        overrides: Settings over the file's budget, search and so on, `budget.trials=8`.

    Raises:
        UserError: There is no such space, or something in it is wrong.
    """
    return parse_space(read_yaml(find_source("tune_spaces", source)), overrides)


def parse_space(tree: Mapping[str, Any], overrides: Sequence[str] = ()) -> Space:
    """Check a space as its file holds it.

    Raises:
        UserError: Something in it is wrong.
    """
    from hmtl_dist.config.io import check_tree

    if overrides:
        return check_tree(Space, dict(tree), overrides)
    try:
        return Space.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error, Space)) from error


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)
