"""The configuration of a trial: a recipe, what the sweep sets, and what was drawn; and the check of a space by it."""

from collections.abc import Mapping, Sequence
from typing import Any

from hmtl_dist.config.base import Section
from hmtl_dist.config.dialect import one_line
from hmtl_dist.config.explain import shown
from hmtl_dist.config.io import Tree, check_tree, flatten
from hmtl_dist.errors import UserError
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tune.distributions import Fixed
from hmtl_dist.tune.sections import Asha, Median, Pb2, Pbt
from hmtl_dist.tune.space import Space, parse_space

MAX_CHECKED = 200
"""Combinations of a grid that are checked before anything starts; the others are when their turn comes."""
KEPT_FOR_OTHERS = 4
"""Checkpoints that a trial keeps where others may go on from them."""


class Recipe(Section):
    """A recipe and the overrides of the command line, as they were given."""

    tree: dict[str, Any]
    """The recipe with all that it inherits."""
    overrides: tuple[str, ...] = ()
    """Settings over it."""

    def resolve(self, overrides: Sequence[str] = ()) -> RunConfig:
        """Return the whole configuration, with further settings over the command line's.

        Raises:
            UserError: It is not sound.
        """
        return check_tree(RunConfig, self.tree, [*self.overrides, *overrides])


class Trial(Section):
    """One set of drawn values, as the process that trains it gets it."""

    sweep: str
    """Name of the sweep, which the runs' names begin with."""
    number: int
    """Number of the trial in the sweep, from 0."""
    seeds: tuple[int, ...]
    """Seeds to train it with, one after another."""
    recipe: Recipe
    """What the drawn values are put over."""
    settings: tuple[str, ...]
    """What the sweep sets itself."""
    parent: str | None = None
    """MLflow run of the sweep."""
    metrics: tuple[str, ...]
    """Figures that decide."""
    exchanges: bool = False
    """Whether it may go on from another trial's checkpoint with other values."""

    def config(self, params: Mapping[str, Any], seed: int) -> RunConfig:
        """Return the configuration of the run with one of the seeds.

        Raises:
            UserError: The values make no sound configuration together.
        """
        config = self.recipe.resolve([*self.settings, *overrides_of(params)])
        tracking = config.tracking
        tags = tracking.tags | {"sweep": self.sweep, "trial": str(self.number), "seed": str(seed)}
        launch = config.launch.model_copy(
            update={"node_hour_price": None}
        )  # the sweep knows what part of a machine it has
        if launch.world_size == 1:  # in the trial's own process: nothing has to be started for it
            launch = launch.model_copy(update={"kind": "local"})
        return config.model_copy(
            update={
                "name": run_name(self.sweep, self.number, self.seeds.index(seed)),
                "seed": seed,
                "launch": launch,
                "tracking": tracking.model_copy(update={"tags": tags, "register_model": None}),
            }
        )


def run_name(sweep: str, number: int, place: int) -> str:
    """Return the name of a trial's run with its `place`-th seed."""
    return f"{sweep}-{number:04d}" + (f"-{place}" if place else "")


def overrides_of(params: Mapping[str, Any]) -> list[str]:
    """Return drawn values as settings, sections before what may lie inside of them."""
    return [f"{path}={one_line(params[path])}" for path in sorted(params, key=lambda path: path.count("."))]


def sweep_settings(space: Space, config: RunConfig) -> list[str]:
    """Return what a sweep sets in every trial, over the recipe's configuration and below what is drawn."""
    settings = [
        "train.monitor=null",
        "tracking.model=false",  # the winner's is recorded at the end
        "tracking.pictures=false",
        "tracking.system_metrics=false",
    ]
    if space.budget.epochs is not None:
        settings.append(f"train.epochs={space.budget.epochs}")
    if isinstance(space.schedule, Asha | Median):  # which can only judge what has been evaluated
        every = min(space.schedule.grace_epochs, config.train.evaluate_every_epochs)
        settings.append(f"train.evaluate_every_epochs={every}")
    if isinstance(space.schedule, Pbt | Pb2):
        every = space.schedule.interval_epochs
        settings += [
            f"train.evaluate_every_epochs={every}",
            f"train.checkpoint_every_epochs={every}",
            f"train.keep_checkpoints={KEPT_FOR_OTHERS}",
        ]
    return settings


