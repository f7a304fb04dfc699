"""MLflow: the driver creates and ends runs, rank 0 delivers its journal, and a trained model becomes an MLflow model.

`mlflow` (2 s and more) and `torch` are imported inside the functions and threads: no start has to wait for them.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

import json
import logging
import os
import re
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hmtl_dist.config.addresses import start_it
from hmtl_dist.errors import UserError
from hmtl_dist.tracking.base import RunStatus
from hmtl_dist.tracking.config import PARENT, Recording, TrackingConfig, tracking_uri
from hmtl_dist.tracking.delivery import MAX_VALUES, Delivery, lacking, rewind, waiting
from hmtl_dist.tracking.jsonl import JOURNAL, Companion, Event, Journal, read_events
from hmtl_dist.tracking.redact import first_line, is_text, redact, redact_file, redact_named
from hmtl_dist.tracking.system import Monitor, SystemSampler

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARAMS_A_REQUEST = 100
PARAM_LENGTH = 6000
KEY_LENGTH = 250
DIGEST_LENGTH = 36
"""MLflow's limits. A longer value is cut; the whole one is in the journal."""

PACKAGES = (
    *("mlflow", "numpy", "opencv-python-headless", "pandas", "pillow", "pydantic"),
    *("safetensors", "simplejpeg", "timm", "torch", "torchvision"),
)
"""What an MLflow model of ours needs where it is served, besides our own code, which travels with it."""

logger = logging.getLogger(__name__)


# --- the driver's side ---------------------------------------------------------------------------------------------


