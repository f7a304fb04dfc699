# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Ray Tune's schedulers over what a sweep's ledger remembers.

Successive halving and median stopping are told again what was reported before. The population schedulers keep the
values that they draw within the space, and note in the book which trial went on from whose checkpoint.
"""

from dataclasses import dataclass
from typing import Any, cast

from ray import tune
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from hmtl_dist.tune.actor import PARAMS, STEP
from hmtl_dist.tune.book import Book
from hmtl_dist.tune.distributions import Choice, LogUniform, Uniform
from hmtl_dist.tune.ledger import Record
from hmtl_dist.tune.sections import Asha, Median, Pb2, Pbt
from hmtl_dist.tune.space import Space


def make_scheduler(space: Space, steps_per_epoch: int, book: Book) -> TrialScheduler:
    """Return the scheduler of a space, which knows all that has been reported before."""
    schedule = space.schedule
    judged: dict[str, Any] = {"time_attr": STEP, "metric": space.metric, "mode": space.mode}
    if isinstance(schedule, Asha):
        grace = schedule.grace_epochs * steps_per_epoch
        scheduler = ASHAScheduler(
            **judged,
            max_t=max(grace, book.total_steps) + 1,  # who comes to the end has finished, and is not stopped there
            grace_period=grace,
            reduction_factor=schedule.reduction,
        )
        _replay(scheduler, space, book.in_order())
        return scheduler
    if isinstance(schedule, Median):
        scheduler = MedianStoppingRule(
            **judged,
            grace_period=schedule.grace_epochs * steps_per_epoch,
            min_samples_required=schedule.min_trials,
            min_time_slice=10**12,  # trials do not make room for others
        )
        _replay(scheduler, space, [record for record in book.in_order() if record.ended])
        return scheduler
    if isinstance(schedule, Pbt | Pb2):
        judged["perturbation_interval"] = schedule.interval_epochs * steps_per_epoch
        judged["quantile_fraction"] = schedule.quantile
        if isinstance(schedule, Pb2):
            return bandits(space, book, **judged)
        judged["resample_probability"] = schedule.resample
        judged["perturbation_factors"] = tuple(schedule.factors)
        return Population(space, book, **judged)
    return FIFOScheduler()


@dataclass(frozen=True)
class _Past:
    """What a scheduler asks of a trial that it is only told about."""

    trial_id: str
    status: str = RayTrial.TERMINATED

    def is_finished(self) -> bool:
        return True


def _replay(scheduler: TrialScheduler, space: Space, records: list[Record]) -> None:
    """Tell a scheduler what was reported before, in the order of time; what it decides of it is history."""
    reports = [(report, record) for record in records for report in record.reports if space.metric in report.metrics]
    known: dict[int, Any] = {}
    for report, record in sorted(reports, key=lambda pair: pair[0].at):
        past: Any = known.get(record.number)
        if past is None:
            past = known[record.number] = _Past(f"{record.number:05d}")
            scheduler.on_trial_add(cast("Any", None), past)
        result = {STEP: report.step, space.metric: report.metrics[space.metric]}
        if isinstance(scheduler, MedianStoppingRule):
            scheduler.on_trial_complete(cast("Any", _NOBODY), past, result)  # only notes it
        else:
            scheduler.on_trial_result(cast("Any", _NOBODY), past, result)


class _Nobody:
    """A controller with no trials."""

    def get_live_trials(self) -> list[Any]:
        return []


_NOBODY = _Nobody()


class _Exchange:
    """What both population schedulers do alike: values are kept apart in `config["params"]`, and noted in the book."""

    _space: Space
    _book: Book

    def _get_new_config(self, trial: RayTrial, trial_to_clone: RayTrial) -> Any:
        config, operations = cast("Any", super())._get_new_config(trial, trial_to_clone)
        params = {path: config[PARAMS][path] for path in trial.config[PARAMS]}
        config = {**trial.config, PARAMS: {path: within(self._space, path, value) for path, value in params.items()}}
        self._book.exchange(int(trial.trial_id), int(trial_to_clone.trial_id), config[PARAMS])
        return config, operations


class Population(_Exchange, PopulationBasedTraining):
    """Ray's population based training over the parameters of a space."""

    def __init__(self, space: Space, book: Book, **settings: Any) -> None:
        self._space, self._book = space, book
        mutations = {path: _mutation(space, path) for path in space.varied}
        super().__init__(hyperparam_mutations={PARAMS: mutations}, require_attrs=False, log_config=False, **settings)


def bandits(space: Space, book: Book, **settings: Any) -> TrialScheduler:
    """Return Ray's population based bandits over the parameters of a space; scikit-learn comes with them."""
    from ray.tune.schedulers.pb2 import PB2

    class Bandits(_Exchange, PB2):
        def __init__(self) -> None:
            self._space, self._book = space, book
            bounds = {path: space.params[path].extremes() for path in space.varied}
            super().__init__(hyperparam_bounds={PARAMS: bounds}, require_attrs=False, log_config=False, **settings)

    return Bandits()


def _mutation(space: Space, path: str) -> Any:
    """Return what Ray draws a value anew from."""
    distribution = space.params[path]
    match distribution:
        case Uniform(low=low, high=high):
            return tune.uniform(low, high)
        case LogUniform(low=low, high=high):
            return tune.loguniform(low, high)
        case Choice(values=values):
            return list(values)
        case _:
            steps = distribution.steps()
            if steps is not None:
                return steps
            low, high = distribution.extremes()
            return tune.uniform(low, high)


def within(space: Space, path: str, value: Any) -> Any:
    """Return the nearest value that a parameter may have."""
    distribution = space.params[path]
    if distribution.holds(value):
        return value
    steps = distribution.steps()
    if steps is not None:
        return min(steps, key=lambda step: abs(step - value)) if isinstance(value, int | float) else steps[0]
    low, high = distribution.extremes()
    return min(high, max(low, value))
