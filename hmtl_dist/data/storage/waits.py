"""What this process waits for, and since when: a storage that is away, a batch that does not come."""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

WORTH_TELLING_SECONDS = 5.0
"""Shorter waits are told to nobody."""
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Wait:
    """A wait that is not over."""

    what: str
    """URL of what is waited for."""
    seconds: float
    """How long by now."""


_lock = threading.Lock()
_begun: dict[int, tuple[str, float]] = {}


@contextmanager
def waiting_for(what: str) -> Generator[None]:
    """Take note that this process waits for something while the block runs."""
    mark = object()
    with _lock:
        _begun[id(mark)] = what, time.monotonic()
    try:
        yield
    finally:
        with _lock:
            del _begun[id(mark)]


def longest_wait() -> Wait | None:
    """Return what this process has waited for longest; None where it waits for nothing."""
    with _lock:
        if not _begun:
            return None
        what, begun = min(_begun.values(), key=lambda wait: wait[1])
    return Wait(what, time.monotonic() - begun)


class WaitNotice:
    """Tells of waits while the `with` block runs: once a second, from a thread of its own.

    Args:
        tell: Told what is waited for, from `WORTH_TELLING_SECONDS` on; must not wait itself.
    """

    def __init__(self, tell: Callable[[Wait], None]) -> None:
        self._tell = tell
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="wait-notice", daemon=True)

    def __enter__(self) -> Self:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End looking; nothing is told after this."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            wait = longest_wait()
            if wait is not None and wait.seconds >= WORTH_TELLING_SECONDS:
                self._tell(wait)
