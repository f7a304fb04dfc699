# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
"""MLflow's model registry: find a version, download its model, move an alias."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hmtl_dist.errors import UserError
from hmtl_dist.tracking.client import answering, open_client
from hmtl_dist.tracking.config import TrackingConfig, tracking_uri
from hmtl_dist.tracking.redact import first_line, redact

SCHEME = "models:/"
_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")

_LOGGED = re.compile(r"models:/(m-[0-9a-f]+)")


class NoSuchVersionError(UserError):
    """MLflow answers, and knows no such registered version."""


@dataclass(frozen=True)
class Version:
    """A registered version of a model."""

    name: str
    version: str
    source: str
    """Where its files are, mostly `models:/` and the id of the logged model behind it."""

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


def find_version(config: TrackingConfig, uri: str) -> Version:
    """Find the version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` stands for.

    Raises:
        NoSuchVersionError: There is none.
        UserError: The address is none, or MLflow does not answer.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise UserError(f"{uri}: is no registered model; give models:/NAME@ALIAS or models:/NAME/VERSION")
    from mlflow.exceptions import MlflowException

    with answering(config):
        client = open_client(config)
        try:
            if match["alias"]:
                found = client.get_model_version_by_alias(match["name"], match["alias"])
            else:
                found = client.get_model_version(match["name"], match["version"])
        except MlflowException as error:
            if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                raise
            raise NoSuchVersionError(
                f"{uri}: MLflow at {redact(tracking_uri(config))} knows no such version"
            ) from error
    return Version(found.name, str(found.version), found.source or "")


def download_version(config: TrackingConfig, version: Version, folder: Path) -> Path:
    """Download a version and return the folder of our model inside it.

    Raises:
        UserError: MLflow does not answer, or the version holds no model of this program.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.models import Model

    folder.mkdir(parents=True, exist_ok=True)
    with answering(config):
        client = open_client(config)
        # By its own place: MLflow looks ids up in the address of the environment, whatever it is handed.
        logged = _LOGGED.fullmatch(version.source)
        place = client.get_logged_model(logged[1]).artifact_location if logged else version.source
        uri = tracking_uri(config)
        got = Path(download_artifacts(artifact_uri=place, dst_path=str(folder), tracking_uri=uri))
    try:
        flavor = Model.load(str(got)).flavors["python_function"]
        model = (got / flavor["artifacts"]["model"]["path"]).resolve()
    except Exception as error:  # whatever another program has put there
        raise UserError(f"{version}: is no model of this program ({first_line(error)})") from error
    if not model.is_relative_to(got.resolve()):
        raise UserError(f"{version}: names a folder outside itself; it is not opened")
    return model


def move_alias(config: TrackingConfig, version: Version, alias: str, tags: Mapping[str, str]) -> None:
    """Let an alias point to a version, with notes on it.

    Raises:
        UserError: MLflow does not answer.
    """
    with answering(config):
        client = open_client(config)
        for key, value in tags.items():
            client.set_model_version_tag(version.name, version.version, key, value)
        client.set_registered_model_alias(version.name, alias, version.version)
