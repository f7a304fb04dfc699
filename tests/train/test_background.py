import threading
import time
from functools import partial

import pytest

from hmtl_dist.train.background import Background


class SlowToFree:
    def __del__(self) -> None:
        time.sleep(0.3)


def wait_holding(held: SlowToFree) -> None:
    time.sleep(0.2)


def test_nothing_of_the_work_is_left_in_its_thread_when_it_was_waited_for() -> None:
    background = Background("work of a test")
    background.start(partial(wait_holding, SlowToFree()))

    background.wait()

    assert "work of a test" not in {thread.name for thread in threading.enumerate()}


def test_what_went_wrong_is_raised_once_by_whoever_waits() -> None:
    background = Background("work of a test")
    background.start(partial(dict[str, int]().__getitem__, "missing"))
    with pytest.raises(KeyError, match="missing"):
        background.wait()
    background.wait()
