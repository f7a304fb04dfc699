"""What rank 0 records, delivered to MLflow from its journal, in order and once."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

import json
import logging
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hmtl_dist.errors import UserError
from hmtl_dist.temporary import temporary_folder
from hmtl_dist.tracking.client import open_client, prepare_mlflow
from hmtl_dist.tracking.config import Recording, TrackingConfig
from hmtl_dist.tracking.delivery import MAX_VALUES, Delivery, lacking, rewind, waiting
from hmtl_dist.tracking.jsonl import JOURNAL, Companion, Event, Journal, read_events
from hmtl_dist.tracking.logged_model import DIGEST_LENGTH, log_model
from hmtl_dist.tracking.redact import first_line, is_text, redact_file
from hmtl_dist.tracking.runs import finish_run, log_params
from hmtl_dist.tracking.system import Monitor, SystemSampler

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)


def open_tracker(
    recording: Recording, folder: Path, step: int | None = None, elsewhere: Sequence[Event] = ()
) -> Journal:
    """Open the journal in `folder` and let it be delivered to the run it is recorded in; returns at once.

    The rest of an earlier, interrupted process in the same folder goes first. Steps that the server has already are
    not sent again. What the journal holds of steps after `step`, from which the run goes on, is dropped.

    Args:
        recording: Where the run is recorded.
        folder: Of the journal.
        step: Global step from which the run goes on.
        elsewhere: Figures that waited for the server when the checkpoint was written, on this machine or another one;
            those that the journal lacks are written into it.
    """
    if step is not None:
        rewind(folder / JOURNAL, step)
    lost = lacking(folder / JOURNAL, elsewhere)
    journal = Journal(folder, recording.run_id)
    for event in lost:
        journal.append(event)
    readers: list[Companion] = []
    samplers: list[Companion] = []
    if recording.enabled and recording.run_id:
        readers.append(Delivery(journal.path, lambda: MlflowSink(recording, recording.run_id), recording.close_seconds))
    if recording.enabled and recording.system_metrics:
        samplers.append(SystemSampler(journal, recording.system_metrics_seconds, _system_monitors))
    journal.accompany(samplers=samplers, readers=readers)
    return journal


class Rest(NamedTuple):
    """What became of a journal's rest."""

    left: int
    """Events that still wait, since the server did not answer any more."""
    refused: int
    """Events that the server, in good health, would not take."""


def deliver_rest(
    recording: Recording, folder: Path, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Rest:
    """Deliver what an ended run left in its journal to the run it is recorded in, as long as the server answers.

    A run whose journal has no end was cut off: it is set to FAILED.

    Args:
        recording: Where it is recorded; `close_seconds` is how long a server that has gone away is waited for.
        folder: Of the first rank, with the journal.
        on_progress: Called again and again with events delivered and events that waited at the beginning.

    Raises:
        UserError: there is no journal, or nobody says which run it belongs to.
    """
    journal = folder / JOURNAL
    if not journal.exists():
        raise UserError(f"{folder}: no journal here ({JOURNAL} is missing); give the folder of a run")
    last: Event = {}
    run_ids: list[str | None] = []
    for last, _ in read_events(journal):
        if last["event"] == "start":
            run_ids.append(last["run_id"] or recording.run_id)
    if None in run_ids:
        raise UserError(f"{journal}: was written without MLflow, and nobody says which run there it belongs to")
    ends = waiting(journal)
    delivery = Delivery(journal, lambda: MlflowSink(recording, recording.run_id), recording.close_seconds)
    delivery.start()
    delivery.drain(lambda: on_progress(bisect_right(ends, delivery.delivered), len(ends)), recording.close_seconds)
    left = len(waiting(journal))
    if left == 0 and run_ids and last["event"] != "end":
        finish_run(recording, run_ids[-1], "FAILED")
    return Rest(left, delivery.refused)


@dataclass
class _Known:
    """What the server has of a run."""

    run_id: str
    experiment_id: str
    start_time: int
    last_step: dict[str, int]
    params: dict[str, str]
    pictures: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])


