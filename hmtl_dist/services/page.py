"""MLflow's page on a database that no server shows: a server for as long as somebody looks."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from hmtl_dist.errors import UserError
from hmtl_dist.services import mlflow
from hmtl_dist.services.process import is_running, stop
from hmtl_dist.services.registry import POLL_SECONDS, START_SECONDS


@contextmanager
def shown(store: str, folder: Path) -> Generator[str]:
    """Show a database as long as the block lasts, and yield the address.

    Args:
        store: URL of the database, such as `sqlite:////path/to/mlflow.db`.
        folder: For its log.

    Raises:
        UserError: The server does not get ready.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "mlflow-ui.log"
    server = mlflow.start(folder, log=log, store=store)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not mlflow.is_ready(server):
            if not is_running(server.process) or time.monotonic() > deadline:
                raise UserError(f"MLflow's server does not start: see {log}")
            time.sleep(POLL_SECONDS)
        yield server.url
    finally:
        stop(server.process)
