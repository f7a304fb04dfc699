"""The ledger is all that a sweep remembers: whatever is killed, it goes on from there."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from hmtl_dist.errors import UserError
from hmtl_dist.tune.book import Book
from hmtl_dist.tune.ledger import Ledger, Record, SweepState, changed
from hmtl_dist.tune.member import News
from tests.tune.spaces import METRIC, space


def book(folder: Path, **sections: object) -> Book:
    return Book(space(**{"budget": {"trials": 4}, **sections}), Ledger(str(folder)), 90)


def news(step: int, value: float = 0.5, status: str = "RUNNING") -> News:
    return News(step=step, metrics={METRIC: value}, status=status, total_steps=90, batch_size=16, images=16 * step)


def test_trials_that_are_left_count_those_that_are_not_drawn_yet(tmp_path: Path) -> None:
    first = book(tmp_path)  # of four
    assert first.left == 4
    first.next()
    first.next()
    assert first.left == 4
    first.hear(1, news(90, status="FINISHED"), {})
    assert first.left == 3


def test_what_a_trial_tells_adds_to_its_cost(tmp_path: Path) -> None:
    first = book(tmp_path)
    first.next()
    first.price_per_second = 0.5
    for step, seconds in ((10, 3.0), (20, 5.0)):
        first.hear(0, replace(news(step), seconds=seconds), {})
    assert (first.ledger.records[0].seconds, first.ledger.records[0].cost) == (8.0, 4.0)


def test_a_trial_is_written_before_it_is_handed_out(tmp_path: Path) -> None:
    record = book(tmp_path).next()
    assert record is not None
    assert Ledger(str(tmp_path)).in_order() == [record]


def test_what_was_handed_out_when_the_driver_died_is_handed_out_again_before_anything_new(tmp_path: Path) -> None:
    first = book(tmp_path)
    handed = [first.next(), first.next(), first.next()]
    first.hear(1, news(90, status="FINISHED"), {})
    again = book(tmp_path)
    numbers = [record.number for record in iter(again.next, None)]
    assert numbers == [0, 2, 3]
    assert again.ledger.records[0].params == (handed[0].params if handed[0] else None)


def test_a_trial_that_is_stopped_early_is_pruned_and_not_run_again(tmp_path: Path) -> None:
    first = book(tmp_path)
    first.next()
    first.begin(0)
    first.hear(0, news(10), first.ledger.records[0].params)
    first.over(0)
    assert Ledger(str(tmp_path)).records[0].status == "PRUNED"
    again = book(tmp_path)
    assert [record.number for record in iter(again.next, None)] == [1, 2, 3]


def test_a_trial_that_never_began_is_left_for_the_next_time(tmp_path: Path) -> None:
    first = book(tmp_path)
    first.next()
    first.over(0)
    record = book(tmp_path).next()
    assert record is not None
    assert record.number == 0


def test_reports_of_a_part_that_was_lost_are_replaced(tmp_path: Path) -> None:
    first = book(tmp_path)
    first.next()
    for step, value in ((10, 0.1), (20, 0.2), (30, 0.3)):
        first.hear(0, news(step, value), {})
    first.hear(0, news(20, 0.25), {})
    told = [(report.step, report.metrics[METRIC]) for report in Ledger(str(tmp_path)).records[0].reports]
    assert told == [(10, 0.1), (20, 0.25)]


def test_a_failed_trial_is_recorded_and_the_next_one_handed_out(tmp_path: Path) -> None:
    first = book(tmp_path)
    first.next()
    first.hear(0, News(step=0, metrics={}, status="FAILED", error="the loss is not finite"), {})
    assert first.ledger.records[0].error == "the loss is not finite"
    record = first.next()
    assert record is not None
    assert record.number == 1


def test_a_sweep_whose_first_trials_all_fail_is_given_up_with_their_reason(tmp_path: Path) -> None:
    first = book(tmp_path)
    for number in range(3):
        first.next()
        first.hear(number, News(step=0, metrics={}, status="FAILED", error=f"cause {number}"), {})
    assert first.next() is None
    assert str(first.trouble) == "the first 3 trials failed, the last one so: cause 2"


def test_values_that_fit_no_configuration_fail_alone(tmp_path: Path) -> None:
    def check(record: Record) -> None:
        if record.number == 1:
            raise UserError("does not fit")

    first = Book(space(budget={"trials": 3}), Ledger(str(tmp_path)), 90, check=check)
    assert [record.number for record in iter(first.next, None)] == [0, 2]
    assert first.ledger.records[1].status == "FAILED"


def test_a_closed_book_hands_nothing_out(tmp_path: Path) -> None:
    first = book(tmp_path)
    first.close()
    assert first.next() is None
    assert first.exhausted


def test_an_exchange_is_written_with_its_donor_and_values(tmp_path: Path) -> None:
    first = book(tmp_path)
    first.next()
    first.next()
    first.hear(1, news(20), {})
    first.exchange(0, 1, {"tasks.puzzling.weight": 0.3})
    record = Ledger(str(tmp_path)).records[0]
    assert record.params == {"tasks.puzzling.weight": 0.3}
    assert [(one.donor, one.step) for one in record.adoptions] == [(1, 20)]


def test_other_settings_than_a_sweep_was_begun_with_are_named() -> None:
    assert changed({"a": "1", "b": "2"}, {"a": "1", "b": "2"}) == ""
    assert changed({"a": "1", "b": "2"}, {"a": "1", "b": "3"}) == "b=2, now it is 3"


def test_a_state_of_another_version_is_refused_in_a_line(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.write_state(SweepState(settings={"a": "1"}, seconds=3.0))
    assert ledger.state() == SweepState(settings={"a": "1"}, seconds=3.0)
    (tmp_path / "sweep.json").write_text('{"other": 1}')
    with pytest.raises(UserError, match="not of this version"):
        ledger.state()


def test_whoever_watches_does_not_wait_for_a_record_that_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = book(tmp_path)
    drawn = first.next()
    writing, back = threading.Event(), threading.Event()

    def write(*_: object) -> None:  # to a storage that is away
        writing.set()
        assert back.wait(60)

    monkeypatch.setattr("hmtl_dist.tune.ledger.Ledger.write", write)
    telling = threading.Thread(target=first.hear, args=(0, news(10), {}), daemon=True)
    telling.start()
    assert writing.wait(60)
    seen: list[list[Record]] = []

    def watch() -> None:
        seen.append(first.in_order())
        first.close()

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    watching.join(30)
    assert (seen, first.closed) == ([[drawn]], True)
    back.set()
    telling.join()
