"""A Ray cluster for tests: a head and worker nodes as processes of their own, with a token and S3, that may be lost.

Where this process may, a worker node has a network namespace with an address of its own and a file system of its own
under /tmp: as on another machine, nothing is shared but what both reach by the network.
"""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from hmtl_dist.services.process import free_ports
from tests.e2e.network import Network, own_network
from tests.processes import kill_all

REPOSITORY = Path(__file__).resolve().parents[2]
SECRET = "planted-secret-of-the-nodes"
START_SECONDS = 600
TINY = [
    "data.image_size=32",
    "data.batch_size=16",
    "data.lanes=2",
    "model.backbone=test_efficientnet",
    "train.epochs=1",
    "train.max_steps=2",
    "tracking.enabled=false",
    "launch.num_workers=2",  # each node has room for one
]
"""What makes a shipped recipe tiny."""


@dataclass
class Cluster:
    """Processes, and how to come to them."""

    folder: Path
    head: str
    dashboard: str
    token: Path
    environment: Mapping[str, str]
    """For whoever has the token."""
    node_environment: Mapping[str, str]
    bucket: str
    network: Network | None
    """The worker nodes' own, if they have one."""
    nodes: "list[subprocess.Popen[bytes]]" = field(default_factory=list["subprocess.Popen[bytes]"])
    """The head first."""

    def start_head(self) -> None:
        host, _, port = self.head.rpartition(":")
        ports = [f"--port={port}", f"--dashboard-port={self.dashboard.rpartition(':')[2]}"]
        address = [] if self.network is None else [f"--node-ip-address={host}"]
        self._start(["--head", f"--temp-dir={self.folder}/ray", *ports, *address])
        self.await_(lambda: self._alive() == 1)

    def start_worker(self, alive: int) -> None:
        """Start another node, and wait until so many are there."""
        address = [] if self.network is None else [f"--node-ip-address={self.network.there}"]
        self._start([f"--address={self.head}", *address])
        self.await_(lambda: self._alive() == alive)

    def kill(self, number: int) -> None:
        """Lose a node as if its power went."""
        node = self.nodes.pop(number)
        leader = psutil.Process(node.pid)
        kill_all([leader, *leader.children(recursive=True)])
        node.wait(timeout=30)
        if number:  # until Ray knows it: a node that is started before would be taken for the one that is lost
            self.await_(lambda: self._alive() == len(self.nodes))

    def end(self) -> None:
        while self.nodes:
            node = self.nodes.pop()
            if node.poll() is not None:
                continue
            children = psutil.Process(node.pid).children(recursive=True)
            node.send_signal(signal.SIGTERM)
            kill_all(psutil.wait_procs(children, timeout=10)[1])
            node.wait(timeout=30)

    def await_(self, condition: Callable[[], bool]) -> None:
        """Wait for what the nodes are to do; one that Ray gives up, as it does on a busy machine, begins anew."""
        deadline = time.monotonic() + START_SECONDS
        logs = [self.folder / f"{number + 1}.log" for number in range(len(self.nodes))]
        while not condition():
            assert time.monotonic() < deadline, "\n".join(log.read_text() for log in logs)
            for number, (node, log) in enumerate(zip(self.nodes, logs, strict=True)):
                if node.poll() is not None:
                    self.nodes[number] = self._launch(node.args, log)
            time.sleep(0.5)

    def _alive(self) -> int:
        return get(f"{self.dashboard}/api/v0/nodes?limit=10", self.token.read_text())[1].count('"ALIVE"')

    def _start(self, arguments: Sequence[str]) -> None:
        (agent,) = free_ports(1)
        command = [*("ray", "start", "--block", "--num-cpus=1", "--disable-usage-stats"), *arguments]
        command += ["--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={agent}"]
        command += ["--object-store-memory=100000000"]
        # /tmp only where the program itself is not there
        private = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /tmp && exec "$@"', "sh"]
        allowed = subprocess.run([*private, "true"], capture_output=True, check=False).returncode == 0
        if "--head" not in arguments and allowed and not REPOSITORY.is_relative_to("/tmp"):
            command = [*private, *command]
        if "--head" not in arguments and self.network is not None:
            command = self.network.inside(command)
        self.nodes.append(self._launch(command, self.folder / f"{len(self.nodes) + 1}.log"))

    def _launch(self, command: Any, log: Path) -> "subprocess.Popen[bytes]":
        with log.open("a") as file:
            return subprocess.Popen(
                command, env=self.node_environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )


