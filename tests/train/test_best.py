"""Which evaluation was the best, and what is told of it."""

import pytest

from hmtl_dist.errors import UserError
from hmtl_dist.run_config import RunConfig, TrainConfig
from hmtl_dist.train.best import with_best
from tests.train.toy import config

ACCURACY = "eval/mood/accuracy"


def follow(mode: str, *values: float) -> dict[str, float]:
    """The figures after evaluations at steps 1, 2, ... that gave these values."""
    train = TrainConfig.model_validate({"monitor": ACCURACY, "monitor_mode": mode})
    known: dict[str, float] = {}
    for step, value in enumerate(values, start=1):
        known = with_best({ACCURACY: value, "eval/mood/macro_f1": value / 2}, known, step, train)
    return known


def test_without_a_monitor_no_evaluation_is_best() -> None:
    assert with_best({ACCURACY: 0.5}, {}, 1, TrainConfig()) == {ACCURACY: 0.5}


@pytest.mark.parametrize(("mode", "value", "step"), [("max", 0.8, 2), ("min", 0.3, 1)])
def test_the_best_is_carried_along_with_all_its_figures(mode: str, value: float, step: int) -> None:
    assert follow(mode, 0.3, 0.8, 0.8, 0.6) == {
        ACCURACY: 0.6,
        "eval/mood/macro_f1": 0.3,
        "best/mood/accuracy": value,
        "best/mood/macro_f1": value / 2,
        "best/step": step,
    }


def test_a_figure_that_is_not_there_is_one_line_with_those_that_are() -> None:
    train = TrainConfig(monitor="eval/mood/accurate")
    with pytest.raises(UserError, match=r"no figure 'eval/mood/accurate' was evaluated; there are: eval/mood/accuracy"):
        with_best({ACCURACY: 0.5}, {}, 1, train)


def test_a_monitored_task_that_is_not_there_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"there is no task 'moood'; the tasks are mood, puzzling"):
        RunConfig.model_validate(config().model_dump() | {"train": {"monitor": "eval/moood/accuracy"}})
