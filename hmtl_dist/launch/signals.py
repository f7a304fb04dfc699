"""Ctrl-C, SIGTERM and a closed terminal (SIGHUP) as a request: the first asks for an orderly stop, the second stops."""

import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_Handlers = dict[signal.Signals, Any]
SAME_SECONDS = 1.0
"""Signals within this time of the first are the same request: `timeout`, make and batch systems signal a process and
then its whole group."""


class StopRequest:
    """Whether somebody asked this process to stop, while the `with` block runs.

    The first SIGINT, SIGTERM or SIGHUP sets `requested`, so that whoever trains can save and end; the second raises
    KeyboardInterrupt. Outside the main thread, where Python cannot install handlers, nothing is ever requested.

    Args:
        on_request: Called once, inside the signal's handler, when the stop is asked for: it may take no lock.
    """

    def __init__(self, on_request: Callable[[], None] = lambda: None) -> None:
        self.requested = False
        self._on_request = on_request
        self._requested_at = 0.0
        self._previous: _Handlers = {}

    def __enter__(self) -> Self:
        """Take the signals over."""
        self._previous = _take_over(_SIGNALS, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the signals back to whoever had them."""
        _give_back(self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested, self._requested_at = True, time.monotonic()
            self._on_request()
        elif time.monotonic() - self._requested_at > SAME_SECONDS:
            raise KeyboardInterrupt


@contextmanager
def as_interrupt() -> Generator[None]:
    """End by SIGTERM and SIGHUP as by Ctrl-C while the block runs: by a KeyboardInterrupt, so that all is put back."""
    raised_at = float("-inf")

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal raised_at
        before, raised_at = raised_at, time.monotonic()
        if raised_at - before > SAME_SECONDS:
            raise KeyboardInterrupt

    previous = _take_over((signal.SIGTERM, signal.SIGHUP), interrupt)
    try:
        yield
    finally:
        _give_back(previous)


def _take_over(numbers: Iterable[signal.Signals], handle: Callable[[int, FrameType | None], object]) -> _Handlers:
    """Handle signals, where Python can, and return who did; a SIGHUP that is ignored (`nohup`) stays so."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    wanted = [number for number in numbers if not (ignored and number == signal.SIGHUP)]
    return {number: signal.signal(number, handle) for number in wanted}


def _give_back(handlers: _Handlers) -> None:
    for number, handler in handlers.items():
        if handler is not None:  # none of Python's
            signal.signal(number, handler)
    handlers.clear()
