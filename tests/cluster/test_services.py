"""Who may do what at the servers of a cluster, as the compose file starts them."""

import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from hmtl_dist.errors import UserError
from hmtl_dist.tracking.config import TrackingConfig
from hmtl_dist.tracking.runs import create_run
from tests.cluster.servers import Servers, answer, compose_servers, environment

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def servers() -> Generator[Servers]:
    with compose_servers() as servers:
        yield servers


def test_nodes_only_read_data_and_write_runs(servers: Servers) -> None:
    servers.bucket("hmtl-data", "admin").write("faces/0.tar", b"shard")
    data, runs = servers.bucket("hmtl-data", "nodes"), servers.bucket("hmtl-runs", "nodes")

    assert data.read("faces/0.tar") == b"shard"
    runs.write("run/manifest.json", b"{}")
    assert runs.read("run/manifest.json") == b"{}"
    with pytest.raises(UserError, match=r"(?i)denied|refused|forbidden"):
        data.write("faces/0.tar", b"spoilt")
    with pytest.raises(UserError, match=r"(?i)denied|refused|forbidden"):
        servers.bucket("hmtl-mlflow", "nodes").read("0")


def test_mlflow_asks_for_a_password_and_answers_to_its_names_alone(servers: Servers) -> None:
    search = f"{servers.mlflow}/api/2.0/mlflow/experiments/search?max_results=1"
    assert answer(search) == 401
    assert answer(f"{servers.mlflow}/api/2.0/mlflow/experiments/search?max_results=1", host="evil.example.org") == 403


def refused(uri: str) -> str:
    """What a run hears that must be recorded there."""
    with pytest.raises(UserError) as caught:
        create_run(TrackingConfig(uri=uri, required=True), name="refused")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mlflow_that_does_not_know_its_name_is_one_line(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    message = refused(servers.mlflow.replace("127.0.0.1", "localhost"))
    assert "does not answer to this host name (HTTP status 403)" in message
    assert "--allowed-hosts" in message


def test_mlflow_without_the_password_is_one_line(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "asks for a name and a password" in refused(servers.mlflow)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "nodes")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "mistyped-password")
    message = refused(servers.mlflow)
    assert "~/.mlflow/credentials" in message
    assert "mistyped-password" not in message


def test_nodes_record_runs_and_their_files_go_to_s3(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a node: MLflow's own file of credentials, and no key of the artifacts' bucket."""
    (tmp_path / ".mlflow").mkdir()
    shutil.copy(servers.secrets / "mlflow_credentials", tmp_path / ".mlflow" / "credentials")
    (tmp_path / "note.txt").write_text("hello")
    program = (
        "import mlflow\n"
        "mlflow.set_experiment('faces')\n"
        "with mlflow.start_run() as run:\n"
        "    mlflow.log_metric('loss', 0.5)\n"
        f"    mlflow.log_artifact('{tmp_path}/note.txt')\n"
    )
    variables = environment(HOME=str(tmp_path), MLFLOW_TRACKING_URI=servers.mlflow)
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    stored = [info.key for info in servers.bucket("hmtl-mlflow", "admin").list()]
    assert [key for key in stored if key.endswith("/artifacts/note.txt")]
