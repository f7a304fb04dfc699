"""What of Ray's schedulers a sweep relies on: judged by global steps, and knowing what was before an interruption."""

from pathlib import Path
from typing import Any

import pytest

from hmtl_dist.tune.book import Book
from hmtl_dist.tune.ledger import Ledger
from hmtl_dist.tune.member import News
from hmtl_dist.tune.space import Space
from tests.tune.spaces import METRIC, WEIGHTS, space

PER_EPOCH, EPOCHS = 10, 9
ASHA = {"type": "asha", "grace_epochs": 1, "reduction": 3}
MEDIAN = {"type": "median", "grace_epochs": 1, "min_trials": 3}


class Stub:
    """A trial as schedulers see it."""

    status = "RUNNING"

    def __init__(self, number: int) -> None:
        self.trial_id = f"{number:05d}"

    def is_finished(self) -> bool:
        return False


class Controller:
    """Ray Tune without other trials."""

    def get_live_trials(self) -> list[Any]:
        return []


def verdict(scheduler: Any, trial: Stub, step: int, value: float) -> str:
    return scheduler.on_trial_result(Controller(), trial, {"global_step": step, METRIC: value})


def scheduler_of(found: Space, folder: Path) -> tuple[Any, Book]:
    from hmtl_dist.tune.schedulers import make_scheduler

    book = Book(found, Ledger(str(folder)), PER_EPOCH * EPOCHS)
    return make_scheduler(found, PER_EPOCH, book), book


def test_successive_halving_judges_at_global_steps_and_never_at_the_end(tmp_path: Path) -> None:
    scheduler, _ = scheduler_of(space(schedule=ASHA), tmp_path)
    trials = [Stub(number) for number in range(4)]
    for trial in trials:
        scheduler.on_trial_add(Controller(), trial)
    assert [verdict(scheduler, trial, 5, 0.1 * number) for number, trial in enumerate(trials)] == ["CONTINUE"] * 4
    judged = [verdict(scheduler, trials[number], 10, 0.1 * number) for number in (3, 2, 1, 0)]
    assert judged == ["CONTINUE", "STOP", "STOP", "STOP"]
    assert verdict(scheduler, trials[3], PER_EPOCH * EPOCHS, 0.9) == "CONTINUE"


def test_a_trial_whose_process_is_started_again_knows_what_it_has_told(tmp_path: Path) -> None:
    from hmtl_dist.tune.search import Recorder

    _, book = scheduler_of(space(), tmp_path)
    record = book.next()
    assert record is not None
    trial: Any = Stub(record.number)
    trial.config = {"params": dict(record.params), "told": record.told_step}
    assert trial.config["told"] == 0
    news = News(step=10, metrics={METRIC: 0.5}, total_steps=90)
    Recorder(book).on_trial_result(1, [trial], trial, {"news": news})
    assert trial.config["told"] == 10
    assert book.in_order()[0].told_step == 10


@pytest.mark.parametrize("schedule", [ASHA, MEDIAN], ids=["asha", "median"])
def test_a_scheduler_that_is_made_anew_judges_as_the_one_that_was_killed(
    schedule: dict[str, Any], tmp_path: Path
) -> None:
    found = space(schedule=schedule, search="random")
    scheduler, book = scheduler_of(found, tmp_path)
    for number in range(5):
        record = book.next()
        assert record is not None
        trial = Stub(number)
        scheduler.on_trial_add(Controller(), trial)
        for step in (10, 20, 30):
            verdict(scheduler, trial, step, 0.5 + 0.05 * number)
            book.hear(number, News(step=step, metrics={METRIC: 0.5 + 0.05 * number}, total_steps=90), record.params)
        book.hear(number, News(step=90, metrics={METRIC: 0.5 + 0.05 * number}, status="FINISHED"), record.params)
    again, _ = scheduler_of(found, tmp_path)
    fresh, _ = scheduler_of(found, tmp_path / "empty")
    weak = Stub(9)
    for one in (again, fresh):
        one.on_trial_add(Controller(), weak)
    assert verdict(again, weak, 10, 0.1) == "STOP"
    assert verdict(fresh, weak, 10, 0.1) == "CONTINUE"


@pytest.mark.parametrize("kind", ["pbt", pytest.param("pb2", marks=pytest.mark.nightly)])  # PB2 imports for 20 s
def test_an_exchange_keeps_values_within_the_space_and_is_noted(kind: str, tmp_path: Path) -> None:
    found = space(search="random", schedule={"type": kind, "interval_epochs": 1}, budget={"trials": 2, "epochs": 9})
    scheduler, book = scheduler_of(found, tmp_path)
    records = [book.next(), book.next()]
    trials: list[Any] = []
    for number, record in enumerate(records):
        assert record is not None
        trial: Any = Stub(number)
        trial.config = {"params": dict.fromkeys(WEIGHTS, 4.9), "trial": "{}"}
        trial.evaluated_params = {}
        trials.append(trial)
    if kind == "pb2":
        import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

        rows = [["other", 10, 1.0, 1.0, 0.2], ["other", 20, 1.0, 1.0, 0.4], [str(trials[1]), 10, 4.9, 4.9, 0.3]]
        rows.append([str(trials[1]), 20, 4.9, 4.9, 0.6])
        names = [f"params/{path}" for path in WEIGHTS]
        scheduler.data = pd.DataFrame(rows, columns=["Trial", "Time", *names, "Reward"])
    drawn: list[dict[str, Any]] = []
    for _ in range(8):
        config, _ = scheduler._get_new_config(trials[0], trials[1])
        drawn.append(config["params"])
    assert all(found.params[path].holds(params[path]) for params in drawn for path in WEIGHTS)
    assert any(params != drawn[0] for params in drawn) or kind == "pb2"
    assert book.ledger.records[0].params == drawn[-1]
    assert book.ledger.records[0].adoptions[-1].donor == 1
