"""Processes that tests look at and end; any of them may end by itself at any moment."""

import os
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import psutil


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """Kill processes that were found before."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def process_name(process: psutil.Process) -> str:
    """Its name, empty when it is gone."""
    with suppress(psutil.Error):
        return process.name()
    return ""


def command_line(process: psutil.Process) -> str:
    """Its command line, empty when it is gone."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def session_of(process: psutil.Process) -> int | None:
    """The session that it belongs to, None when it is gone."""
    with suppress(ProcessLookupError):
        return os.getsid(process.pid)
    return None


def is_running(process: psutil.Process) -> bool:
    """Whether it is there and has not ended."""
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


class Family:
    """Everything that a driver has started, noted while it ran: Ray's workers overwrite their environment."""

    def __init__(self, driver: "subprocess.Popen[Any]") -> None:
        self._driver = psutil.Process(driver.pid)
        self.members: set[psutil.Process] = set()

    def look(self) -> None:
        """Note who is there now."""
        with suppress(psutil.Error):
            self.members |= {self._driver, *self._driver.children(recursive=True)}

    def running(self, *, but_driver: bool = False) -> list[psutil.Process]:
        """Return who still runs of all that were noted."""
        return [one for one in self.members if is_running(one) and not (but_driver and one == self._driver)]

    def actor(self) -> psutil.Process:
        """Return a process that trains a trial: Ray names it after the class that Tune makes of ours."""
        self.look()
        names = {one: command_line(one) for one in self.running()}
        found = [one for one, name in names.items() if "TrialActor" in name or "ResourceTrainable" in name]
        assert found, sorted(names.values())
        return found[0]

    def left_over(self, patience: float = 150.0) -> list[str]:
        """What is still running, when it had time to end: Ray's agents take a minute to see that a driver is gone."""
        deadline = time.monotonic() + patience
        while (found := self.running()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return [command_line(one) for one in found]

    def kill(self) -> None:
        """Kill whoever still runs."""
        kill_all(self.running())
