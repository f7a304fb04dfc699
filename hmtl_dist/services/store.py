"""Which MLflow a command reads that was told of none."""

import os
from collections.abc import Generator
from contextlib import contextmanager

from hmtl_dist.config.io import home
from hmtl_dist.errors import UserError
from hmtl_dist.services.registry import running
from hmtl_dist.tracking.config import TrackingConfig

DATABASE = "services/mlflow/mlflow.db"
"""Of the local services, in the home folder."""


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
