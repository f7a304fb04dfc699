"""The loop over a real objective and engine; who listens only writes down what is said."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from hmtl_dist.engine.base import Engine
from hmtl_dist.tasks.base import SingleRank
from hmtl_dist.tasks.objective import Objective
from hmtl_dist.tracking.base import SilentTracker
from hmtl_dist.train.base import Callback, Outcome, Progress
from hmtl_dist.train.guard import Guard
from hmtl_dist.train.loop import RankBatch, Run, train
from hmtl_dist.train.schedule import Schedule
from tests.train.toy import STEPS_PER_EPOCH, build, config, rank_batches


@dataclass
class Record(SilentTracker):
    """Tracker, listener, evaluator and saver of a run in one."""

    engine: Engine
    stop_at: int | None = None
    """Ask to stop while this step is being taken."""
    recorded: list[tuple[int, list[str]]] = field(default_factory=list[tuple[int, list[str]]])
    shown: list[Progress] = field(default_factory=list[Progress])
    reported: list[tuple[int, str | None]] = field(default_factory=list[tuple[int, str | None]])
    told: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    evaluated: list[int] = field(default_factory=list[int])
    saved: list[tuple[int, dict[str, float]]] = field(default_factory=list[tuple[int, dict[str, float]]])
    seeded: list[int] = field(default_factory=list[int])
    due_at: int | None = None
    """Ask for a checkpoint while this step is being taken."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.recorded.append((step, sorted(values)))

    def progress(self, progress: Progress) -> None:
        self.shown.append(progress)

    def note(self, line: str) -> None:
        raise AssertionError(line)

    def report(self, metrics: Mapping[str, float], checkpoint: str | None) -> None:
        self.reported.append((int(metrics["global_step"]), checkpoint))
        self.told.append(dict(metrics))

    def should_stop(self) -> bool:
        return self.engine.global_step + 1 == self.stop_at

    def should_save(self) -> bool:
        return False

    def hung(self, said: str) -> None:
        raise AssertionError(said)

    def due(self) -> bool:
        return self.engine.global_step + 1 == self.due_at

    def evaluate(self, step: int, known: Mapping[str, float]) -> dict[str, float]:
        self.evaluated.append(step)
        return {"eval/mood/accuracy": step / 100}

    def save(self, step: int, metrics: Mapping[str, float]) -> str | None:
        before = self.newest()
        self.saved.append((step, dict(metrics)))
        return before

    def newest(self) -> str | None:
        return f"checkpoints/step-{self.saved[-1][0]}" if self.saved else None


def schedule(**changes: Any) -> Schedule:
    """Two epochs of four steps; a report every three."""
    usual: dict[str, Any] = {
        "steps_per_epoch": STEPS_PER_EPOCH,
        "total_steps": 8,
        "batch_size": 8,
        "report_every_steps": 3,
        "evaluate_every_epochs": 2,
        "checkpoint_every_epochs": 1,
    }
    return Schedule(**usual | changes)


def make_run(
    built: tuple[Objective, Engine] | None = None,
    *,
    stop_at: int | None = None,
    due_at: int | None = None,
    micro_batches: int = 1,
    **plan: Any,
) -> tuple[Run, Record]:
    objective, engine = built or build(config(engine={"kind": "plain", "accumulation_steps": micro_batches}))
    record = Record(engine, stop_at, due_at=due_at)
    run = Run(
        batches=rank_batches(micro_batches),
        objective=objective,
        engine=engine,
        ranks=SingleRank(),
        guard=Guard("stop", 1, objective, SingleRank(), lambda ids: [f"sample {sample}" for sample in ids]),
        schedule=schedule(**plan),
        tracker=record,
        listener=record,
        shows=True,
        reseed=record.seeded.append,
        evaluate=record.evaluate,
        save=record.save,
        saved=record.newest,
        due=record.due,
        waited=lambda: 0.0,
    )
    return run, record


def steps(said: Iterable[tuple[int, object]]) -> list[int]:
    return [step for step, _ in said]


class Heard(Callback):
    def __init__(self) -> None:
        self.windows: list[tuple[int, bool]] = []
        self.evaluations: list[tuple[int, dict[str, float]]] = []
        self.ends: list[Outcome] = []

    def on_window(self, step: int, metrics: Mapping[str, float]) -> None:
        self.windows.append((step, "train/loss/total" in metrics))

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self.evaluations.append((step, dict(metrics)))

    def on_end(self, outcome: Outcome) -> None:
        self.ends.append(outcome)


def test_callbacks_are_told_of_windows_evaluations_and_the_end() -> None:
    run, _ = make_run()
    heard = Heard()
    outcome = train(replace(run, callbacks=(heard,)))
    assert heard.windows == [(3, True), (4, True), (6, True), (8, True)]
    assert heard.evaluations == [(8, {"eval/mood/accuracy": 0.08})]
    assert heard.ends == [outcome]


def test_reports_evaluates_and_saves_at_the_planned_steps() -> None:
    run, record = make_run()
    train(run)
    assert record.reported == [
        (3, None),
        (4, None),
        (6, None),
        (8, "checkpoints/step-4"),
    ]
    assert (record.evaluated, steps(record.saved)) == ([8], [4, 8])
    assert record.saved[-1] == (8, {"eval/mood/accuracy": 0.08})


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_next_batch_is_fetched_before_the_step_but_not_beyond_a_window_or_a_stop(micro_batches: int) -> None:
    run, record = make_run(micro_batches=micro_batches, stop_at=6, report_every_steps=4)
    ahead: list[tuple[int, int]] = []
    engine = run.engine
    train(replace(run, ahead=lambda: ahead.append((engine.global_step + 1, engine.micro_step))))
    assert ahead == [(step, micro_batches * step) for step in (1, 2, 3, 5)]
    assert steps(record.reported) == [4, 6]


