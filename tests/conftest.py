"""Servers and folders that tests share: real ones, of their own, gone at the end."""

import os
import shutil
import signal
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from hmtl_dist import garbage
from hmtl_dist.services import mlflow, seaweedfs
from hmtl_dist.services.process import Server, stop
from tests.servers import ADMIN, READER, S3Server, await_server

garbage.collect_rarely()

# A shell that starts the tests in the background has Ctrl-C ignored, and what they start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before any test imports torch: one thread a process, and nothing of the person who runs the tests.
for _name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_", "RAY_")) or name == "HMTL_HOME"]:
    del os.environ[_name]
os.environ.update(
    {
        "OMP_NUM_THREADS": "1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
)


def pytest_unconfigure() -> None:
    """Leave at once when all is done."""
    garbage.collect_no_more()


@pytest.fixture(scope="module", autouse=True)
def hmtl_home(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """A home of each test file's own; nothing is read from or written to the user's."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HMTL_HOME", str(home))
        yield home


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, where tests of one file call runs by the same name and keep them in other places."""
    monkeypatch.setenv("HMTL_HOME", str(tmp_path / "own-home"))
    return tmp_path / "own-home"


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Generator[S3Server]:
    """A real S3 server (SeaweedFS), one for each test process."""
    folder = tmp_path_factory.mktemp("s3")

    def launch() -> Server:
        return seaweedfs.start(folder / "data", (ADMIN, READER), log=folder / "s3.log")

    server = await_server(launch, lambda server: seaweedfs.is_ready(server, ADMIN, "open"), folder / "s3.log")
    yield S3Server(server.url)
    stop(server.process, grace_seconds=0.0)
    seaweedfs.clean_up(server)


@pytest.fixture
def s3_env(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server, with the environment set so that `open_storage("s3://…")` comes to it."""
    for name, value in s3.env().items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The tracking URI of a real MLflow server, started by the first test that asks for it (ten seconds)."""
    folder = tmp_path_factory.mktemp("mlflow")
    server = await_server(
        lambda: mlflow.start(folder / "data", log=folder / "mlflow.log"), mlflow.is_ready, folder / "mlflow.log"
    )
    yield server.url
    stop(server.process, grace_seconds=0.0)


@pytest.fixture(scope="session")
def faces() -> Path:
    """The folder of the real faces' data sets."""
    folder = os.environ.get("HMTL_TEST_FACES")
    if not folder:
        pytest.skip("HMTL_TEST_FACES does not name a folder of real faces")
    return Path(folder)


@pytest.fixture
def ray_local(monkeypatch: pytest.MonkeyPatch) -> Generator[Path]:
    """A short temporary folder for a Ray of the test's own: paths of Unix sockets are limited to 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="hmtl-", dir="/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
