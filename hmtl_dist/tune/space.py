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
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field, ValidationError, field_validator, model_validator

from hmtl_dist.config.base import Section
from hmtl_dist.config.dialect import read_yaml
from hmtl_dist.config.explain import choices, explain, shown
from hmtl_dist.config.io import find_source
from hmtl_dist.errors import UserError
from hmtl_dist.tune.distributions import AnyDistribution, Distribution, Fixed, is_active, wanted_values

Count = Annotated[int, Field(ge=1)]
Mode = Literal["max", "min"]
Metric = Annotated[str, Field(pattern=r"^(eval/)?[^/]+/[^/]+$")]
MAX_TRIALS = 10_000
MAX_STARTUP = 10
OWN_PATHS = ("name", "seed", "launch", "tracking", "train.epochs", "train.max_steps", "train.monitor")
"""What a sweep sets itself."""


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
        _check_paths(self)
        _check_conditions(self)
        _check_points(self)
        _check_search(self)
        _check_schedule(self)
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

    def violations(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Return how far the figures of a trial lie outside of each constraint on figures."""
        named = {full_name(one.metric): one for one in self.constraints if one.metric is not None}
        return {name: one.violation(figures[name]) for name, one in named.items() if name in figures}


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


# --- what a space may not be -------------------------------------------------------------------------------------


def _check_paths(space: Space) -> None:
    for path in space.params:
        if not all(path.split(".")):
            raise ValueError(f"params.{path}: not a dotted path such as tasks.puzzling.weight")
        for own in OWN_PATHS:
            if path == own or path.startswith(f"{own}."):
                raise ValueError(f"params.{path}: a sweep sets {own} itself; use {_INSTEAD.get(own, 'another path')}")
        for other in space.params:
            if other.startswith(f"{path}."):
                raise ValueError(f"params.{other}: params.{path} sets the section it is in; vary one of them")
    for constraint in space.constraints:
        for path in constraint.sum or ():
            distribution = space.params.get(path)
            if distribution is None:
                raise ValueError(f"constraints: no parameter '{path}'; {choices(path, list(space.params))}")
            if not all(isinstance(value, int | float) for value in distribution.extremes()):
                raise ValueError(f"constraints: parameter '{path}' is no number, it cannot be summed")


_INSTEAD = {
    "seed": "seeds: N",
    "train.epochs": "budget.epochs",
    "train.max_steps": "budget.epochs",
    "launch": "the recipe or the command line",
    "tracking": "the recipe or the command line",
    "name": "--name",
    "train.monitor": "metric",
}


def _check_conditions(space: Space) -> None:
    for path, distribution in space.params.items():
        for other, wanted in distribution.when.items():
            if other not in space.params:
                raise ValueError(f"params.{path}.when: no parameter '{other}'; {choices(other, list(space.params))}")
            for value in wanted_values(wanted):
                if not space.params[other].holds(value):
                    raise ValueError(
                        f"params.{path}.when.{other}: given {shown(value)}, allowed {space.params[other].said()}"
                    )
    reached: set[str] = set()
    while len(reached) < len(space.params):
        more = {path for path in space.params if set(space.params[path].when) <= reached} - reached
        if not more:
            stuck = ", ".join(sorted(set(space.params) - reached))
            raise ValueError(f"params: the conditions of {stuck} wait for one another; break the circle")
        reached |= more


def _check_points(space: Space) -> None:
    if space.points and space.search.method == "grid":
        raise ValueError("points: a grid tries every combination anyway; leave points out")
    if space.budget.trials is not None and len(space.points) > space.budget.trials:
        raise ValueError(f"points: {len(space.points)} given, but budget.trials={space.budget.trials}")
    for place, point in enumerate(space.points):
        for path, value in point.items():
            if path not in space.params:
                raise ValueError(f"points.{place}: no parameter '{path}'; {choices(path, list(space.params))}")
            if not space.params[path].holds(value):
                raise ValueError(f"points.{place}.{path}: given {shown(value)}, allowed {space.params[path].said()}")
            if not is_active(space.params[path], point):
                raise ValueError(f"points.{place}.{path}: is not drawn with the rest of this point; see its `when`")
        if space.violated(point):
            raise ValueError(f"points.{place}: breaks a constraint on its sum; change it")


def _check_search(space: Space) -> None:
    search, budget = space.search, space.budget
    if not space.varied:
        raise ValueError("params: nothing varies; give one of them a distribution")
    if search.method == "grid":
        for path, distribution in space.params.items():
            if distribution.steps() is None:
                raise ValueError(
                    f"params.{path}: a {distribution.type} has no end of values, which a grid needs; "
                    "use choice, randint or quniform, or search: random"
                )
        count = len(space.grid()) if _grid_size(space.params.values()) <= MAX_TRIALS else MAX_TRIALS + 1
        if count > MAX_TRIALS:
            raise ValueError(f"params: the grid has more than {MAX_TRIALS} combinations; take values out")
        if budget.trials is not None and budget.trials != count:
            raise ValueError(
                f"budget.trials: given {budget.trials}, but the grid has {count} combinations; leave it out"
            )
    elif budget.trials is None and budget.hours is None:
        raise ValueError("budget: give trials or hours, or both")
    if search.method == "optuna" and search.sampler == "cmaes":
        if space.second is not None:
            raise ValueError("search.sampler: cmaes knows one metric only; use tpe or gp, or leave out second")
        for path in space.varied:
            if space.params[path].type == "choice" or space.params[path].when:
                raise ValueError(f"params.{path}: cmaes needs plain numbers; use sampler: tpe")
    if search.method != "optuna" and (search.startup is not None or "sampler" in search.model_fields_set):
        key = "startup" if search.startup is not None else "sampler"
        raise ValueError(f"search.{key}: means something with method: optuna only; leave it out")


def _grid_size(distributions: "Sequence[Distribution] | Any") -> int:
    size = 1
    for distribution in distributions:
        size *= len(distribution.steps() or ())
    return size


def _check_schedule(space: Space) -> None:
    schedule, budget = space.schedule, space.budget
    if isinstance(schedule, Asha | Median) and budget.epochs is not None and schedule.grace_epochs >= budget.epochs:
        raise ValueError(
            f"schedule.grace_epochs: {schedule.grace_epochs} given, but a trial has budget.epochs={budget.epochs}; "
            "nothing could be stopped early"
        )
    if not isinstance(schedule, Pbt | Pb2):
        return
    name = schedule.type
    if space.search.method != "random":
        raise ValueError(f"search.method: {name} begins with random draws and goes on by itself; use search: random")
    if space.seeds > 1:
        raise ValueError(f"seeds: {name} exchanges weights between trials, each of one seed; use seeds: 1")
    if budget.trials is None or budget.trials < 2:
        raise ValueError(f"budget.trials: {name} needs a population, 2 trials or more")
    if budget.epochs is not None and schedule.interval_epochs >= budget.epochs:
        raise ValueError(
            f"schedule.interval_epochs: {schedule.interval_epochs} given, but budget.epochs={budget.epochs}; "
            "nothing would be exchanged"
        )
    for path in space.varied:
        distribution = space.params[path]
        if distribution.when:
            raise ValueError(f"params.{path}.when: {name} changes every parameter alone; leave conditions out")
        if isinstance(schedule, Pb2) and distribution.type not in ("uniform", "loguniform"):
            raise ValueError(f"params.{path}: pb2 needs a range of numbers, uniform or loguniform; use pbt")
    if space.constraints:
        raise ValueError(f"constraints: {name} does not keep them; leave them out")
