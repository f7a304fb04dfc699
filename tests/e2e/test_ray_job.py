"""A plain `ray job submit` of the checkout to a one-node cluster that asks for a token."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = [
    "data.image_size=32",
    "data.batch_size=16",
    "data.lanes=2",
    "model.backbone=test_efficientnet",
    "train.epochs=1",
    "train.max_steps=2",
    "tracking.system_metrics=false",
    "launch.num_workers=2",
]
"""What makes a shipped recipe tiny."""


@dataclass(frozen=True)
class Cluster:
    head: str
    dashboard: str
    token: Path
    environment: Mapping[str, str]
    """For whoever has the token."""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def answers(url: str, token: str = "") -> int:
    """The HTTP status of a request, 0 while nobody listens."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.fixture(scope="module")
def cluster() -> Generator[Cluster]:
    """A head of the test's own, with the credentials that a node's environment would have."""
    folder = Path(tempfile.mkdtemp(prefix="hmtl-ray-", dir="/tmp"))  # short: Ray's sockets are under it
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    gcs, dashboard, agent = free_ports(3)
    environment = os.environ | {
        "HMTL_HOME": str(folder / "home"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
    }
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(
            [
                *("ray", "start", "--head", "--block", "--num-cpus=2", "--object-store-memory=100000000"),
                *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
                *("--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats", f"--temp-dir={folder}/ray"),
            ],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{dashboard}"
    deadline = time.monotonic() + 120
    while answers(f"{url}/api/version", token.read_text()) != 200:
        assert head.poll() is None, (folder / "head.log").read_text()
        assert time.monotonic() < deadline, "the head does not come up"
        time.sleep(0.5)

    yield Cluster(f"127.0.0.1:{gcs}", url, token, environment)

    children = psutil.Process(head.pid).children(recursive=True)
    head.send_signal(signal.SIGTERM)
    for child in psutil.wait_procs(children, timeout=10)[1]:
        child.kill()
    head.wait(timeout=30)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def drawn_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    command = [sys.executable, "-m", "hmtl_dist", "data", "synth", str(folder), "--image-size=32", "--num-workers=1"]
    subprocess.run([*command, "--samples=96", "--identities=24"], cwd=REPOSITORY, check=True, capture_output=True)
    return folder


def submit(cluster: Cluster, *command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", ".", "--", *command],
        env={**cluster.environment, **environment},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_a_submitted_job_trains_on_the_cluster(cluster: Cluster, drawn_faces: Path) -> None:
    job = submit(cluster, "python", "-m", "hmtl_dist", "train", "demo", "--json", f"data.url={drawn_faces}", *TINY)

    assert job.returncode == 0, job.stdout + job.stderr
    assert "succeeded" in job.stdout
    outcome = json.loads(next(line for line in job.stdout.splitlines() if line.startswith('{"status"')))
    assert (outcome["status"], outcome["global_step"]) == ("FINISHED", 2)


def test_nothing_is_run_for_somebody_without_the_token(cluster: Cluster) -> None:
    job = submit(cluster, "true", RAY_AUTH_MODE="disabled")

    assert job.returncode != 0
    assert answers(f"{cluster.dashboard}/api/jobs/") == 401


def test_a_driver_without_the_token_is_told_in_one_line(cluster: Cluster) -> None:
    driver = subprocess.run(
        [sys.executable, "-m", "hmtl_dist", "train", "demo", f"launch.address={cluster.head}"],
        env={**cluster.environment, "RAY_AUTH_MODE": "disabled"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (driver.returncode, driver.stderr.count("\n")) == (2, 1)
    assert "RAY_AUTH_TOKEN_PATH" in driver.stderr
