"""The local services of one home: started together, remembered in a private file, found again, stopped."""

import fcntl
import secrets
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from hmtl_dist.config.base import Section
from hmtl_dist.errors import UserError
from hmtl_dist.services import mlflow, seaweedfs
from hmtl_dist.services.private import write_private
from hmtl_dist.services.process import Server, is_running, stop

Name = Literal["s3", "mlflow"]
# The slower one is launched first and awaited last.
_NAMES: tuple[Name, ...] = ("mlflow", "s3")

BUCKET = "hmtl"
"""The bucket that is there from the start."""
START_SECONDS = 120.0
POLL_SECONDS = 0.05


class _Record(Section):
    """What is remembered of the services, their credentials among it."""

    identity: seaweedfs.Identity
    servers: dict[Name, Server]


@dataclass(frozen=True, slots=True)
class ServicesInfo:
    """Where the services are and how to be let in."""

    endpoint: str
    tracking_uri: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    started: tuple[str, ...] = ()
    """The services that this call has started; the others were running."""

    @property
    def bucket_url(self) -> str:
        """The bucket that is there from the start, as `open_storage` takes it."""
        return f"s3://{BUCKET}"

    def env(self) -> dict[str, str]:
        """The environment variables with which S3 and MLflow clients use these services."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_SESSION_TOKEN": "",  # one left over from another account would be sent along
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_TRACKING_URI": self.tracking_uri,
        }


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One service: `running` is about its process, `ready` about its answers; `url` and `pid` are of the last start."""

    name: Name
    running: bool
    ready: bool
    url: str | None
    pid: int | None
    log: Path


def start_services(home: Path) -> ServicesInfo:
    """Starts what is not running yet, the S3 and the MLflow server side by side, and waits until both answer.

    Args:
        home: The folder of everything this program keeps; the services live in `home/services`.

    Raises:
        UserError: A server is not installed, finds no port, or does not get ready.
    """
    with _locked(home) as folder:
        record = _load(folder) or _Record(identity=_new_identity(), servers={})
        started: list[Name] = [name for name in _NAMES if not _is_alive(record, name)]
        try:
            for name in started:
                record = _launch(folder, record, name)
            for name in reversed(_NAMES):
                record = _await(folder, record, name)
        except BaseException:
            # Neither a failure nor an interruption leaves half of them behind.
            _stop(_load(folder), started)
            raise
        return _info(record, started)


def stop_services(home: Path) -> list[Name]:
    """Stops the services and says which of them were running; their data stay.

    Raises:
        UserError: One does not end.
    """
    with _locked(home) as folder:
        return _stop(_load(folder), _NAMES)


def running(home: Path) -> ServicesInfo | None:
    """Where the services are, or None unless both are running."""
    record = _load(home.absolute() / "services")
    if record is None or not (_is_alive(record, "s3") and _is_alive(record, "mlflow")):
        return None
    return _info(record, ())


def services_status(home: Path) -> list[ServiceStatus]:
    """The state of the S3 and of the MLflow server."""
    folder = home.absolute() / "services"
    record = _load(folder)
    found: list[ServiceStatus] = []
    for name in _NAMES:
        server = None if record is None else record.servers.get(name)
        alive = record is not None and _is_alive(record, name)
        found.append(
            ServiceStatus(
                name=name,
                running=alive,
                ready=alive and record is not None and _is_ready(record, name),
                url=None if server is None else server.url,
                pid=None if server is None else server.process.pid,
                log=_log(folder, name),
            )
        )
    return found


def _stop(record: _Record | None, names: Sequence[Name]) -> list[Name]:
    known: dict[Name, Server] = {} if record is None else record.servers
    servers: dict[Name, Server] = {name: known[name] for name in names if name in known}
    stopped: list[Name] = []
    trouble: list[str] = []  # one that does not end keeps none of the others
    for name, server in servers.items():
        try:
            if stop(server.process):
                stopped.append(name)
        except UserError as error:
            trouble.append(f"{name}: {error}")
    if trouble:
        raise UserError("; ".join(trouble))
    if "s3" in servers:
        seaweedfs.clean_up(servers["s3"])
    return stopped


def _launch(folder: Path, record: _Record, name: Name) -> _Record:
    """Starts a service, on its ports of the last time if they are free, and remembers it at once."""
    ports = record.servers[name].ports if name in record.servers else ()
    log = _log(folder, name)
    if name == "s3":
        server = seaweedfs.start(folder / name, (record.identity,), log=log, wanted_ports=ports)
    else:
        server = mlflow.start(folder / name, log=log, wanted_ports=ports)
    record = _Record(identity=record.identity, servers={**record.servers, name: server})
    write_private(folder / "services.json", record.model_dump_json(indent=2))
    return record


def _await(folder: Path, record: _Record, name: Name) -> _Record:
    """Waits until a service answers; one that ends is launched again once: its port may have been taken meanwhile."""
    deadline = time.monotonic() + START_SECONDS
    relaunched = False
    while not (_is_alive(record, name) and _is_ready(record, name)):
        if time.monotonic() > deadline:
            raise UserError(
                f"the local {name} server does not answer after {START_SECONDS:.0f} s: see {_log(folder, name)}"
            )
        if not _is_alive(record, name):
            if relaunched:
                raise UserError(f"the local {name} server does not start: see {_log(folder, name)}")
            record, relaunched = _launch(folder, record, name), True
        time.sleep(POLL_SECONDS)
    return record


def _is_alive(record: _Record, name: Name) -> bool:
    return name in record.servers and is_running(record.servers[name].process)


def _is_ready(record: _Record, name: Name) -> bool:
    if name == "s3":
        return seaweedfs.is_ready(record.servers[name], record.identity, BUCKET)
    return mlflow.is_ready(record.servers[name])


def _log(folder: Path, name: Name) -> Path:
    return folder / f"{name}.log"


def _new_identity() -> seaweedfs.Identity:
    return seaweedfs.Identity(
        name="hmtl",
        access_key_id=secrets.token_hex(10).upper(),
        secret_access_key=secrets.token_urlsafe(30),
    )


def _info(record: _Record, started: Sequence[Name]) -> ServicesInfo:
    return ServicesInfo(
        endpoint=record.servers["s3"].url,
        tracking_uri=record.servers["mlflow"].url,
        access_key_id=record.identity.access_key_id,
        secret_access_key=record.identity.secret_access_key,
        started=tuple(started),
    )


@contextmanager
def _locked(home: Path) -> Generator[Path]:
    """Keeps two commands from starting or stopping the services at the same time."""
    folder = home.absolute() / "services"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (folder / "lock").open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot be used: {error.strerror}; set HMTL_HOME to a folder you may write") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def _load(folder: Path) -> _Record | None:
    path = folder / "services.json"
    try:
        return _Record.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        # Why is not said: it would quote the credentials.
        raise UserError(f"{path} cannot be read: stop the servers by hand, if any are running, and delete it") from None
