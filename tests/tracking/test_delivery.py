"""Going back to a checkpoint: the journal forgets what came after it, and so does the mark of what was delivered."""

from pathlib import Path

import pytest

from hmtl_dist.tracking.delivery import DELIVERED, rewind
from hmtl_dist.tracking.jsonl import Journal, read_events


def written(folder: Path) -> Path:
    journal = Journal(folder)
    for step in range(1, 7):
        journal.metrics({"loss": step / 10}, step)
        journal.tags({"after": str(step)})
    journal.close("KILLED")
    return journal.path


def steps(journal: Path) -> list[int]:
    return [event["step"] for event, _ in read_events(journal) if "step" in event]


@pytest.mark.parametrize("delivered", [0, 3, 11])
def test_steps_after_the_checkpoint_are_dropped_and_nothing_else(tmp_path: Path, delivered: int) -> None:
    journal = written(tmp_path)
    events = list(read_events(journal))
    (tmp_path / DELIVERED).write_text(str(events[delivered - 1][1] if delivered else 0))
    before = [event for event, _ in events[:delivered] if event.get("step", 0) <= 4]
    rewind(journal, 4)
    assert steps(journal) == [1, 2, 3, 4]
    kept = list(read_events(journal))
    assert [event for event, _ in kept] == [event for event, _ in events if event.get("step", 0) <= 4]
    mark = int((tmp_path / DELIVERED).read_text())
    assert [event for event, end in kept if end <= mark] == before


def test_a_journal_that_ends_at_the_checkpoint_stays_as_it_is(tmp_path: Path) -> None:
    journal = written(tmp_path)
    content = journal.read_bytes()
    rewind(journal, 6)
    assert journal.read_bytes() == content
