"""Which S3 and which MLflow a command uses that was told of none: those of the local services, if they run."""

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hmtl_dist.config.io import home
from hmtl_dist.errors import UserError
from hmtl_dist.services.registry import running
from hmtl_dist.tracking.config import TrackingConfig

DATABASE = "services/mlflow/mlflow.db"
"""Of the local services, in the home folder."""

TRACKING = "MLFLOW_TRACKING_URI"
_LEADS_TO_S3 = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_AWS_FILES = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}


def use_local() -> tuple[str, ...]:
    """Lead this process, and those that it starts, to the local services where its environment leads nowhere.

    Returns:
        What it uses now: `S3`, `MLflow`, both, or nothing, where the services do not run or others are set.
    """
    try:
        local = running(home())
    except UserError:  # of a damaged record; whoever needs the services is told by them
        return ()
    if local is None:
        return ()
    variables = local.env()
    tracking = variables.pop(TRACKING)
    used: list[str] = []
    if not leads_to_s3(os.environ):
        os.environ.update(variables)
        used.append("S3")
    if not os.environ.get(TRACKING):
        os.environ[TRACKING] = tracking
        used.append("MLflow")
    return tuple(used)


def leads_to_s3(environment: Mapping[str, str]) -> bool:
    """Say whether an environment names an S3 server or whom to come to AWS as; a role of the machine is not seen."""
    files = (Path(environment.get(name) or usual).expanduser() for name, usual in _AWS_FILES.items())
    return any(environment.get(name) for name in _LEADS_TO_S3) or any(file.is_file() for file in files)


def known_mlflow() -> TrackingConfig:
    """Return the MLflow of MLFLOW_TRACKING_URI; else the local services' if they run, else the home's database."""
    if not os.environ.get("MLFLOW_TRACKING_URI") and (local := running(home())):
        return TrackingConfig(uri=local.tracking_uri)
    return TrackingConfig()


@contextmanager
def looked_up(tracking: TrackingConfig) -> Generator[None]:
    """Add to a failed look-up that the local services, which were not asked, have stopped.

    Raises:
        UserError: The block's own.
    """
    try:
        yield
    except UserError as error:
        if tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or not (home() / DATABASE).exists():
            raise
        raise UserError(
            f"{error}; the local services have stopped, start them with 'hmtl-dist services start'"
        ) from error