def create_run(
    config: TrackingConfig,
    *,
    name: str,
    known: str | None = None,
    parent: str | None = None,
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> str | None:
    """Create the MLflow run of a training, or find the one that it was begun in, and return its id.

    Args:
        config: Where MLflow is.
        name: Of the run.
        known: MLflow run that it was begun in; another one is made if that was deleted.
        parent: MLflow run that a new one belongs to.
        params: Parameters of a new one.
        tags: Notes on a new one.

    Returns:
        None when tracking is off, or when MLflow does not answer, is not required and knows no such run yet: the
        training then writes its journal only, which the next start of the same run, or `deliver_rest`, delivers.

    Raises:
        UserError: MLflow does not answer and `tracking.required` is set; or its address is not usable.
    """
    if not config.enabled:
        return None
    uri = tracking_uri(config)
    try:
        client = open_client(config)
        if known and _is_there(client, known):
            return known
        experiment_id = _experiment(client, config.experiment, uri)
        notes = {key: redact_named(key, value) for key, value in (tags or {}).items()}
        notes |= {PARENT: parent} if parent else {}
        run_id: str = client.create_run(experiment_id, run_name=name, tags=notes).info.run_id
    except Exception as error:
        said, remedy = _trouble(uri, error)
        if config.required:
            raise UserError(f"{said}; {remedy}, or set tracking.required=false") from error
        logger.warning("%s; until it does, this run is recorded in its journal only", said)
        return known  # of a run that goes on: what the journal holds is delivered to it later
    try:
        _log_params(client, run_id, {key: redact_named(key, value) for key, value in (params or {}).items()})
    except Exception as error:  # noqa: BLE001 - the run exists, and its journal holds the parameters too
        logger.warning("MLflow at %s: cannot log parameters yet (%s)", redact(uri), first_line(error))
    return run_id


def _trouble(uri: str, error: Exception) -> tuple[str, str]:
    """Say what a server's failure is, and what to do: who it does not let in can mend that, unlike an absence."""
    if isinstance(error, UserError):
        return str(error), "correct it"
    where, text = f"MLflow at {redact(uri)}", str(error)
    if "Invalid Host" in text:
        return (
            f"{where} does not answer to this host name (HTTP status 403)",
            "give the server its name in --allowed-hosts, or correct tracking.uri",
        )
    if "401" in text or "not authenticated" in text:
        return (
            f"{where} asks for a name and a password, and did not get the right ones (HTTP status 401)",
            "put them into ~/.mlflow/credentials, or into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )
    remedy = f"{start_it(uri)}, correct tracking.uri"
    if found := _ERRNO.search(text):  # what lies at the bottom of a pile of connections that failed
        return f"{where} does not answer ({found[1].strip().lower()})", remedy
    return f"{where} refuses or does not answer ({first_line(error)})", remedy


_ERRNO = re.compile(r"\[Errno -?\d+\] ([\w ]+)")


def finish_run(config: TrackingConfig, run_id: str | None, status: RunStatus) -> None:
    """Set a run's final status from the driver, for a run whose rank 0 could not do so; never raises.

    A run that has ended keeps its status: a start that was refused before its first step is none of its history.
    """
    if run_id is None or not config.enabled:
        return
    try:
        client = open_client(config)
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, status=status)
    except Exception as error:  # noqa: BLE001 - the training is over, its record must not spoil its end
        logger.warning("MLflow: cannot set run %s to %s (%s)", run_id, status, first_line(error))


def record_figures(config: TrackingConfig, run_id: str | None, figures: Mapping[str, float], step: int) -> None:
    """Record figures of a run from the driver, such as its cost; never raises."""
    if run_id is None or not config.enabled:
        return
    try:
        client = open_client(config)
        for key, value in figures.items():
            client.log_metric(run_id, key, value, step=step)
    except Exception as error:  # noqa: BLE001 - a note is not worth a run
        logger.warning("MLflow: cannot record %s of run %s (%s)", ", ".join(figures), run_id, first_line(error))


def tag_run(config: TrackingConfig, run_id: str | None, tags: Mapping[str, str]) -> None:
    """Set notes on a run; never raises."""
    if run_id is None or not config.enabled:
        return
    try:
        client = open_client(config)
        for key, value in tags.items():
            client.set_tag(run_id, key, redact_named(key, value))
    except Exception as error:  # noqa: BLE001 - a note is not worth a run
        logger.warning("MLflow: cannot set tags of run %s (%s)", run_id, first_line(error))


def record_model(config: TrackingConfig, run_id: str, folder: Path) -> str:
    """Record a model's folder in a run that has ended, and return the id of the MLflow model.

    With `tracking.register_model` it becomes a registered version, and the alias moves to it.

    Raises:
        UserError: MLflow does not answer, or refuses.
    """
    try:
        return log_model(open_client(config), config, run_id, folder)
    except Exception as error:
        raise UserError(f"the model of run {run_id} cannot be recorded in MLflow: {first_line(error)}") from error


def run_url(config: TrackingConfig, run_id: str) -> str:
    """Say how to look at a run: its page on a server, or the command that shows a local database."""
    uri = redact(tracking_uri(config))
    if not uri.startswith("http"):
        return f"mlflow ui --backend-store-uri {uri}"
    try:
        experiment_id = open_client(config).get_run(run_id).info.experiment_id
    except Exception:  # noqa: BLE001 - without the experiment the server's own page is the best answer
        return uri
    return f"{uri.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"


# --- rank 0's side -------------------------------------------------------------------------------------------------


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
            self._figures(events)
        elif kind == "params":
            _log_params(self._client, self._run.run_id, first["values"], self._run.params)
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

    def _figures(self, events: list[Event]) -> None:
        from mlflow.entities import Metric

        run = self._run
        figures: list[Metric] = []
        last: dict[str, int] = {}
        for event in events:
            step = _step(event, run.start_time)
            for key, value in event["values"].items():
                if step > last.get(key, run.last_step.get(key, -1)):
                    last[key] = step
                    figures.append(Metric(key, value, event["time"], step))
        for begin in range(0, len(figures), MAX_VALUES):
            self._client.log_batch(run.run_id, metrics=figures[begin : begin + MAX_VALUES])
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
        with tempfile.TemporaryDirectory() as clean:
            redact_file(path, Path(clean) / path.name)
            self._client.log_artifact(self._run.run_id, str(Path(clean) / path.name), target)


# --- the model -----------------------------------------------------------------------------------------------------


def log_model(client: "MlflowClient", config: TrackingConfig, run_id: str, folder: Path) -> str:
    """Make an MLflow model of a folder written by `inference.folder.write_model` and return its id.

    The model is code and safetensors (never a pickle), has a signature and an input example, and brings our own code
    along. With `tracking.register_model` it becomes a new registered version, to which the alias moves. Done twice
    with the same weights, the first model stays.
    """
    from mlflow.entities import LoggedModelOutput

    from hmtl_dist.inference.folder import model_digest

    run = client.get_run(run_id)
    digest = model_digest(folder)
    model_id = _logged_model(client, run, digest)
    if model_id is None:
        logged = client.create_logged_model(
            run.info.experiment_id, name="model", source_run_id=run_id, tags={"digest": digest}
        )
        model_id = logged.model_id
        with tempfile.TemporaryDirectory() as work:
            _save_pyfunc(Path(work) / "model", folder, run_id=run_id, model_id=model_id, uri=logged.artifact_location)
            client.log_model_artifacts(model_id, str(Path(work) / "model"))
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
        client.finalize_logged_model(model_id, "READY")
    if config.register_model:
        _register(client, config.register_model, config.register_alias, run_id, model_id)
    return model_id


def _logged_model(client: "MlflowClient", run: "Run", digest: str) -> str | None:
    from mlflow.entities import LoggedModelStatus

    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    for model in models:
        if model.tags.get("digest") == digest and model.status == LoggedModelStatus.READY:
            return model.model_id
    return None


def _save_pyfunc(target: Path, folder: Path, *, run_id: str, model_id: str, uri: str) -> None:
    from base64 import b64encode
    from importlib.metadata import version

    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType

    from hmtl_dist.inference.folder import example_picture
    from hmtl_dist.inference.info import output_columns, read_info

    info = read_info(folder)
    # Any type: a column of bytes would refuse pixels, and one of tensors would refuse files.
    pictures = Schema([ColSpec(AnyType(), name="picture")])
    table = Schema([ColSpec(DataType.double, name) for name in output_columns(info)])
    package = Path(__file__).parents[1]
    mlflow.pyfunc.save_model(
        str(target),
        python_model=str(Path(__file__).with_name("mlflow_model.py")),
        artifacts={"model": str(folder)},
        code_paths=[str(package)],
        signature=ModelSignature(inputs=pictures, outputs=table),
        input_example={"picture": b64encode(example_picture(info)).decode()},
        pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in PACKAGES],
        mlflow_model=Model(artifact_path=uri, model_uuid=model_id, run_id=run_id, model_id=model_id),
    )


