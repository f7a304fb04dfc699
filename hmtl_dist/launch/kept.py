"""The runs that this machine knows by their names: how far each has come, and what it keeps."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from hmtl_dist.config.explain import choices
from hmtl_dist.config.io import home
from hmtl_dist.errors import UserError
from hmtl_dist.launch.discard import discard
from hmtl_dist.launch.folders import RECORD, rank_folder, run_folder
from hmtl_dist.launch.lock import is_held, only_one
from hmtl_dist.launch.record import config_of, read_record
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tracking.config import resolve
from hmtl_dist.tracking.jsonl import JOURNAL, Event, read_events
from hmtl_dist.tracking.runs import delete_run, run_url
from hmtl_dist.train.best import headline

TAIL_BYTES = 1 << 20
"""How much of the end of a journal is read: thousands of windows."""
SILENT_SECONDS = 120.0
"""A run whose lock is elsewhere and that has recorded nothing for so long is taken to be dead."""
_ENDS = {"FINISHED": "finished", "KILLED": "stopped", "FAILED": "failed"}


@dataclass(frozen=True)
class KeptRun:
    """A run that was started on this machine."""

    name: str
    config: RunConfig
    folder: str
    """Folder or URL of its checkpoints."""
    status: str
    """`begun` (no step recorded yet), `training`, `finished`, `stopped` in order, `failed`, or `killed`."""
    step: int
    """Optimizer steps recorded."""
    epoch: float | None
    """Epochs taken, if a window was recorded."""
    metrics: Mapping[str, float] = field(repr=False)
    """The last evaluation's."""
    num_bytes: int
    """On this machine's disks."""
    seen: float
    """When it last recorded something, in seconds since 1970."""
    run_id: str | None
    """Its MLflow run."""
    tracking_uri: str | None
    """Address of MLflow when it was started; empty if it has a password in it."""

    @property
    def primary(self) -> tuple[str, float] | None:
        """The metric that the run is judged by: the one it monitors, else its first accuracy or mean absolute error."""
        wanted = self.config.train.monitor
        if wanted is not None and wanted in self.metrics:
            return wanted, self.metrics[wanted]
        return next(iter(headline(self.metrics).items()), None)

    @property
    def url(self) -> str | None:
        """Where its MLflow run can be looked at; asks the server."""
        if self.run_id is None:
            return None
        return run_url(resolve(self.config.tracking, self.run_id, known=self.tracking_uri), self.run_id)


def find_runs(patterns: Sequence[str] = (), warn: Callable[[str], None] | None = None) -> list[KeptRun]:
    """Return the runs whose names match any of some patterns, newest last; all of them without a pattern.

    Args:
        patterns: Names, in which `*`, `?` and `[...]` stand for others as in a shell.
        warn: Called with why a run cannot be read, which is then left out; without it that is raised.

    Raises:
        UserError: One matches none, or a run cannot be read.
    """
    names = sorted(path.parent.name for path in (home() / "runs").glob(f"*/{RECORD}"))
    wanted: set[str] = set()
    for pattern in patterns or ("*",):
        matching = {name for name in names if fnmatchcase(name, pattern)}
        if patterns and not matching:
            raise UserError(f"{pattern}: no run of that name here; {choices(pattern, names)}")
        wanted |= matching
    found: list[KeptRun] = []
    for name in sorted(wanted):
        try:
            found.append(read_run(name))
        except UserError as error:
            if warn is None:
                raise
            warn(str(error))
    return sorted(found, key=lambda run: run.seen)


def read_run(name: str) -> KeptRun:
    """Read what a run has left on this machine.

    Raises:
        UserError: There is no such run, or it is of another version.
    """
    here = home() / "runs" / name
    record = read_record(str(here))
    config = config_of(record, str(here))
    if config is None:
        raise UserError(f"{name}: no run of that name here")
    folder = run_folder(config)
    journal = rank_folder(config, 0) / JOURNAL
    events = _tail(journal)
    metrics: dict[str, float] = {}
    step, epoch, ended = 0, None, None
    for event in events:
        if event["event"] == "metrics":
            values: dict[str, float] = event["values"]
            step, epoch = max(step, int(event["step"])), values.get("train/epoch", epoch)
            metrics = values if any(key.startswith("eval/") for key in values) else metrics
        elif event["event"] in ("start", "end"):
            ended = _ENDS.get(str(event.get("status")))
    places = {here} if "://" in folder else {here, Path(folder)}
    return KeptRun(
        name=name,
        config=config,
        folder=folder,
        status=ended or _status(folder, events),
        step=step,
        epoch=epoch,
        metrics={key: value for key, value in metrics.items() if key.startswith("eval/")},
        num_bytes=sum(_size(place) for place in places),
        seen=events[-1]["time"] / 1000 if events else (here / RECORD).stat().st_mtime,
        run_id=record.run_id if record else None,
        tracking_uri=record.tracking_uri if record else None,
    )


def remove_run(run: KeptRun, *, tracked: bool = False) -> None:
    """Remove a run's folders, with its checkpoints wherever they are.

    Args:
        run: Which one.
        tracked: Delete its MLflow run too.

    Raises:
        UserError: It is being trained, or the storage or MLflow refuses.
    """
    with only_one(run.folder, run.name):
        if tracked and run.run_id is not None:
            delete_run(resolve(run.config.tracking, run.run_id, known=run.tracking_uri), run.run_id)
        discard(run.config, log=True)


def _status(folder: str, events: Sequence[Event]) -> str:
    if "://" in folder:
        alive = bool(events) and time.time() - events[-1]["time"] / 1000 < SILENT_SECONDS
    else:
        alive = is_held(Path(folder))
    if alive:
        return "training"
    return "killed" if any(event["event"] == "metrics" for event in events) else "begun"


def _tail(journal: Path) -> list[Event]:
    try:
        size = journal.stat().st_size
    except FileNotFoundError:
        return []
    # a line that the block begins within is none, and is left out
    return [event for event, _ in read_events(journal, max(0, size - TAIL_BYTES))]


def _size(folder: Path) -> int:
    found = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return sum(path.lstat().st_size for path in found)