class MlflowSink:
    """Stores a journal's events in MLflow runs, leaving out what a run has already.

    Args:
        config: Where MLflow is.
        run_id: Run of what a process wrote that knew of none.
    """

    def __init__(self, config: TrackingConfig, run_id: str | None = None) -> None:
        self._config = config
        self._run_id = run_id
        self._client = open_client(config)
        self._known: _Known | None = None

    def answers(self) -> bool:
        """Whether the server is there and in good health."""
        try:
            self._client.search_experiments(max_results=1)
        except Exception:  # noqa: BLE001 - any failure of so plain a request means that it is not
            return False
        return True

    def deliver(self, events: list[Event]) -> None:
        """Store events in order; the run is the one of the last `start`."""
        first = events[0]
        kind = first["event"]
        if kind == "start":
            self._open(first["run_id"] or self._run_id)
            self._client.update_run(self._run.run_id, status="RUNNING")
        elif kind in {"metrics", "system"}:
            self._metrics(events)
        elif kind == "params":
            log_params(self._client, self._run.run_id, first["values"], self._run.params)
        elif kind == "tags":
            for key, value in first["values"].items():
                self._client.set_tag(self._run.run_id, key, value)
        elif kind == "dataset":
            self._dataset(first)
        elif kind == "picture":
            self._picture(first)
        elif kind == "artifact":
            for path, target in _files(Path(first["path"]), first["folder"]):
                self._artifact(path, target)
        elif kind == "model":
            log_model(self._client, self._config, self._run.run_id, Path(first["path"]))
        elif kind == "end":
            self._client.set_terminated(self._run.run_id, status=first["status"], end_time=first["time"])

    @property
    def _run(self) -> _Known:
        if self._known is None:  # the journal's start was delivered by an earlier process
            self._open(self._run_id)
        if self._known is None:
            raise UserError("the journal names no MLflow run, and none was given")
        return self._known

    def _open(self, run_id: str | None) -> None:
        if run_id is None:
            return
        run = self._client.get_run(run_id)
        self._known = _Known(
            run_id=run_id,
            experiment_id=run.info.experiment_id,
            start_time=run.info.start_time,
            last_step=last_steps(run),
            params=dict(run.data.params),
            pictures=set(pictures_of(self._client, run_id)),
        )

    def _metrics(self, events: list[Event]) -> None:
        from mlflow.entities import Metric

        run = self._run
        metrics: list[Metric] = []
        last: dict[str, int] = {}
        for event in events:
            step = _step(event, run.start_time)
            for key, value in event["values"].items():
                if step > last.get(key, run.last_step.get(key, -1)):
                    last[key] = step
                    metrics.append(Metric(key, value, event["time"], step))
        for begin in range(0, len(metrics), MAX_VALUES):
            self._client.log_batch(run.run_id, metrics=metrics[begin : begin + MAX_VALUES])
        run.last_step.update(last)

    def _dataset(self, event: Event) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source_type = "s3" if event["source"].startswith("s3://") else "local"
        dataset = Dataset(
            name=event["name"],
            digest=event["digest"][:DIGEST_LENGTH],
            source_type=source_type,
            source=json.dumps({"uri": event["source"]}),
            profile=json.dumps({**event["profile"], "digest": event["digest"]}),
        )
        tag = InputTag("mlflow.data.context", event["context"])
        self._client.log_inputs(self._run.run_id, [DatasetInput(dataset, [tag])])

    def _picture(self, event: Event) -> None:
        import numpy as np
        from PIL import Image

        run, key = self._run, (event["name"], event["step"])
        if key in run.pictures:
            return
        with Image.open(event["path"]) as picture:
            self._client.log_image(run.run_id, np.asarray(picture), key=key[0], step=key[1], timestamp=event["time"])
        run.pictures.add(key)

    def _artifact(self, path: Path, folder: str) -> None:
        target = folder or None
        if not is_text(path):
            self._client.log_artifact(self._run.run_id, str(path), target)
            return
        with temporary_folder("artifact") as clean:
            redact_file(path, clean / path.name)
            self._client.log_artifact(self._run.run_id, str(clean / path.name), target)


def _system_monitors() -> list[Monitor]:
    prepare_mlflow()
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except Exception as error:  # noqa: BLE001 - no GPU, or no library to ask it
        logger.debug("no GPU metrics: %s", first_line(error))
    return monitors


def last_steps(run: "Run") -> dict[str, int]:
    """Return the step of each figure's last value."""
    # The public view of a run's metrics drops their steps; MLflow's own monitor reads them here too, since asking for
    # every metric's whole history grows with the run.
    return {metric.key: metric.step for metric in run.data._metric_objs}  # pyright: ignore[reportPrivateUsage]


def pictures_of(client: "MlflowClient", run_id: str) -> dict[tuple[str, int], str]:
    """Return the files of the pictures a run has by (name, step), as `MlflowClient.log_image` names them."""
    found: dict[tuple[str, int], str] = {}
    for file in client.list_artifacts(run_id, "images"):
        if match := re.fullmatch(r"images/(.+?)\+step\+(\d+)\+timestamp\+.*\.webp", file.path):
            found[match[1].replace("~", "/"), int(match[2])] = file.path
    return found


def _step(event: Event, start_time: int) -> int:
    """System metrics have no optimizer step: theirs is the number of sampling intervals since the run began."""
    if event["event"] == "metrics":
        return event["step"]
    return max(0, int((event["time"] - start_time) / (1000 * event["every"])))


def _files(path: Path, folder: str) -> Iterator[tuple[Path, str]]:
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file():
                parent = file.parent.relative_to(path.parent).as_posix()
                yield file, f"{folder}/{parent}" if folder else parent
    else:
        yield path, folder
