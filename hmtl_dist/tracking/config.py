"""The tracking section of the configuration, and the address it resolves to."""

import os
import re
from typing import Annotated

from pydantic import Field, field_validator

from hmtl_dist.config.base import Section
from hmtl_dist.config.io import home
from hmtl_dist.errors import UserError

PARENT = "mlflow.parentRunId"
"""Tag of MLflow's own by which a run names the one that it belongs to."""

FOR_TRAINING = "workflowType=machine_learning"
"""Part of an address of MLflow's page that shows what is there for training, not what is there for language models."""

Seconds = Annotated[float, Field(gt=0)]

_ADDRESS = re.compile(r"^(databricks|[a-zA-Z][\w+.-]+:\S+)$")
"""A server, a database by its SQLAlchemy URL, or what a plugin of MLflow takes; a folder is none of them any more."""
_USERINFO = re.compile(r"^[a-zA-Z][\w+.-]*://[^/?#]*@")


class TrackingConfig(Section):
    """Where a run is recorded; a local journal is always written, MLflow gets what the journal holds."""

    enabled: bool = True
    """Deliver to MLflow; without it only the local journal is written."""
    uri: str | None = None
    """MLflow server or `sqlite:///` database; empty: MLFLOW_TRACKING_URI, else `mlflow.db` in the home folder."""
    experiment: Annotated[str, Field(min_length=1, max_length=250)] = "hmtl_dist"
    """MLflow experiment of the runs."""
    tags: dict[str, str] = Field(default_factory=dict[str, str])
    """Notes on the MLflow run, by name."""
    required: bool = False
    """Refuse to start while MLflow does not answer; otherwise the journal waits for it."""
    model: bool = True
    """Record the trained model and the learning curves at the end of the run."""
    pictures: bool = True
    """Record samples of the pretext tasks as pictures."""
    system_metrics: bool = True
    """Record use of processor, memory, disk, network and GPU."""
    system_metrics_seconds: Seconds = 10.0
    """Seconds between two samples of the system metrics."""
    register_model: Annotated[str, Field(min_length=1, max_length=250)] | None = None
    """Name in MLflow's model registry under which the trained model becomes a new version; empty: not registered."""
    register_alias: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,99}$")] = "newest"
    """Alias that moves to the newly registered version."""
    timeout_seconds: Seconds = 10.0
    """Longest wait for one answer of MLflow."""
    close_seconds: Seconds = 30.0
    """Longest wait at the end of a run for what is not delivered yet; the rest stays in the journal."""

    @field_validator("register_alias")
    @classmethod
    def _not_reserved(cls, alias: str) -> str:
        if alias == "latest" or re.fullmatch(r"v\d+", alias):
            raise ValueError(f"'{alias}' is reserved by MLflow; use another alias, such as newest")
        return alias


class Recording(TrackingConfig):
    """Where one run is recorded: the section as the driver has resolved it, and the MLflow run.

    It is no part of the configuration, which says nothing of a single run.
    """

    run_id: str | None = None
    """MLflow run; None where there is none."""


def tracking_uri(config: TrackingConfig, known: str | None = None) -> str:
    """Return the MLflow address: the configured one, else MLFLOW_TRACKING_URI, else a database in the home folder.

    Args:
        config: The section.
        known: Where the run was recorded before; goes before the database in the home folder.

    Raises:
        UserError: It is no address of a server or a database; or `tracking.uri` has a password in it, which would end
            up in checkpoints and parameters.
    """
    environment = os.environ.get("MLFLOW_TRACKING_URI", "")
    given = config.uri or environment
    if given and not _ADDRESS.match(given):
        name = "tracking.uri" if config.uri else "MLFLOW_TRACKING_URI"
        said = "it" if _USERINFO.match(given) else f"{given!r}"
        raise UserError(
            f"{name}: {said} is no address; give http://HOST:PORT, or a database such as sqlite:////path/to/mlflow.db"
        )
    if config.uri and _USERINFO.match(config.uri):
        raise UserError(
            "tracking.uri: has a user or password in it, which would be stored with the run; "
            "give them by MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return given or known or f"sqlite:///{home().absolute() / 'mlflow.db'}"


def resolve(config: TrackingConfig, run_id: str | None = None, *, known: str | None = None) -> Recording:
    """Return what the workers get: the section with the address that holds here, and the run.

    An address from the environment may hold a password; such a one is not handed on, the workers read it from their
    own environment.

    Args:
        config: The section.
        run_id: MLflow run, if there is one.
        known: Address that the run was recorded at before.
    """
    uri = tracking_uri(config, known)
    plain = {name: getattr(config, name) for name in TrackingConfig.model_fields}
    return Recording.model_validate(plain | {"run_id": run_id, "uri": None if _USERINFO.match(uri) else uri})
