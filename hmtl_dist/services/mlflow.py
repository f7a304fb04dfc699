"""A local MLflow server on loopback: SQLite and a folder of artifacts, both served by it."""

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

from hmtl_dist.services.process import Server, free_ports, launch

# Neither of MLflow's job runners is needed, and each is a process more; nothing is reported to anybody.
_SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


def start(folder: Path, *, log: Path, wanted_ports: tuple[int, ...] = (), store: str | None = None) -> Server:
    """Starts a server that keeps everything in `folder`; it takes about seven seconds to get ready.

    Args:
        folder: Its working directory, and where it keeps artifacts.
        log: File for what it says.
        wanted_ports: Of the last time.
        store: URL of a database that is there already; one in `folder` if empty.

    Raises:
        UserError: No port is free.
    """
    artifacts = folder / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1, wanted_ports)
    store = store or f"sqlite:///{folder / 'mlflow.db'}"
    command = [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", store),
        *("--artifacts-destination", str(artifacts)),
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
        *("--workers", "1"),
    ]
    # What is set for clients (another server's URI, credentials) is not meant for this server.
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "_MLFLOW_", "AWS_"))
    }
    process = launch(command, mark=store, log=log, folder=folder, environment=inherited | _SETTINGS)
    return Server(process=process, ports=(port,))


def is_ready(server: Server) -> bool:
    """Says whether the server answers."""
    # A proxy has no business between this machine and itself.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{server.url}/health", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
