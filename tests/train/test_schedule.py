from typing import Any

from hmtl_dist.train.schedule import Schedule


def schedule(**changes: Any) -> Schedule:
    """Three epochs of ten steps that report every four."""
    usual: dict[str, Any] = {
        "steps_per_epoch": 10,
        "total_steps": 30,
        "batch_size": 8,
        "report_every_steps": 4,
        "evaluate_every_epochs": 2,
        "checkpoint_every_epochs": 1,
    }
    return Schedule(**usual | changes)


def steps(happens: Any) -> list[int]:
    return [step for step in range(1, 31) if happens(step)]


def test_evaluates_after_every_so_many_epochs_and_at_the_end() -> None:
    assert steps(schedule().evaluates) == [20, 30]


def test_saves_after_every_so_many_epochs() -> None:
    assert steps(schedule().saves) == [10, 20, 30]


def test_saves_every_so_many_steps_too() -> None:
    assert steps(schedule(checkpoint_every_steps=7).saves) == [7, 10, 14, 20, 21, 28, 30]


def test_evaluating_and_saving_end_a_report_window() -> None:
    reports = steps(schedule(checkpoint_every_steps=7).reports)
    assert reports == [4, 7, 8, 10, 12, 14, 16, 20, 21, 24, 28, 30]


def test_closes_every_epoch() -> None:
    assert steps(schedule().closes_epoch) == [10, 20, 30]


def test_a_run_cut_in_mid_epoch_reports_evaluates_and_saves_at_its_last_step() -> None:
    cut = schedule(total_steps=23)
    assert [cut.reports(23), cut.evaluates(23), cut.saves(23), cut.ends(23)] == [True] * 4
    assert not cut.ends(22)


def test_a_run_that_is_over_stays_over() -> None:
    assert schedule(total_steps=23).ends(24)
