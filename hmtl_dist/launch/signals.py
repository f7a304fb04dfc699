"""Ctrl-C and SIGTERM as a request: the first asks for an orderly stop, the second stops at once."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_SECONDS = 1.0
"""Signals within this time of the first are the same request: `timeout`, make and batch systems signal a process and
then its whole group."""


class StopRequest:
    """Whether somebody asked this process to stop, while the `with` block runs.

    The first SIGINT or SIGTERM sets `requested`, so that whoever trains can save and end; the second raises
    KeyboardInterrupt. Outside the main thread, where Python cannot install handlers, nothing is ever requested.

    Args:
        on_request: Called once, inside the signal's handler, when the stop is asked for: it may take no lock.
    """

    def __init__(self, on_request: Callable[[], None] = lambda: None) -> None:
        self.requested = False
        self._on_request = on_request
        self._requested_at = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Take the signals over."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested, self._requested_at = True, time.monotonic()
            self._on_request()
        elif time.monotonic() - self._requested_at > SAME_SECONDS:
            raise KeyboardInterrupt
