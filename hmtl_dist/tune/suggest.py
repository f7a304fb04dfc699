"""What to try next: a pure function of the space, the trials so far and the number of the new one.

The study of optuna is built anew from the records for every draw and thrown away after it, so that there is no second
state to save, to restore or to lose. That takes milliseconds; a trial takes minutes.
"""

import json
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from hmtl_dist.errors import UserError
from hmtl_dist.tune.distributions import Choice, Distribution, Fixed, LogUniform, Normal, QUniform, RandInt, is_active
from hmtl_dist.tune.ledger import Record
from hmtl_dist.tune.sections import MAX_STARTUP, SearchConfig
from hmtl_dist.tune.space import Space

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

MAX_DRAWS = 200
"""How often a draw that breaks a constraint on parameters is drawn again."""
MAX_LEARNED = 50
"""How many of these are what the sampler has learned; the rest are random."""
RANDOM = SearchConfig(method="random")
NORMAL = NormalDist()
CMA_PREFIX = "cma:"
"""Beginning of the notes of CMA-ES in a trial, which it goes on from."""


def suggest(space: Space, records: Sequence[Record], number: int) -> Record | None:
    """Draw a trial.

    Args:
        space: What is searched.
        records: The trials so far, in the order of their numbers.
        number: Number of the new trial, above theirs.

    Returns:
        The new trial, or None where nothing is left to try.

    Raises:
        UserError: No draw keeps the constraints.
    """
    if space.search.method == "grid":
        grid = space.grid()
        return Record(number=number, params=grid[number]) if number < len(grid) else None
    with quiet():
        study = build_study(space, records, number)
        if number < len(space.points):
            study.enqueue_trial(
                {path: _encode(space.params[path], value) for path, value in space.points[number].items()}
            )
        for draw in range(MAX_DRAWS):
            if draw == MAX_LEARNED:  # what was learned may lead to where nothing is allowed
                study.sampler = _sampler(space.model_copy(update={"search": RANDOM}), number)
            trial = study.ask()
            params = _draw(space, trial)
            if not space.violated(params):
                attributes = study.get_trials(deepcopy=False)[trial.number].system_attrs
                notes = {key: value for key, value in attributes.items() if key.startswith(CMA_PREFIX)}
                return Record(number=number, params=params, searcher=notes)
            _give_up(study, trial)
    raise UserError(f"constraints: none of {MAX_DRAWS} draws keeps the bound on the sum; widen it or the ranges")


def build_study(space: Space, records: Sequence[Record], number: int = 0) -> "optuna.Study":
    """Return the trials so far as a study of optuna, with the sampler of the next one."""
    import optuna

    kinds = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}
    directions = [kinds[mode] for _, mode in space.metrics]
    study = optuna.create_study(directions=directions, sampler=_sampler(space, number))
    for record in records:
        study.add_trial(_as_trial(space, record))
    return study


def _sampler(space: Space, number: int) -> "BaseSampler":
    """Return the sampler; it draws by the numbers of the search's seed and of the trial."""
    from optuna.samplers import CmaEsSampler, GPSampler, RandomSampler, TPESampler

    search = space.search
    seed = (search.seed * 1_000_003 + number) % 2**32
    if search.method == "random":
        return RandomSampler(seed=seed)
    startup = search.startup or max(2, min(MAX_STARTUP, space.num_trials // 4))
    if search.sampler == "cmaes":
        return CmaEsSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
    if search.sampler == "gp":
        return GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
    conditional = any(distribution.when for distribution in space.params.values())
    return TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=conditional)


def _draw(space: Space, trial: "optuna.Trial") -> dict[str, Any]:
    drawn: dict[str, Any] = {}
    for path in space.order:
        distribution = space.params[path]
        if not is_active(distribution, drawn):
            continue
        if isinstance(distribution, Fixed):
            drawn[path] = distribution.value
            continue
        drawn[path] = _decode(distribution, _ask(trial, path, _domain(distribution)))
    return drawn


def _ask(trial: "optuna.Trial", path: str, domain: "BaseDistribution") -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match domain:
        case FloatDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_float(path, low, high, log=log, step=step)
        case IntDistribution(low=low, high=high, log=log):
            return trial.suggest_int(path, low, high, log=log)
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(path, choices)
        case _:
            raise TypeError(f"{path}: no way to draw from {domain}")


def _give_up(study: "optuna.Study", trial: "optuna.Trial") -> None:
    import optuna

    study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _as_trial(space: Space, record: Record) -> "optuna.trial.FrozenTrial":
    """Return a record as optuna keeps it."""
    from optuna.trial import TrialState, create_trial

    domains = {path: _domain(space.params[path]) for path in record.params if path in space.varied}
    values = values_of(space, record.metrics)
    state = TrialState.RUNNING
    if record.status == "FINISHED" and values is not None:
        state = TrialState.COMPLETE
    elif record.status == "PRUNED" and values is not None:
        # a study of two figures knows no pruning: what the trial came to is what it is worth
        state = TrialState.PRUNED if len(values) == 1 else TrialState.COMPLETE
    elif record.ended:
        state = TrialState.FAIL
    single = len(space.metrics) == 1 and state != TrialState.FAIL
    return create_trial(
        state=state,
        values=values if state in (TrialState.COMPLETE, TrialState.PRUNED) else None,
        params={path: _encode(space.params[path], record.params[path]) for path in domains},
        distributions=domains,
        system_attrs=record.searcher,
        intermediate_values=_curve(space, record) if single else {},
        constraints=space.violations(record.metrics) if record.ended else {},
    )


def _curve(space: Space, record: Record) -> dict[int, float]:
    return {report.step: report.metrics[space.metric] for report in record.reports if space.metric in report.metrics}


def values_of(space: Space, metrics: Mapping[str, float]) -> list[float] | None:
    """Return the deciding figures in order, None where one of them is missing."""
    names = [metric for metric, _ in space.metrics]
    return [metrics[name] for name in names] if all(name in metrics for name in names) else None


# --- our distributions as optuna's -------------------------------------------------------------------------------


def _domain(distribution: Distribution) -> "BaseDistribution":
    """Return the distribution of optuna; a normal one is drawn by its quantile, a choice by what it is as text."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match distribution:
        case LogUniform(low=low, high=high):
            return FloatDistribution(low, high, log=True)
        case QUniform(low=low, high=high, q=q):
            return FloatDistribution(low, high, step=q)
        case RandInt(low=low, high=high, log=log):
            return IntDistribution(low, high, log=log)
        case Choice(values=values):
            return CategoricalDistribution([_text(value) for value in values])
        case Normal(mean=mean, sd=sd):
            low, high = ((bound - mean) / sd for bound in distribution.bounds)
            return FloatDistribution(NORMAL.cdf(low), NORMAL.cdf(high))
        case _:
            low, high = distribution.extremes()
            return FloatDistribution(low, high)


def _encode(distribution: Distribution, value: Any) -> Any:
    match distribution:
        case Choice():
            return _text(value)
        case Normal(mean=mean, sd=sd):
            return NORMAL.cdf((value - mean) / sd)
        case RandInt():
            return int(value)
        case _:
            return float(value)


def _decode(distribution: Distribution, value: Any) -> Any:
    match distribution:
        case Choice(values=values):
            return next(one for one in values if _text(one) == value)
        case Normal(mean=mean, sd=sd):
            low, high = distribution.bounds
            return min(high, max(low, mean + sd * NORMAL.inv_cdf(value)))
        case RandInt():
            return int(value)
        case _:
            return float(value)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


@contextmanager
def quiet() -> Generator[None]:
    """Keep optuna's log and its warnings of experimental parts to itself."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