def get(url: str, token: str = "") -> tuple[int, str]:
    """The HTTP status and text of an answer, 0 while nobody listens."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""
    except OSError:
        return 0, ""


@contextmanager
def two_nodes(environment: Mapping[str, str], bucket: str, network: Network | None = None) -> Generator[Cluster]:
    """A head and a worker node with room for one worker each.

    Args:
        environment: Addresses of servers and the credentials that nodes would have.
        bucket: Where runs are kept.
        network: The worker nodes'; a new one, or none where that is not allowed, if not given.
    """
    with ExitStack() as stack:
        network = network or stack.enter_context(own_network())
        yield from _nodes(environment, bucket, network, workers=1)


@contextmanager
def one_node(environment: Mapping[str, str], bucket: str) -> Generator[Cluster]:
    """A head alone, with room for one worker, on this machine's own network."""
    yield from _nodes(environment, bucket, None, workers=0)


def _nodes(environment: Mapping[str, str], bucket: str, network: Network | None, *, workers: int) -> Generator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="hmtl-ray-", dir="/tmp"))  # short: Ray's sockets are under it
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    gcs, dashboard = free_ports(2)
    common = os.environ | {
        "HMTL_HOME": str(folder / "home"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
    }
    if network is not None:
        common["GLOO_SOCKET_IFNAME"] = network.card  # the nodes' host name leads to 127.0.0.1, as it often does
        environment = {name: _seen_from(network, value) for name, value in environment.items()}
    cluster = Cluster(
        folder=folder,
        head=f"{network.here if network else '127.0.0.1'}:{gcs}",
        dashboard=f"http://127.0.0.1:{dashboard}",
        token=token,
        environment=common | {"RAY_AUTH_TOKEN_PATH": str(token), "PYTHONPATH": str(REPOSITORY)},
        node_environment={
            **common,
            **environment,
            "RAY_AUTH_TOKEN": token.read_text(),
            "RAY_metrics_report_interval_ms": "1000",  # of its own 10 s
            "PLANTED_SECRET": SECRET,
        },
        bucket=bucket,
        network=network,
    )
    try:
        cluster.start_head()
        for number in range(workers):
            cluster.start_worker(alive=number + 2)
        yield cluster
    finally:
        cluster.end()
        shutil.rmtree(folder, ignore_errors=True)


def _seen_from(network: Network, value: str) -> str:
    """A server's address as the worker nodes reach it."""
    return re.sub(r"(?<=://)127\.0\.0\.1:(\d+)", lambda match: network.forward(int(match[1])), value)


def draw(url: str, environment: Mapping[str, str]) -> str:
    """Draws a few faces there, with somebody's credentials, and returns the URL."""
    command = [sys.executable, "-m", "hmtl_dist", "data", "synth", url, "--image-size=32", "--num-workers=1"]
    command += ["--samples=96", "--identities=24"]
    subprocess.run(command, cwd=REPOSITORY, env={**os.environ, **environment}, check=True, capture_output=True)
    return url


def run(
    cluster: Cluster, command: Sequence[str], environment: Mapping[str, str] | None = None, folder: Path = REPOSITORY
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        env={**cluster.environment, **(environment or {})},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )


def plain(
    cluster: Cluster, *command: str, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    submit = ["ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", "."]
    return run(cluster, [*submit, "--runtime-env", "cluster/runtime_env.yaml", "--", *command], environment)


def outcome(text: str) -> dict[str, object]:
    return json.loads(next(line for line in text.splitlines() if line.startswith('{"status"')))
