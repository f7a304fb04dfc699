"""What came of a sweep: who won, who is on the front, which parameter mattered."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hmtl_dist.tune.ledger import Record
from hmtl_dist.tune.sections import Mode
from hmtl_dist.tune.space import Space
from hmtl_dist.tune.suggest import build_study, quiet, values_of

FEWEST = 4
"""Trials that importances need."""
COMPARED = 0.75
"""Share of the trials that must have come to the step at which importances compare them."""


@dataclass(frozen=True)
class Importances:
    """How much of the variance over the trials each parameter explains; they add up to 1."""

    shares: Mapping[str, float]
    step: int
    """Global step at which the trials are compared: the last that most of them have come to."""
    num_trials: int


def ranked(space: Space, records: Sequence[Record]) -> list[Record]:
    """Return the trials, best first: those that finished and keep the constraints, then by how far they came."""

    def key(record: Record) -> tuple[int, bool, int, float]:
        value = record.metrics.get(space.metric)
        order = {"FINISHED": 0, "RUNNING": 1, "STOPPED": 1, "PRUNED": 1, "FAILED": 2}[record.status]
        worth = math.inf if value is None else (-value if space.mode == "max" else value)
        far = 0 if order == 0 else -record.step
        return order, broken(space, record), far, worth

    return sorted(records, key=key)


def broken(space: Space, record: Record) -> bool:
    """Whether a trial's figures break a constraint."""
    return any(violation > 0 for violation in space.violations(record.metrics).values())


def winner(space: Space, records: Sequence[Record]) -> Record | None:
    """Return the best trial that finished and keeps the constraints, None if there is none.

    It is the last evaluation that counts, not the best one on the way: that would be chosen on the very pictures it is
    told of once more.
    """
    sound = [record for record in records if record.status == "FINISHED" and not broken(space, record)]
    sound = [record for record in sound if values_of(space, record.metrics) is not None]
    return ranked(space, sound)[0] if sound else None


def best_so_far(space: Space, records: Sequence[Record]) -> float | None:
    """Return the best last figure of all trials, however far they are."""
    values = [record.metrics[space.metric] for record in records if space.metric in record.metrics]
    if not values:
        return None
    return max(values) if space.mode == "max" else min(values)


def pareto_front(space: Space, records: Sequence[Record]) -> list[Record]:
    """Return the finished trials that no other one beats in both figures, by the first one, best first."""
    found = [(record, values_of(space, record.metrics)) for record in records if record.status == "FINISHED"]
    sound = [(record, values) for record, values in found if values is not None and not broken(space, record)]
    modes: list[Mode] = [mode for _, mode in space.metrics]
    front = [record for record, values in sound if not any(dominates(other, values, modes) for _, other in sound)]
    return ranked(space, front)


def dominates(one: Sequence[float], other: Sequence[float], modes: Sequence[Mode]) -> bool:
    """Whether one point is at least as good as another in every figure, and better in one."""
    signed = [(a, b) if mode == "max" else (-a, -b) for a, b, mode in zip(one, other, modes, strict=True)]
    return all(a >= b for a, b in signed) and any(a > b for a, b in signed)


def importances(space: Space, records: Sequence[Record]) -> Importances | None:
    """Return the functional ANOVA of the deciding figure over the parameters that all trials have (Hutter et al. 2014).

    Trials that were stopped early count too: all are compared at the last step that most of them have come to.

    Returns:
        None where there are too few trials, or all came to the same.
    """
    step = common_step(space, records)
    values = {record.number: value for record in records if (value := value_at(space, record, step)) is not None}
    if step == 0 or len(values) < FEWEST or len(set(values.values())) < 2:
        return None
    single = space.model_copy(update={"second": None, "constraints": ()})
    compared = [
        record.model_copy(update={"reports": (), "status": "FINISHED", "searcher": {}}).reported(
            step, {space.metric: values[record.number]}, at=0.0
        )
        for record in records
        if record.number in values
    ]
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ranges too narrow to be split
        study = build_study(single, compared)
        found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=space.search.seed))
    return Importances(dict(found), step, len(compared)) if found else None


def common_step(space: Space, records: Sequence[Record]) -> int:
    """Return the last step at which most trials told the deciding figure, 0 if there is none."""
    told = [{report.step for report in record.reports if space.metric in report.metrics} for record in records]
    told = [steps for steps in told if steps]
    everywhere = sorted(set[int]().union(*told)) if told else []
    need = math.ceil(COMPARED * len(told))
    return max((step for step in everywhere if sum(step in steps for steps in told) >= need), default=0)


def value_at(space: Space, record: Record, step: int) -> float | None:
    """Return the deciding figure of a trial at a step, None if it told none there."""
    return next(
        (
            report.metrics[space.metric]
            for report in record.reports
            if report.step == step and space.metric in report.metrics
        ),
        None,
    )


def shown(value: Any) -> str:
    """Write a drawn value for people."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Return each path without the sections that it needs not to be told from the others."""
    names: dict[str, str] = {}
    for path in paths:
        name = path
        parts = path.split(".")
        for length in range(1, len(parts) + 1):
            name = ".".join(parts[-length:])
            if sum(other == name or other.endswith(f".{name}") for other in paths) == 1 and (
                length > 1 or len(parts) == 1 or parts[-1] not in ("weight", "type")
            ):
                break
        names[path] = name
    return names
