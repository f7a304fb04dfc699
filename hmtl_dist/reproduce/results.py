"""What runs of a suite have come to, one JSON file a run: how an interrupted suite knows what is done."""

import fcntl
import os
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from hmtl_dist.config.base import Section
from hmtl_dist.errors import UserError

WAIT_SECONDS = 60.0
"""How long to wait for the runs of an invocation that was killed: they are asked to stop, and save first."""


class Result(Section):
    """How one run ended."""

    run: str
    """Name of the run."""
    row: str
    seed: int
    status: Literal["FINISHED", "STOPPED", "FAILED"]
    """`STOPPED`: in order, goes on with the next invocation."""
    settings: dict[str, str]
    """What decides its outcome, as dotted path -> text."""
    metrics: dict[str, float] = Field(default_factory=dict[str, float])
    """Its last figures, by name."""
    images: int = 0
    """Pictures it was trained on, repetitions counted."""
    seconds: float = 0.0
    """Wall time of all its parts."""
    samples_per_second: float = 0.0
    """Pictures a second of training time, in its last part."""
    cost: float = 0.0
    """What it has cost, in the currency of `launch.node_hour_price`; 0 without one."""
    folder: str = ""
    """Its folder or URL."""
    run_id: str | None = None
    """Its MLflow run."""
    error: str = ""
    """Why it failed, in one line."""


class Store:
    """The results of one suite, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, run: str) -> Result | None:
        """Return how a run ended last time; None if it never ran or its file is damaged."""
        try:
            return Result.model_validate_json(self._path(run).read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, result: Result) -> None:
        """Keep a result, whole or not at all."""
        path = self._path(result.run)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(result.model_dump_json(indent=2), encoding="utf-8")
        new.replace(path)

    def log(self, run: str) -> Path:
        """Return the file for what a run's process says."""
        path = self.folder / "logs" / f"{run}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def locked(self) -> Generator[int]:
        """Keep other invocations out; yields a descriptor that holds the lock as long as any process has it.

        Raises:
            UserError: Another invocation is at work.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock(descriptor)
            yield descriptor
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        end = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise UserError(
                        f"{self.folder}: another invocation of this suite is at work; wait for it, or give this one "
                        "another --name"
                    ) from None
                time.sleep(0.2)
            else:
                return

    def _path(self, run: str) -> Path:
        return self.folder / "results" / f"{run}.json"


def changed(then: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """Say the first setting in which two runs differ; None if there is none."""
    for key in sorted(then.keys() | now.keys()):
        if then.get(key) != now.get(key):
            return f"{key}={then.get(key, 'unset')}, now it is {now.get(key, 'unset')}"
    return None