def _register(client: "MlflowClient", name: str, alias: str, run_id: str, model_id: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name)
    source = f"models:/{model_id}"
    if not client.tracking_uri.startswith("http"):
        # A database has no server to look the id up, and MLflow looks in the address of the environment instead.
        source = client.get_logged_model(model_id).artifact_location
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    known = next((v for v in versions if v.source == source), None)
    version = known or client.create_model_version(name, source, run_id=run_id, model_id=model_id)
    client.set_registered_model_alias(name, alias, version.version)


@contextmanager
def answering(config: TrackingConfig) -> Generator[None]:
    """Say in one line that MLflow does not answer, or refuses.

    Raises:
        UserError: Whatever the block raised, in one line.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever lies between here and the server
        said, remedy = _trouble(tracking_uri(config), error)
        raise UserError(
            f"{said}; {remedy.replace(', correct tracking.uri', ', or correct MLFLOW_TRACKING_URI')}"
        ) from error


# --- helpers -------------------------------------------------------------------------------------------------------


def _system_monitors() -> list[Monitor]:
    _prepare_mlflow()
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


def _prepare_mlflow() -> None:
    """Set what MLflow reads from the environment, unless the user did: no telemetry, no printing, no `uv.lock`."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # retries are the delivery's business


def open_client(config: TrackingConfig) -> "MlflowClient":
    """Return a client of tracking server and registry, with short waits; nothing is contacted yet."""
    _prepare_mlflow()
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(max(1, round(config.timeout_seconds))))
    uri = tracking_uri(config)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(uri, uri)


def _is_there(client: "MlflowClient", run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _experiment(client: "MlflowClient", name: str, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    known = client.get_experiment_by_name(name)
    if known is None:
        # A database alone would put artifacts into a folder of the working directory.
        location = None
        if uri.startswith("sqlite:///"):
            location = (Path(uri.removeprefix("sqlite:///")).parent / "mlflow_artifacts" / name).absolute().as_uri()
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:  # another run was quicker, or its deletion stands in the way
            known = client.get_experiment_by_name(name)
            if known is None:
                raise
    if known.lifecycle_stage != "active":
        client.restore_experiment(known.experiment_id)
    return known.experiment_id


def _log_params(
    client: "MlflowClient", run_id: str, values: Mapping[str, str], known: dict[str, str] | None = None
) -> None:
    """Log parameters in batches. MLflow never changes one: what a resumed run has changed becomes a tag."""
    from mlflow.entities import Param, RunTag

    known = known if known is not None else {}
    short = {name[:KEY_LENGTH]: _shorten(value) for name, value in values.items()}
    new = [Param(name, value) for name, value in short.items() if name not in known]
    changed = [RunTag(f"changed.{n}"[:KEY_LENGTH], v) for n, v in short.items() if n in known and known[n] != v]
    for begin in range(0, max(len(new), len(changed)), PARAMS_A_REQUEST):
        part = slice(begin, begin + PARAMS_A_REQUEST)
        client.log_batch(run_id, params=new[part], tags=changed[part])
    known.update({name: value for name, value in short.items() if name not in known})


def _shorten(value: str) -> str:
    return value if len(value) <= PARAM_LENGTH else value[: PARAM_LENGTH - 1] + "…"


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
