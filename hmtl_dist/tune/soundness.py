"""What a space may not be: each fault is one line that begins with its path."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from hmtl_dist.config.explain import choices, shown
from hmtl_dist.tune.distributions import Distribution, is_active, wanted_values
from hmtl_dist.tune.sections import MAX_TRIALS, Asha, Median, Pb2, Pbt

if TYPE_CHECKING:
    from hmtl_dist.tune.space import Space

OWN_PATHS = ("name", "seed", "launch", "tracking", "train.epochs", "train.max_steps", "train.monitor")
"""What a sweep sets itself."""


def check_sound(space: "Space") -> None:
    """See that a space's parts fit together.

    Raises:
        ValueError: A line that begins with a path.
    """
    _check_paths(space)
    _check_conditions(space)
    _check_points(space)
    _check_search(space)
    _check_schedule(space)


def _check_paths(space: "Space") -> None:
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


def _check_conditions(space: "Space") -> None:
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


def _check_points(space: "Space") -> None:
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


def _check_search(space: "Space") -> None:
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


def _grid_size(distributions: Iterable[Distribution]) -> int:
    size = 1
    for distribution in distributions:
        size *= len(distribution.steps() or ())
    return size


def _check_schedule(space: "Space") -> None:
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
