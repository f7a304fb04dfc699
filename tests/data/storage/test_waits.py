"""What a process waits for is known while it waits, and told."""

import os
import threading
import time
from collections.abc import Callable

import pytest

from hmtl_dist.data.storage import waits
from hmtl_dist.data.storage.config import OUTAGE, StorageConfig, outage_seconds, settings
from hmtl_dist.data.storage.waits import Wait, WaitNotice, longest_wait, waiting_for


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_of_several_waits_the_longest_is_known_until_it_is_over() -> None:
    assert longest_wait() is None
    with waiting_for("s3://one"):
        with waiting_for("s3://two"):
            wait = longest_wait()
            assert wait is not None
            assert wait.what == "s3://one"
            assert wait.seconds >= 0
        assert longest_wait() is not None
    assert longest_wait() is None


def test_a_wait_that_breaks_is_over() -> None:
    with pytest.raises(ValueError, match="broken"), waiting_for("s3://one"):
        raise ValueError("broken")
    assert longest_wait() is None


def test_a_wait_is_told_from_a_while_on_and_not_after_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(waits, "WORTH_TELLING_SECONDS", 0.2)
    told: list[Wait] = []
    with WaitNotice(told.append), waiting_for("s3://one"):
        until(lambda: len(told) > 1)
    assert told[0].what == "s3://one"
    assert 0.2 <= told[0].seconds < told[1].seconds
    assert "wait-notice" not in {thread.name for thread in threading.enumerate()}
    count = len(told)
    with waiting_for("s3://one"):
        time.sleep(0.3)
    assert len(told) == count


def test_what_another_process_waits_for_is_known_until_it_says_so_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    waits.hear(Wait("s3://far", 7.0))
    waits.hear(Wait("s3://far", 2.0))  # another one, which has waited for less long
    with waiting_for("s3://near"):
        wait = longest_wait()
    assert wait is not None
    assert (wait.what, wait.seconds >= 7) == ("s3://far", True)
    monkeypatch.setattr(waits, "LOOK_SECONDS", 0.0)
    assert longest_wait() is None


def test_patience_is_that_of_the_configuration_inside_the_block() -> None:
    assert outage_seconds() == 600
    with settings(StorageConfig(patience_minutes=0.5)):
        assert outage_seconds() == 30
        assert os.environ[OUTAGE] == "30.0"  # what processes that are started here see
    assert outage_seconds() == 600
