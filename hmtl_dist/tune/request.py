"""What a person asks of a sweep, checked before anything starts, and what it would take."""

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmtl_dist.config.base import may_change
from hmtl_dist.config.io import Tree, flatten, home, read_recipe
from hmtl_dist.errors import UserError
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tracking.jsonl import JOURNAL, read_events
from hmtl_dist.tune.sections import Asha
from hmtl_dist.tune.space import Space
from hmtl_dist.tune.trials import Recipe, Trial, check_space, fitted, overrides_of, sweep_settings

if TYPE_CHECKING:
    from hmtl_dist.data.stream.selection import Selection

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$"
SAME_SPEED = ("model.backbone", "data.image_size", "data.batch_size", "launch.gpus_per_worker")
"""What two runs must have in common for one's speed to foretell the other's, besides the kinds of their tasks."""
FREE = ("budget.trials", "budget.hours", "concurrency")
"""What of a space may change between the parts of a sweep."""


@dataclass(frozen=True)
class Request:
    """A sweep that is known to be sound."""

    name: str
    """Name of the sweep, which its runs' names begin with."""
    space: Space
    """What is searched, without what the recipe has no section for."""
    recipe: Recipe
    config: RunConfig
    """The recipe's configuration with what the sweep sets."""
    left_out: tuple[str, ...] = ()
    """Optional parameters that the recipe has no section for."""

    @classmethod
    def make(
        cls,
        space: Space,
        space_name: str,
        recipe: str,
        overrides: Sequence[str] = (),
        name: str | None = None,
    ) -> "Request":
        """Read the recipe and check the space by it.

        Raises:
            UserError: Something is wrong with either, or they do not fit.
        """
        return cls.of(space, space_name, read_recipe(RunConfig, recipe), overrides, name)

    @classmethod
    def of(
        cls, space: Space, space_name: str, tree: Tree, overrides: Sequence[str] = (), name: str | None = None
    ) -> "Request":
        """Do the same for a recipe as a tree."""
        source = Recipe(tree=tree, overrides=tuple(overrides))
        wanted, space = space, fitted(space, source)
        config = check_space(space, source)
        chosen = name or f"{config.name}-{space_name}"
        if not re.match(NAME, chosen):
            raise UserError(f"--name: given '{chosen}', allowed up to 80 letters, digits, '.', '_' and '-'")
        return cls(chosen, space, source, config, tuple(path for path in wanted.params if path not in space.params))

    @property
    def folder(self) -> str:
        """Folder or URL of the sweep: its ledger, its results."""
        from hmtl_dist.launch.folders import run_folder

        return run_folder(self.config.model_copy(update={"name": self.name}))

    @property
    def home(self) -> Path:
        """Folder of the sweep on this machine: its log, its journal, a copy of its results."""
        return home() / "runs" / self.name

    @cached_property
    def selection(self) -> "Selection":
        """What every trial trains on, unless a parameter changes it."""
        from hmtl_dist.data.stream.selection import open_training

        return open_training(self.config.data)

    def check(self) -> None:
        """See that trials can begin, and that the figures that decide will be evaluated.

        Raises:
            UserError: The recipe's data, tasks and model do not fit, or a supervised task has no such figure.
        """
        from hmtl_dist.launch.preflight import check_parts
        from hmtl_dist.train.groups import check_monitored

        tasks = check_parts(self.config, training=self.selection)
        bounded = [
            (f"constraints.{number}.metric", bound.metric) for number, bound in enumerate(self.space.constraints)
        ]
        second = [("second.metric", self.space.second.metric)] if self.space.second else []
        for path, metric in (("metric", self.space.metric), *second, *bounded):
            if metric is not None:
                check_monitored(path, metric, tasks)

    @cached_property
    def steps(self) -> tuple[int, int]:
        """Optimizer steps of an epoch, and of a whole trial."""
        from hmtl_dist.train.streams import make_plan, make_schedule

        per_epoch = make_plan(self.config, self.selection, shuffle=True).steps_per_epoch
        return per_epoch, make_schedule(self.config, per_epoch).total_steps

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of each trial: the recipe's and those after it."""
        return tuple(range(self.config.seed, self.config.seed + self.space.seeds))

    def trial(self, number: int, parent: str | None) -> Trial:
        """Return what the process of a numbered trial gets."""
        return Trial(
            sweep=self.name,
            number=number,
            seeds=self.seeds,
            recipe=self.recipe,
            settings=tuple(sweep_settings(self.space, self.config)),
            parent=parent,
            metrics=tuple(metric for metric, _ in self.space.metrics),
            exchanges=self.space.exchanges,
        )

    def winning_config(self, params: Any, seed: int) -> RunConfig:
        """Return the configuration that trains a trial's values again, as an ordinary run."""
        epochs = self.space.budget.epochs
        settings = [] if epochs is None else [f"train.epochs={epochs}"]
        config = self.recipe.resolve([*settings, *overrides_of(params)])
        launch = config.launch
        if launch.world_size == 1:
            launch = launch.model_copy(update={"kind": "local"})
        return config.model_copy(update={"name": f"{self.name}-best", "seed": seed, "launch": launch})

    def settings(self) -> dict[str, str]:
        """Return what decides the trials, to be compared when the sweep goes on."""
        space = {f"space.{key}": value for key, value in flatten(self.space).items() if key not in FREE}
        config = {key: value for key, value in flatten(self.config).items() if not may_change(RunConfig, key)}
        return space | config


