"""The best evaluation so far, by the figure that `train.monitor` names: carried along with the figures themselves."""

from collections.abc import Mapping

from hmtl_dist.errors import UserError
from hmtl_dist.run_config import TrainConfig

EVAL, LAST, BEST, EMA = "eval/", "last/", "best/", "ema/"
"""Whose figures a name begins with: an evaluation's, the last weights', the best evaluation's, the average's."""
AT_THE_END = (LAST, EMA, EVAL)
"""Whose figures a table tells of a run, the first there is: those of the weights at its end."""
BEST_STEP = "best/step"
_HEADLINE = ("/accuracy", "/mae")


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """Choose of an evaluation's metrics those that one line tells: accuracies and mean absolute errors of everybody."""
    return {
        name: value
        for name, value in metrics.items()
        if name.startswith(EVAL) and "/group/" not in name and any(part in name for part in _HEADLINE)
    }


def with_best(
    metrics: Mapping[str, float], known: Mapping[str, float], step: int, train: TrainConfig
) -> dict[str, float]:
    """Add the best evaluation's figures, as `best/TASK/METRIC` and `best/step`, to those of a new one.

    A tie stays with the earlier step. The figures are saved in each checkpoint, so that a resumed run knows its best.

    Args:
        metrics: The new evaluation's, `eval/TASK/METRIC` among them.
        known: The figures before it, with the best so far if there is one.
        step: Global step of the new evaluation.
        train: Says by which figure, and whether more or less of it is better.

    Raises:
        UserError: There is no figure of the monitored name.
    """
    if train.monitor is None:
        return dict(metrics)
    if train.monitor not in metrics:
        there = ", ".join(sorted(name for name in metrics if name.startswith(EVAL)))
        raise UserError(f"train.monitor: no figure '{train.monitor}' was evaluated; there are: {there or 'none'}")
    new, old = metrics[train.monitor], known.get(BEST + train.monitor.removeprefix(EVAL))
    better = old is None or (new > old if train.monitor_mode == "max" else new < old)
    if not better:
        return {**metrics, **{name: value for name, value in known.items() if name.startswith(BEST)}}
    return {**metrics, **renamed(metrics, BEST), BEST_STEP: float(step)}


def renamed(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Return an evaluation's figures with another beginning than `eval/`."""
    return {prefix + name.removeprefix(EVAL): value for name, value in metrics.items() if name.startswith(EVAL)}