def test_a_checkpoint_that_is_due_is_saved_at_that_step() -> None:
    run, record = make_run(due_at=2)
    train(run)
    assert steps(record.saved) == [2, 4, 8]
    assert steps(record.reported) == [2, 3, 4, 6, 8]


def test_outcome_is_that_of_the_last_step() -> None:
    run, _ = make_run()
    outcome = train(run)
    assert (outcome.status, outcome.global_step, outcome.total_steps) == ("FINISHED", 8, 8)
    assert (outcome.metrics, outcome.checkpoint) == ({"eval/mood/accuracy": 0.08}, "checkpoints/step-8")
    assert outcome.samples_per_second > 0


def test_windows_and_evaluations_are_recorded_at_their_steps() -> None:
    run, record = make_run()
    train(run)
    assert steps(record.recorded) == [3, 4, 6, 8, 8]
    assert record.recorded[-1] == (8, ["eval/mood/accuracy"])
    assert record.recorded[0][1] == [
        "train/epoch",
        "train/learning_rate",
        "train/loss/mood",
        "train/loss/puzzling",
        "train/loss/total",
        "train/mood/accuracy",
        "train/puzzling/accuracy",
        "train/samples_per_second",
        "train/step_seconds",
        "train/wait_share",
    ]


def test_listener_is_told_what_is_recorded_of_a_window() -> None:
    def more_metrics(step: int) -> dict[str, float]:
        return {"data/retries": 2.0}

    run, record = make_run()
    train(replace(run, more_metrics=more_metrics))
    assert record.told[0]["data/retries"] == 2.0
    assert {*record.told[0]} == {*record.recorded[0][1], "global_step"}
    assert record.told[-1]["eval/mood/accuracy"] == 0.08


def test_progress_tells_how_far_the_run_is() -> None:
    run, record = make_run()
    train(run)
    assert [(line.phase, line.global_step, line.epoch) for line in record.shown] == [
        ("train", 3, 0.75),
        ("train", 4, 1.0),
        ("train", 6, 1.5),
        ("train", 8, 2.0),
        ("evaluate", 8, 2.0),
    ]
    assert record.shown[-1].metrics == {"eval/mood/accuracy": 0.08}
    assert record.shown[-1].eta_seconds == 0.0


def test_a_run_that_goes_on_first_shows_the_evaluation_that_its_checkpoint_was_saved_at() -> None:
    run, record = make_run()
    train(replace(run, metrics={"eval/mood/accuracy": 0.5}, evaluated_at=run.engine.global_step))
    assert (record.shown[0].phase, record.shown[0].global_step) == ("resume", 0)
    assert record.shown[0].metrics == {"eval/mood/accuracy": 0.5}
    assert [line.phase for line in record.shown].count("resume") == 1


def test_an_evaluation_of_another_step_is_not_shown_again() -> None:
    run, record = make_run()
    train(replace(run, metrics={"eval/mood/accuracy": 0.5}, evaluated_at=run.engine.global_step + 1))
    assert "resume" not in [line.phase for line in record.shown]


def test_other_ranks_report_as_often_but_show_nothing() -> None:
    run, record = make_run()
    train(replace(run, shows=False))
    assert (steps(record.reported), record.shown) == ([3, 4, 6, 8], [])


def test_a_stop_ends_the_run_at_that_step_with_a_checkpoint() -> None:
    run, record = make_run(stop_at=5)
    outcome = train(run)
    assert (outcome.status, outcome.global_step, outcome.checkpoint) == ("STOPPED", 5, "checkpoints/step-5")
    assert record.reported[-1] == (5, "checkpoints/step-4")
    assert steps(record.recorded) == [3, 4, 5]
    assert record.evaluated == []


def test_a_stop_at_the_last_step_finishes_the_run() -> None:
    run, record = make_run(stop_at=8)
    assert train(run).status == "FINISHED"
    assert record.evaluated == [8]


def test_a_stop_waits_for_the_end_of_an_accumulation() -> None:
    run, record = make_run(stop_at=2, micro_batches=4)
    assert train(run).global_step == 2
    assert run.engine.micro_step == 8
    assert steps(record.saved) == [2]


def test_dropout_is_seeded_for_every_micro_batch() -> None:
    run, record = make_run(micro_batches=2, total_steps=3)
    train(run)
    assert record.seeded == [0, 1, 2, 3, 4, 5]


def test_a_run_that_was_stopped_goes_on_at_the_next_step() -> None:
    stopped, _ = make_run(stop_at=5)
    train(stopped)
    run, record = make_run((stopped.objective, stopped.engine))
    assert train(run).global_step == 8
    assert (steps(record.reported), record.seeded) == ([6, 8], [5, 6, 7])


def test_a_run_that_is_over_says_what_its_checkpoint_says() -> None:
    run, record = make_run()
    nothing: list[RankBatch] = []
    ended = schedule(total_steps=0)
    over = replace(run, batches=nothing, schedule=ended, metrics={"eval/x": 1.0}, saved=lambda: "there")
    outcome = train(over)
    assert (outcome.status, outcome.metrics, outcome.checkpoint) == ("FINISHED", {"eval/x": 1.0}, "there")
    assert record.reported == []


def test_the_weighting_hears_of_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = make_run()
    heard: list[int] = []
    monkeypatch.setattr(run.objective, "end_epoch", lambda: heard.append(run.engine.global_step))
    train(run)
    assert heard == [4, 8]


def test_the_model_learns() -> None:
    run, record = make_run(total_steps=40, report_every_steps=4)
    train(run)
    first, last = record.shown[0].losses, record.shown[-1].losses
    assert last["mood"] < first["mood"] / 2
