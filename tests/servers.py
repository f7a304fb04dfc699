"""The servers of the tests: who they are, who may use them, how they are waited for."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hmtl_dist.data.storage import S3Access, S3Storage
from hmtl_dist.services import mlflow
from hmtl_dist.services.process import Server, is_running, stop
from hmtl_dist.services.seaweedfs import Identity

START_SECONDS = 600.0
ADMIN = Identity(name="admin", access_key_id="TESTADMIN", secret_access_key="test-admin-secret")
READER = Identity(
    name="reader",
    access_key_id="TESTREADER",
    secret_access_key="test-reader-secret",
    actions=("Read:open", "List:open"),
)


@dataclass(frozen=True)
class S3Server:
    """A real S3 server and two who may use it: one may do everything, the reader may only read the bucket `open`."""

    endpoint: str
    admin: Identity = ADMIN
    reader: Identity = READER

    @property
    def access(self) -> S3Access:
        """The endpoint and the admin's credentials, for a storage that does not read the environment."""
        return S3Access(self.endpoint, self.admin.access_key_id, self.admin.secret_access_key)

    def bucket(self) -> str:
        """Makes a fresh bucket and returns its `s3://` URL."""
        url = f"s3://test-{uuid.uuid4().hex[:12]}"
        S3Storage(url, self.access).create_bucket()
        return url

    def env(self, identity: Identity | None = None) -> dict[str, str]:
        """The variables with which an S3 client comes to this server, as `admin` unless told otherwise."""
        identity = identity or self.admin
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": identity.access_key_id,
            "AWS_SECRET_ACCESS_KEY": identity.secret_access_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


def await_server(launch: Callable[[], Server], is_ready: Callable[[Server], bool], log: Path) -> Server:
    """Starts a server and waits for it; one whose port was taken by another test process is started anew."""
    deadline = time.monotonic() + START_SECONDS
    server = launch()
    while not (is_running(server.process) and is_ready(server)):
        if time.monotonic() > deadline:
            stop(server.process, grace_seconds=0.0)
            pytest.fail(f"the server is not ready:\n{log.read_text()[-2000:]}")
        if not is_running(server.process):
            server = launch()
        time.sleep(0.05)
    return server


class OwnMLflow:
    """An MLflow server that a test may take away; it comes back at the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self._ports: tuple[int, ...] = ()

    def start(self) -> None:
        log = self._folder / "mlflow.log"

        def launch() -> Server:
            return mlflow.start(self._folder / "data", log=log, wanted_ports=self._ports)

        self._server = await_server(launch, mlflow.is_ready, log)
        assert not self._ports or self._server.ports == self._ports
        self._ports = self._server.ports

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def database(self) -> Path:
        return self._folder / "data" / "mlflow.db"

    def stop(self, grace_seconds: float = 5.0) -> None:
        stop(self._server.process, grace_seconds=grace_seconds)
