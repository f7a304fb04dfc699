"""The door to MLflow: a client with short waits, and what its failures are in one line.

`mlflow` (2 s and more) is imported inside the functions and threads: no start has to wait for it.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

import logging
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hmtl_dist.config.addresses import start_it
from hmtl_dist.errors import UserError
from hmtl_dist.tracking.config import TrackingConfig, tracking_uri
from hmtl_dist.tracking.redact import first_line, redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ERRNO = re.compile(r"\[Errno -?\d+\] ([\w ]+)")


def open_client(config: TrackingConfig) -> "MlflowClient":
    """Return a client of tracking server and registry, with short waits; nothing is contacted yet."""
    prepare_mlflow()
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(max(1, round(config.timeout_seconds))))
    uri = tracking_uri(config)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(uri, uri)


def prepare_mlflow() -> None:
    """Set what MLflow reads from the environment, unless the user did: no telemetry, no printing, no `uv.lock`."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # retries are the delivery's business


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
        said, remedy = trouble(tracking_uri(config), error)
        raise UserError(f"{said}; {remedy.replace('tracking.uri', 'MLFLOW_TRACKING_URI')}") from error


def trouble(uri: str, error: Exception) -> tuple[str, str]:
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
    remedy = f"{start_it(uri)} or correct tracking.uri"
    if found := _ERRNO.search(text):  # what lies at the bottom of a pile of connections that failed
        return f"{where} does not answer ({found[1].strip().lower()})", remedy
    return f"{where} refuses or does not answer ({first_line(error)})", remedy
