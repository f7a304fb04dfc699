"""A run from S3 on two Ray workers through DeepSpeed, killed again and again: its result is the uninterrupted one's."""

import os
from collections import Counter
from collections.abc import Generator
from typing import cast

import pytest

from tests.faults.chaos import BATCH_SIZE, STEPS_PER_EPOCH, VICTIMS, Trial, Victim, losses, report, trial
from tests.faults.ledger import planned, read_ledger

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(2400)]

ONE: list[Victim] = [cast("Victim", name) for name in os.environ.get("HMTL_CHAOS_VICTIM", "").split()]
"""A single kill of this kind instead, in a short run: for those who take a handling out, `tests.faults.mutants`."""
KILLS = ONE or VICTIMS * 2
EPOCHS = 3 if ONE else 14
TOTAL_STEPS = EPOCHS * STEPS_PER_EPOCH


@pytest.fixture(scope="module")
def tormented(tmp_path_factory: pytest.TempPathFactory) -> Generator[Trial]:
    folder = tmp_path_factory.mktemp("chaos")
    with trial(folder, KILLS, seed=17 if ONE else 20, epochs=EPOCHS, seconds=1800) as found:  # one: after a checkpoint
        report(found)
        yield found


def test_every_kill_struck_and_the_run_went_on(tormented: Trial) -> None:
    assert sorted(kill.victim for kill, _ in tormented.done) == sorted(KILLS)
    assert max(seconds for _, seconds in tormented.done) < 300


def test_weights_optimizer_and_average_are_those_of_the_uninterrupted_run(tormented: Trial) -> None:
    assert tormented.differences() == []


def test_the_ledger_is_the_plan_and_every_sample_is_seen_once_an_epoch(tormented: Trial) -> None:
    ledger = read_ledger(tormented.killed)
    assert ledger == planned(tormented.config)
    assert len(ledger) == TOTAL_STEPS
    for epoch in range(EPOCHS):
        steps = range(epoch * STEPS_PER_EPOCH + 1, (epoch + 1) * STEPS_PER_EPOCH + 1)
        seen = Counter(sample for step in steps for sample in ledger[step])
        assert seen == Counter(range(STEPS_PER_EPOCH * BATCH_SIZE))


def test_every_step_stands_in_the_journal_once_with_the_loss_of_the_uninterrupted_run(tormented: Trial) -> None:
    killed = losses(tormented.killed / "rank-0" / "journal.jsonl")
    assert [step for step, _ in killed] == list(range(1, TOTAL_STEPS + 1))
    assert killed == losses(tormented.whole / "rank-0" / "journal.jsonl")


def test_it_is_one_mlflow_run_with_one_value_a_step(tormented: Trial) -> None:
    assert tormented.delivered() == ("FINISHED", losses(tormented.whole / "rank-0" / "journal.jsonl"))


def test_nothing_is_left_running(tormented: Trial) -> None:
    assert tormented.left_over == 0
