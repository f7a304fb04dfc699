"""The journal: every event of a run as one line of JSON beside the run, whether or not a server listens.

One line is one event with its `time` in milliseconds since the epoch:

    {"event": "start", "run_id": ...}            a process opened the journal; what follows belongs to that MLflow run
    {"event": "metrics", "step": ..., "values": {...}}
    {"event": "system", "every": ..., "values": {...}}       system metrics, sampled each `every` seconds
    {"event": "damaged", "step": ..., "sample_id": ..., "key": ..., "shard": ..., "reason": ...}
    {"event": "params" | "tags", "values": {...}}
    {"event": "dataset", "name": ..., "digest": ..., "source": ..., "context": ..., "profile": {...}}
    {"event": "picture", "name": ..., "step": ..., "path": ...}     a PNG file
    {"event": "artifact", "path": ..., "folder": ...}
    {"event": "model", "path": ...}
    {"event": "end", "status": ...}

After an interruption the same step may stand in it twice; the later line holds, MLflow gets the first only.
"""

import json
import logging
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hmtl_dist.config.dialect import parse_json
from hmtl_dist.tracking.base import RunStatus
from hmtl_dist.tracking.redact import redact, redact_named

JOURNAL = "journal.jsonl"

Event = dict[str, Any]

logger = logging.getLogger(__name__)


class Companion(Protocol):
    """A thread that serves a journal: delivery to MLflow, sampling of system metrics."""

    def start(self) -> None:
        """Begin; called once, when the run has begun to step."""
        ...

    def close(self) -> None:
        """End within a bounded time."""
        ...


class Journal:
    """Appends a run's events to `journal.jsonl`; implements `tracking.base.Tracker`.

    A call costs one small write and never waits for a network or a disk. A full disk loses events, with one warning,
    and does not stop the run.
    """

    def __init__(self, folder: Path, run_id: str | None = None) -> None:
        self.path = folder / JOURNAL
        folder.mkdir(parents=True, exist_ok=True)
        self._samplers: list[Companion] = []
        self._readers: list[Companion] = []
        self._started = False
        self._failed = False
        # Unbuffered in append mode: one event is one write, whole even when two threads write or the process dies.
        self._file = self.path.open("ab", buffering=0)
        _end_torn_line(self.path, self._file.write)
        self.append({"event": "start", "run_id": run_id})

    def accompany(self, *, samplers: list[Companion], readers: list[Companion]) -> None:
        """Add threads that start with the first metrics: by then every heavy import of the run is over.

        Samplers write to the journal and end before it does, readers deliver it and end after it.
        """
        self._samplers += samplers
        self._readers += readers

    def append(self, event: Event) -> None:
        """Write one event, adding its time."""
        line = json.dumps({"time": int(time.time() * 1000), **event}, separators=(",", ":")).encode() + b"\n"
        try:
            self._file.write(line)
        except (OSError, ValueError) as error:
            if not self._failed:
                logger.warning("cannot write %s (%s): some figures of this run are lost", self.path, error)
            self._failed = True

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record named figures at an optimizer step."""
        metrics = {_metric_name(name): float(value) for name, value in values.items()}
        self.append({"event": "metrics", "step": int(step), "values": metrics})
        self._start()

    def system(self, values: Mapping[str, float], every: float) -> None:
        """Record system metrics that are sampled each `every` seconds."""
        self.append({"event": "system", "every": every, "values": dict(values)})

    def damaged(self, step: int, *, sample_id: int, key: str, shard: str, reason: str) -> None:
        """Name a sample that could not be decoded, met in the window that ends at an optimizer step."""
        named = {"sample_id": sample_id, "key": key, "shard": shard, "reason": redact(reason)}
        self.append({"event": "damaged", "step": int(step), **named})

    def params(self, values: Mapping[str, str]) -> None:
        """Record facts that hold for the whole run: the flat configuration, versions, the data digest."""
        self.append({"event": "params", "values": {name: redact_named(name, str(v)) for name, v in values.items()}})

    def tags(self, values: Mapping[str, str]) -> None:
        """Record notes about the run that may change, such as the commit of the code."""
        self.append({"event": "tags", "values": {name: redact_named(name, str(v)) for name, v in values.items()}})

    def dataset(self, name: str, digest: str, source: str, context: str, profile: Mapping[str, int | str]) -> None:
        """Record a data set the run reads: its digest, its URL, what it is used for and its size."""
        self.append(
            {
                "event": "dataset",
                "name": name,
                "digest": digest,
                "source": redact(source),
                "context": context,
                "profile": dict(profile),
            }
        )

    def picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """Record a picture, uint8 `[H, W, 3]`."""
        safe_name = re.sub(r"[^\w./ -]", "_", name, flags=re.ASCII)
        path = self.path.parent / "pictures" / f"{safe_name.replace('/', '_')}_{step:08d}.png"
        try:
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(picture).save(path, compress_level=1)
        except OSError as error:
            logger.warning("cannot write %s (%s): the picture is lost", path, error)
            return
        self.append({"event": "picture", "name": safe_name, "step": int(step), "path": str(path.absolute())})

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file or folder under `folder` of the run's artifacts; it must stay in place until delivered."""
        self.append({"event": "artifact", "path": str(path.absolute()), "folder": folder})

    def model(self, folder: Path) -> None:
        """Record the trained model that was written to `folder` by `inference.folder.write_model`."""
        self.append({"event": "model", "path": str(folder.absolute())})

    def close(self, status: RunStatus) -> None:
        """End the run with its true status, waiting a bounded time for delivery; a second call does nothing."""
        if self._file.closed:
            return
        self._start()
        for sampler in self._samplers:
            sampler.close()
        self.append({"event": "end", "status": status})
        self._file.close()
        for reader in self._readers:
            reader.close()

    def _start(self) -> None:
        if not self._started:
            self._started = True
            for companion in (*self._readers, *self._samplers):
                companion.start()


def read_events(path: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Yield each whole event from a byte offset on, with the offset behind it.

    A line that is not finished yet ends the reading; a damaged one (the machine died while writing it) is left out.
    """
    with path.open("rb") as lines:
        lines.seek(offset)
        for line in lines:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                event: object = parse_json(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
                yield event, offset


def _metric_name(name: str) -> str:
    return re.sub(r"[^\w.\-:/ ]", "_", name)


def _end_torn_line(path: Path, write: Any) -> None:
    with path.open("rb") as file:
        if file.seek(0, 2) > 0:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                write(b"\n")
