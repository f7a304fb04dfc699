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
_heard: dict[str, tuple[float, float]] = {}
"""What other processes have said they wait for: since when, and when they said so last."""


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


def hear(wait: Wait) -> None:
    """Take note that a process of this one waits for something; it says so about once a second while it does."""
    now = time.monotonic()
    with _lock:
        _forget(now)
        begun, _ = _heard.get(wait.what, (now, now))
        _heard[wait.what] = min(begun, now - wait.seconds), now


def longest_wait() -> Wait | None:
    """Return what this process, or one that it heard of just now, has waited for longest; None without any wait."""
    now = time.monotonic()
    with _lock:
        _forget(now)
        waits = [Wait(what, now - begun) for what, begun in _begun.values()]
        waits += [Wait(what, now - begun) for what, (begun, _) in _heard.items()]
    return max(waits, key=lambda wait: wait.seconds, default=None)


def _forget(now: float) -> None:
    """Forget what nobody has spoken of for a while."""
    for what in [what for what, (_, last) in _heard.items() if now - last > 2 * LOOK_SECONDS]:
        del _heard[what]


class WaitNotice:
    """Tells of waits while the `with` block runs: once a second, from a thread of its own.

    Args:
        tell: Told what is waited for, from `WORTH_TELLING_SECONDS` on; must not wait itself.
    """

    def __init__(self, tell: Callable[[Wait], None]) -> None:
        self._tell = tell
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="wait-notice", daemon=True)

    def start(self) -> None:
        """Begin to look, for as long as this process lives or until the block ends."""
        self._thread.start()

    def __enter__(self) -> Self:
        """Begin to look."""
        self.start()
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
