"""A pytest plugin: the three tiers of tests, and what a failure among servers and processes says.

A test belongs to the tier of its nearest marker, `slow` or `nightly` (a function's stands over its module's), without
one to the quick tier. `--tier quick` (or `slow`, `nightly`; several with commas) runs that tier alone.

A failing test shows the last lines of every log that was written while it ran; one that is about to run out of time
shows the stacks of the processes it started.
"""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

TIERS = ("quick", "slow", "nightly")
MARKERS = (
    "slow: whole runs on real servers, a few; `make test-slow`, which continuous integration runs beside `make test`",
    "nightly: all the longer ones; `make test-nightly TESTS=...`",
)
LINES = 40
FILES = 24
_FOLDERS = pytest.StashKey[list[Path]]()
_STARTED = pytest.StashKey[float]()
_ALARM = pytest.StashKey[threading.Timer]()
_STACKS = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--tier`."""
    parser.addoption("--tier", default="", help="run these tiers alone: quick, slow, nightly, or several with commas")


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers; know of no folder before there is one."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    config.stash[_FOLDERS] = []


def tier_of(item: pytest.Item) -> str:
    """The tier that a test belongs to."""
    return next((mark.name for mark in item.iter_markers() if mark.name in TIERS), "quick")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the other tiers out."""
    wanted = [name for name in str(config.getoption("--tier")).split(",") if name]
    if unknown := [name for name in wanted if name not in TIERS]:
        raise pytest.UsageError(f"--tier: given {unknown[0]!r}, allowed are {', '.join(TIERS)}")
    if not wanted:
        return
    others = [item for item in items if tier_of(item) not in wanted]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if tier_of(item) in wanted]


@pytest.fixture(scope="session", autouse=True)
def folders_of_tests(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Remember where tests of this process write."""
    pytestconfig.stash[_FOLDERS] = [tmp_path_factory.getbasetemp()]


# --- what a failure says -----------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Remember when a test began: only what was written since then is its own."""
    item.stash[_STARTED] = time.time()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add logs and stacks to the report of a failure."""
    report = yield
    if report.failed:
        if stacks := item.stash.get(_STACKS, ""):
            report.sections.append(("stacks of the processes it started, shortly before its time was up", stacks))
        for path, tail in log_tails(
            [*item.config.stash[_FOLDERS], *_folders_of_ray()], since=item.stash.get(_STARTED, 0.0)
        ):
            report.sections.append((f"the end of {path}", tail))
    return report


def _folders_of_ray() -> list[Path]:
    """Where Ray of this project's tests and runs keeps its sessions: the paths of its sockets must be short."""
    return [path for path in Path("/tmp").glob("hmtl-*") if path.is_dir()]


def log_tails(folders: Iterable[Path], since: float) -> list[tuple[Path, str]]:
    """The last lines of the logs under `folders` that were written to since a moment (Unix time), the newest last."""
    found: dict[Path, float] = {}
    for folder in folders:
        for path in _logs_under(folder):
            try:
                status = path.stat()
            except OSError:  # it went meanwhile
                continue
            if status.st_size and status.st_mtime >= since:
                found[path] = status.st_mtime
    newest = sorted(found, key=lambda path: found[path])[-FILES:]
    return [(path, tail) for path in newest if (tail := _tail(path))]


def _logs_under(folder: Path) -> Generator[Path]:
    for parent, folders, files in os.walk(folder):  # links are not followed: Ray's `session_latest` comes once
        if "runtime_resources" in folders:  # whole copies of working folders and environments
            folders.remove("runtime_resources")
        for name in files:
            if name == "log.txt" or name.endswith((".log", ".err", ".out")):
                yield Path(parent, name)


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 20_000))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-LINES:])
    except OSError:
        return ""


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    """Set a clock of our own that rings shortly before that of pytest-timeout: afterwards the processes are gone."""
    if not settings.timeout:
        return

    def look() -> None:
        item.stash[_STACKS] = stacks_under(psutil.Process())

    alarm = threading.Timer(max(settings.timeout / 2, settings.timeout - 15.0), look)
    alarm.daemon = True
    item.stash[_ALARM] = alarm
    alarm.start()


def pytest_timeout_cancel_timer(item: pytest.Item) -> None:
    """Stop that clock."""
    if alarm := item.stash.get(_ALARM, None):
        alarm.cancel()


def stacks_under(process: psutil.Process) -> str:
    """The stacks of a process's children, and theirs, as py-spy sees them from outside."""
    spy = shutil.which("py-spy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if spy is None:
        return "py-spy is not installed"
    parts: list[str] = []
    for child in process.children(recursive=True):
        with suppress(psutil.Error, subprocess.TimeoutExpired):
            command = [spy, "dump", "--nonblocking", "--pid", str(child.pid)]
            dump = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
            parts.append(
                dump.stdout or f"process {child.pid}: {' '.join(child.cmdline())[:150]}: no Python to be seen\n"
            )
    return "\n".join(parts)
