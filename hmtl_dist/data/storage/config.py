"""The section `storage` of the configuration, and how it reaches what reads and writes."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated

from pydantic import Field

from hmtl_dist.config.base import Section

OUTAGE = "HMTL_STORAGE_OUTAGE_SECONDS"
"""Variable that carries the patience to this process's storages, and to those of the processes that it starts."""

REACHED = "HMTL_STORAGE_REACHED"
"""Variable of a process whose storages have answered another one before: they may be out, and are no mistake."""


class StorageConfig(Section):
    """How the storages of data, runs and checkpoints are treated."""

    patience_minutes: Annotated[float, Field(ge=0)] = 10.0
    """How long a storage that was reached once is waited for when it does not answer; a first contact takes seconds."""


def outage_seconds() -> float:
    """Return how long a storage that was reached once is waited for: a restart or an overload should not end a run."""
    given = os.environ.get(OUTAGE)
    return 60 * StorageConfig().patience_minutes if given is None else float(given)


@contextmanager
def settings(config: StorageConfig) -> Generator[None]:
    """Treat storages like this inside the block, also in processes that are started there."""
    before = os.environ.get(OUTAGE)
    os.environ[OUTAGE] = str(60 * config.patience_minutes)
    try:
        yield
    finally:
        if before is None:
            del os.environ[OUTAGE]
        else:
            os.environ[OUTAGE] = before
