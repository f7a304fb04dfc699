"""Work off the step path: one piece at a time, in a thread, and nothing about it is silent."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

NICENESS = 10
"""How far the work steps back behind the training where cores are short."""


class Call(Future[Any]):
    """What becomes of a function that a thread calls."""

    thread: threading.Thread

    def join(self) -> None:
        """Wait until the thread has ended too: what it still holds is freed in it.

        A thread that frees tensors while the interpreter ends takes the process down (`terminate called without an
        active exception`).
        """
        self.thread.join()


def in_thread(function: Callable[[], Any], name: str, *, nice: int = 0) -> Call:
    """Call a function in a thread that does not hold the process up at its end."""
    future = Call()

    def call() -> None:
        if nice:
            with suppress(OSError):  # Linux knows the priority of a single thread
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001  (handed to whoever asks for the result)
            future.set_exception(error)

    future.thread = threading.Thread(target=call, name=name, daemon=True)
    future.thread.start()
    return future


class Background:
    """At most one piece of work in flight; a failure is raised by whoever waits for it next."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._running: Call | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Begin a piece of work when the one before it is done, raising what went wrong with that."""
        self.wait()
        self._running = in_thread(work, self._name, nice=NICENESS)

    @property
    def busy(self) -> bool:
        """Whether work is in flight."""
        return self._running is not None and not self._running.done()

    def wait(self) -> None:
        """Wait for the work in flight, raising what went wrong with it."""
        running, self._running = self._running, None
        if running is not None:
            running.join()
            running.result()