@dataclass(frozen=True)
class Cost:
    """What a sweep would take."""

    images_at_most: int
    """Pictures, if every trial trained to its end."""
    images_expected: int
    """Pictures, with what the schedule is expected to save."""
    rate: float | None
    """Measured pictures a second of one trial."""
    measured_on: str
    """Run or sweep that the rate was measured on."""

    def seconds(self, images: int, concurrency: int) -> float | None:
        """Return the time that pictures take, None where no rate is known."""
        return None if self.rate is None else images / (self.rate * concurrency)


def estimate(request: Request, known_rate: float | None = None) -> Cost:
    """Estimate what a sweep takes, evaluations left out.

    Args:
        request: The sweep.
        known_rate: Pictures a second of its own trials, if some have run.
    """
    space = request.space
    per_epoch, total = request.steps
    trials = min(space.num_trials, 10_000) * space.seeds
    whole = total * request.config.data.batch_size
    expected = float(whole)
    if isinstance(space.schedule, Asha):
        expected = whole * _asha_share(space.schedule, per_epoch, total)
    rate, where = (known_rate, f"{request.name}'s own trials") if known_rate else measured_rate(request.config)
    return Cost(trials * whole, round(trials * expected), rate, where)


def _asha_share(schedule: Asha, per_epoch: int, total: int) -> float:
    """Return the share of the steps that successive halving leaves, if 1/reduction of the trials pass each rung."""
    rung = schedule.grace_epochs * per_epoch
    done, share, steps = 0, 1.0, 0.0
    while rung < total:
        steps += share * (rung - done)
        done, share, rung = rung, share / schedule.reduction, round(rung * schedule.reduction)
    return (steps + share * (total - done)) / total


def measured_rate(config: RunConfig) -> tuple[float | None, str]:
    """Return the pictures a second of the last run here of the same model and kind, and its name.

    The speed of a run with another number of workers is scaled to this one's.
    """
    wanted = _speed_keys(flatten(config))
    journals = sorted(
        (home() / "runs").glob(f"*/rank-0/{JOURNAL}"), key=lambda path: path.stat().st_mtime, reverse=True
    )
    for journal in journals[:200]:
        params: dict[str, str] = {}
        rates: list[float] = []
        for event, _ in read_events(journal):
            if event["event"] == "params":
                params |= event["values"]
            elif event["event"] == "metrics" and "train/samples_per_second" in event["values"]:
                rates.append(event["values"]["train/samples_per_second"])
        if rates and _speed_keys(params) == wanted:
            workers = config.launch.world_size / int(params.get("launch.num_workers", "1"))
            return statistics.median(rates[-20:]) * workers, journal.parents[1].name
    return None, ""


def _speed_keys(flat: dict[str, str]) -> dict[str, str]:
    kinds = {
        key: value for key, value in flat.items() if key.startswith("tasks.") and key.endswith((".type", ".every"))
    }
    return kinds | {key: flat.get(key, "") for key in SAME_SPEED}


def as_yaml(space: Space) -> str:
    """Return a space as JSON, which is YAML, for the record."""
    return json.dumps(space.model_dump(mode="json", exclude_unset=True), indent=2) + "\n"
