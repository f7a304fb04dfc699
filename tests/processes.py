"""Processes that tests look at and end; any of them may end by itself at any moment."""

import os
from collections.abc import Iterable
from contextlib import suppress

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