def fitted(space: Space, recipe: Recipe) -> Space:
    """Return a space without its optional parameters of sections that the recipe has not, nor what depends on them.

    Raises:
        UserError: Nothing is left to vary, or the recipe is not sound itself.
    """
    if not any(distribution.optional for distribution in space.params.values()):
        return space
    flat = flatten(recipe.resolve())
    sections = {path: path.rpartition(".")[0] for path in space.params}
    there = {section for section in sections.values() if any(key.startswith(f"{section}.") for key in flat)}
    out: set[str] = set()
    for path in space.order:
        distribution = space.params[path]
        if (distribution.optional and sections[path] not in there) or not out.isdisjoint(distribution.when):
            out.add(path)
    if not out:
        return space
    if out.issuperset(space.varied):
        raise UserError(
            f"params: the recipe has no {' and no '.join(sorted({sections[path] for path in out}))}, "
            "and nothing else varies; take another space, or a recipe that has them"
        )
    tree = space.model_dump(mode="json", exclude_unset=True)
    tree["params"] = _without(tree["params"], out)
    if "points" in tree:
        tree["points"] = [kept for point in tree["points"] if (kept := _without(point, out))]
    for bound in tree.get("constraints", ()):
        if "sum" in bound:
            bound["sum"] = [path for path in bound["sum"] if path not in out]
    if "constraints" in tree:
        tree["constraints"] = [bound for bound in tree["constraints"] if bound.get("sum") != []]
    return parse_space(tree)


def _without(values: Tree, paths: set[str]) -> Tree:
    return {path: value for path, value in values.items() if path not in paths}


def check_space(space: Space, recipe: Recipe) -> RunConfig:
    """Check every path and every value of a space by the schema of the configuration.

    Bounds are checked at both ends, choices one by one, each with all else as in the recipe or fixed; the combinations
    of a grid and the first points as a whole.

    Returns:
        The configuration of the recipe with what the sweep sets.

    Raises:
        UserError: Something does not fit, or the recipe is not sound itself.
    """
    settings = sweep_settings(space, recipe.resolve())
    config = recipe.resolve(settings)
    _check_metrics(space, config)
    _check_epochs(space, config)
    fixed = {path: one.value for path, one in space.params.items() if isinstance(one, Fixed) and not one.when}
    for path, distribution in space.params.items():
        enabling = fixed | _enabling(space, path)
        for value in distribution.extremes():
            _check(recipe, settings, enabling | {path: value}, f"params.{path}: {shown(value)}")
    for place, point in enumerate(space.points):
        _check(recipe, settings, fixed | point, f"points.{place}")
    if space.search.method == "grid":
        for combination in space.grid()[:MAX_CHECKED]:
            _check(recipe, settings, combination, f"grid: {' '.join(overrides_of(combination))}")
    return config


def _check(recipe: Recipe, settings: Sequence[str], params: Mapping[str, Any], where: str) -> None:
    try:
        recipe.resolve([*settings, *overrides_of(params)])
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _enabling(space: Space, path: str) -> Tree:
    """Return values of the parameters that a parameter's conditions need."""
    found: Tree = {}
    for other, wanted in space.params[path].when.items():
        found |= _enabling(space, other)
        found[other] = wanted[0] if isinstance(wanted, list) else wanted
    return found


def _check_metrics(space: Space, config: RunConfig) -> None:
    named = [("metric", space.metric)]
    if space.second is not None:
        named.append(("second.metric", space.second.metric))
    named += [(f"constraints.{place}.metric", one.metric) for place, one in enumerate(space.constraints) if one.metric]
    for where, metric in named:
        task = metric.removeprefix("eval/").split("/")[0]
        if task not in config.tasks:
            from hmtl_dist.config.explain import choices

            raise UserError(f"{where}: {metric}: the recipe has no task '{task}'; {choices(task, list(config.tasks))}")


def _check_epochs(space: Space, config: RunConfig) -> None:
    schedule, epochs = space.schedule, config.train.epochs
    for key in ("grace_epochs", "interval_epochs"):
        value = getattr(schedule, key, 0)
        if value >= epochs:
            raise UserError(
                f"schedule.{key}: {value} given, but a trial has train.epochs={epochs}; raise budget.epochs or lower it"
            )
