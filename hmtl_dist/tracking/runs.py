"""MLflow runs as the driver sees them: begun, found again, noted on, ended."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hmtl_dist.errors import UserError
from hmtl_dist.temporary import temporary_folder
from hmtl_dist.tracking.base import RunStatus
from hmtl_dist.tracking.client import open_client, trouble
from hmtl_dist.tracking.config import FOR_TRAINING, PARENT, Recording, TrackingConfig, tracking_uri
from hmtl_dist.tracking.redact import first_line, redact, redact_file, redact_named

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARAMS_A_REQUEST = 100
PARAM_LENGTH = 6000
KEY_LENGTH = 250
"""MLflow's limits. A longer value is cut; the whole one is in the journal."""

logger = logging.getLogger(__name__)


def create_run(
    config: TrackingConfig,
    *,
    name: str,
    known: str | None = None,
    parent: str | None = None,
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> str | None:
    """Create the MLflow run of a training, or find the one that it was begun in, and return its id.

    Args:
        config: Where MLflow is.
        name: Of the run.
        known: MLflow run that it was begun in; another one is made if that was deleted.
        parent: MLflow run that a new one belongs to.
        params: Parameters of a new one.
        tags: Notes on a new one.
        say: Called with why MLflow is not told yet, where it is not required.

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
        said, remedy = trouble(uri, error)
        if config.required:
            raise UserError(f"{said}; {remedy}, or set tracking.required=false") from error
        said = f"{said}; {remedy}; until then this run is recorded in its journal only"
        logger.warning("%s", said)
        say(said)
        return known  # of a run that goes on: what the journal holds is delivered to it later
    try:
        log_params(client, run_id, {key: redact_named(key, value) for key, value in (params or {}).items()})
    except Exception as error:  # noqa: BLE001 - the run exists, and its journal holds the parameters too
        logger.warning("MLflow at %s: cannot log parameters yet (%s)", redact(uri), first_line(error))
    return run_id


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


def record_metrics(config: TrackingConfig, run_id: str | None, metrics: Mapping[str, float], step: int) -> None:
    """Record figures of a run from the driver, such as its cost; never raises."""
    if run_id is None or not config.enabled:
        return
    try:
        client = open_client(config)
        for key, value in metrics.items():
            client.log_metric(run_id, key, value, step=step)
    except Exception as error:  # noqa: BLE001 - a note is not worth a run
        logger.warning("MLflow: cannot record %s of run %s (%s)", ", ".join(metrics), run_id, first_line(error))


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


def record_artifact(recording: Recording, file: Path) -> None:
    """Keep a text file in a run, without secrets; never raises."""
    if recording.run_id is None or not recording.enabled or not file.exists():
        return
    try:
        with temporary_folder("artifact") as clean:
            redact_file(file, clean / file.name)
            open_client(recording).log_artifact(recording.run_id, str(clean / file.name))
    except Exception as error:  # noqa: BLE001 - a note is not worth a run
        logger.warning("MLflow: cannot keep %s of run %s (%s)", file.name, recording.run_id, first_line(error))


def record_file(
    config: TrackingConfig, file: Path, *, name: str, params: Mapping[str, str], tags: Mapping[str, str]
) -> str:
    """Keep a file in a new run of its own, and return the run's id.

    Raises:
        UserError: MLflow is switched off, does not answer, or refuses.
    """
    run_id = create_run(config, name=name, params=params, tags=tags)
    if run_id is None:
        raise UserError("MLflow is switched off (tracking.enabled=false): nothing is kept there")
    try:
        client = open_client(config)
        client.log_artifact(run_id, str(file))
        client.set_terminated(run_id)
    except Exception as error:
        said, remedy = trouble(tracking_uri(config), error)
        raise UserError(f"{said}; {remedy}") from error
    return run_id


def delete_run(config: TrackingConfig, run_id: str) -> None:
    """Delete a run; MLflow keeps it among the deleted ones until its own clean-up. One that is gone is none.

    Raises:
        UserError: MLflow does not answer, or refuses.
    """
    from mlflow.exceptions import MlflowException

    client = open_client(config)
    try:
        if _is_there(client, run_id):
            client.delete_run(run_id)
    except (MlflowException, OSError) as error:
        raise UserError(f"MLflow: cannot delete run {run_id} ({first_line(error)})") from error


def run_url(config: TrackingConfig, run_id: str) -> str:
    """Say how to look at a run: its page on a server, or the command that shows a local database."""
    uri = redact(tracking_uri(config))
    if not uri.startswith("http"):
        return f"mlflow ui --backend-store-uri {uri}"
    try:
        experiment_id = open_client(config).get_run(run_id).info.experiment_id
    except Exception:  # noqa: BLE001 - without the experiment the server's own page is the best answer
        return uri
    return f"{uri.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?{FOR_TRAINING}"


def log_params(
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
