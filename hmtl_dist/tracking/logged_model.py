"""A trained model's folder as an MLflow model: code and safetensors, never a pickle."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from hmtl_dist.errors import UserError
from hmtl_dist.temporary import temporary_folder
from hmtl_dist.tracking.client import open_client
from hmtl_dist.tracking.config import TrackingConfig
from hmtl_dist.tracking.redact import first_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

    from hmtl_dist.inference.info import ModelInfo, Origin

EVAL = "eval/"
DIGEST_LENGTH = 36
"""Most characters that MLflow takes for a data set's digest; the whole one stands in its profile."""
_NOT_IN_NAMES = re.compile(r"[/:.%\"']+")
"""What MLflow does not take in a model's name."""
CODE = "hmtl_dist.zip"
"""Our package's modules, in the model's folder `code`; `mlflow_model.py` imports them from there."""
PACKAGES = (
    *("mlflow", "numpy", "opencv-python-headless", "pandas", "pillow", "pydantic"),
    *("safetensors", "simplejpeg", "timm", "torch", "torchvision"),
)
"""What an MLflow model of ours needs where it is served, besides our own code, which travels with it."""


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


def log_model(client: "MlflowClient", config: TrackingConfig, run_id: str, folder: Path) -> str:
    """Make an MLflow model of a folder written by `inference.folder.write_model` and return its id.

    The model is code and safetensors (never a pickle), has a signature and an input example, and brings our own code
    along. It is called like its run, says what it is in its parameters, and is linked with the step, the figures and
    the data of its evaluation. With `tracking.register_model` it becomes a new registered version, to which the alias
    moves. Done twice with the same weights, the first model stays; what a killed delivery has left is removed.
    """
    from mlflow.entities import LoggedModelOutput

    from hmtl_dist.inference.folder import model_digest
    from hmtl_dist.inference.info import read_info

    run = client.get_run(run_id)
    digest = model_digest(folder)
    model_id = _logged_model(client, run, digest)
    if model_id is None:
        info = read_info(folder)
        origin = info.origin
        name = _NOT_IN_NAMES.sub("-", run.info.run_name or "model")
        tags = {"digest": digest} | ({"weights": origin.weights} if origin else {})
        experiment_id = run.info.experiment_id
        logged = client.create_logged_model(experiment_id, name, run_id, tags=tags, params=_params(info))
        model_id = logged.model_id
        with temporary_folder("model") as work:
            _save_pyfunc(work / "model", folder, run_id=run_id, model_id=model_id, uri=logged.artifact_location)
            client.log_model_artifacts(model_id, str(work / "model"))
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=origin.global_step if origin else 0)])
        if origin:
            client.log_batch(run_id, metrics=_metrics(client, run_id, model_id, origin))
        client.finalize_logged_model(model_id, "READY")
    if config.register_model:
        _register(client, config.register_model, config.register_alias, run_id, model_id)
    return model_id


def _logged_model(client: "MlflowClient", run: "Run", digest: str) -> str | None:
    """Find the run's model of these weights, and remove those that were never finished."""
    from mlflow.entities import LoggedModelStatus

    found: str | None = None
    for model in client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"):
        if model.status != LoggedModelStatus.READY:
            client.delete_logged_model(model.model_id)
        elif model.tags.get("digest") == digest:
            found = model.model_id
    return found


def _params(info: "ModelInfo") -> dict[str, str]:
    """Say what a model is, in the words of the configuration, for the page that compares models."""
    said: dict[str, object] = {
        "model.backbone": info.model.backbone,
        "num_parameters": info.num_parameters,
        "data.image_size": info.image_size,
        "tasks": ", ".join(info.tasks),
    }
    if origin := info.origin:
        said |= {key: origin.recipe.get(key) for key in ("recipe", "seed")}
        said |= {"dataset": origin.dataset, "global_step": origin.global_step}
    return {key: str(value) for key, value in said.items() if value not in (None, "")}


def _metrics(client: "MlflowClient", run_id: str, model_id: str, origin: "Origin") -> "list[Metric]":
    """Return the figures of a model's evaluation as the run has them, linked with the model and its data set.

    With the time at which the run got them, so that it has each of them once.
    """
    from mlflow.entities import Metric

    digest = origin.test_set.digest[:DIGEST_LENGTH]
    metrics: list[Metric] = []
    for key in origin.metrics:
        if not key.startswith(EVAL) or "/group/" in key or "/gap/" in key:
            continue
        for point in client.get_metric_history(run_id, key):
            if point.step == origin.global_step:
                told = (key, point.value, point.timestamp, point.step)
                metrics.append(Metric(*told, model_id, origin.test_set.dataset, digest))
    return metrics


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
    code = _pack_code(target.with_name(CODE))
    mlflow.pyfunc.save_model(
        str(target),
        python_model=str(Path(__file__).with_name("mlflow_model.py")),
        artifacts={"model": str(folder)},
        code_paths=[str(code)],
        signature=ModelSignature(inputs=pictures, outputs=table),
        input_example={"picture": b64encode(example_picture(info)).decode()},
        pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in PACKAGES],
        mlflow_model=Model(artifact_path=uri, model_uuid=model_id, run_id=run_id, model_id=model_id),
    )


def _pack_code(file: Path) -> Path:
    """Write our modules into one file that Python imports from: a server takes a minute for 300 small ones."""
    package = Path(__file__).parents[1]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for source in sorted(package.rglob("*.py")):
            name = source.relative_to(package.parent).as_posix()
            archive.writestr(zipfile.ZipInfo(name), source.read_bytes(), zipfile.ZIP_DEFLATED)
    return file


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
