"""A rank that hangs takes the others along: each watches itself, writes down where it stands, and ends its process."""

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Self, TypeVar

STACKS = "stacks.txt"
HUNG = 75
"""Exit code of a rank that gave itself up."""

Item = TypeVar("Item")


class Watchdog:
    """Ends the process when nothing has moved for too long, while the `with` block runs.

    A rank that hangs makes the others wait for it, so all of them find it at about the same time, and each writes the
    stacks of its own threads: the one that differs is the cause.

    Args:
        minutes: How long nothing may move.
        folder: Of this rank; the stacks go to `stacks.txt` in it.
        tell: Told in one line before the process ends; it must not wait for long.
    """

    def __init__(self, minutes: float, folder: Path, tell: Callable[[str], None]) -> None:
        self._seconds = 60 * minutes
        self._file = folder / STACKS
        self._tell = tell
        self._moved = time.monotonic()
        self._over = threading.Event()

    def __enter__(self) -> Self:
        """Begin to watch."""
        self.beat()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """End watching."""
        self._over.set()

    def beat(self) -> None:
        """Take note that something has moved; costs nothing."""
        self._moved = time.monotonic()

    def each(self, items: Iterable[Item]) -> Iterator[Item]:
        """Pass items on, taking note of every one."""
        for item in items:
            self.beat()
            yield item

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() - self._moved > self._seconds:
                self._give_up()

    def _give_up(self) -> None:
        said = f"no step for {self._seconds / 60:g} minutes: the rank hangs or waits for one that does; "
        try:
            with self._file.open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            said += f"where each thread stood is in {self._file}"
        except OSError as error:
            said += f"its stacks could not be written ({error})"
        try:
            self._tell(said)
        finally:
            os._exit(HUNG)
