"""Machines of a cluster that are lost under a submitted run: a worker node, then the head with all that Ray knows.

The servers are those of the compose file: S3 with a key for the nodes that may only read shards and write runs, MLflow
with passwords on PostgreSQL.
"""

import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from hmtl_dist.data.storage import S3Storage
from tests.cluster.servers import Servers, compose_servers
from tests.e2e.network import Network, own_network
from tests.e2e.nodes import REPOSITORY, Cluster, draw, two_nodes

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(2400)]

TOTAL_STEPS, SAVED_STEPS = 240, 20


class Submitted:
    """A run that is submitted and followed, its state in S3."""

    def __init__(self, cluster: Cluster, servers: Servers, data: str, name: str, log: Path) -> None:
        self.cluster, self.log, self.name = cluster, log, name
        self.storage = S3Storage(f"{cluster.bucket}/runs/{name}/checkpoints", servers.access("admin"))
        settings = [f"data.url={data}", f"name={name}", f"launch.storage={cluster.bucket}/runs", "launch.num_workers=2"]
        settings += ["data.image_size=32", "data.batch_size=16", "data.lanes=2", "model.backbone=test_efficientnet"]
        settings += ["train.epochs=1000", f"train.max_steps={TOTAL_STEPS}", "train.evaluate_every_epochs=1000"]
        settings += [f"train.checkpoint_every_steps={SAVED_STEPS}", "train.checkpoint_every_epochs=1000"]
        settings += ["train.keep_checkpoints=100", "tracking.required=true"]
        settings += ["tracking.model=false"]
        submit = [sys.executable, "-m", "hmtl_dist", "submit", f"--address={cluster.dashboard}"]
        self.command = [*submit, "train", "demo", *settings]

    def start(self) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as file:
            return subprocess.Popen(
                self.command,
                cwd=REPOSITORY,
                env=self.cluster.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def saved(self) -> int:
        """The step of the newest checkpoint that is complete."""
        keys = [info.key for info in self.storage.list() if info.key.endswith("/manifest.json")]
        return max((int(key.partition("/")[0].removeprefix("step-")) for key in keys), default=0)

    def await_step(self, step: int, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + 600
        while self.saved() < step:
            assert process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    def weights(self) -> dict[str, bytes]:
        """Every tensor file of the last checkpoint."""
        last = f"step-{TOTAL_STEPS:08d}/"
        keys = [info.key for info in self.storage.list() if info.key.startswith(last)]
        found = {key: self.storage.read(key) for key in keys if key.endswith(".safetensors")}
        assert len(found) >= 3, keys
        return found


@pytest.fixture(scope="module")
def network() -> Generator[Network | None]:
    with own_network() as network:
        yield network


@pytest.fixture(scope="module")
def servers(network: Network | None) -> Generator[Servers]:
    with compose_servers(*([network.here] if network else [])) as servers:
        yield servers


@pytest.fixture(scope="module")
def cluster(servers: Servers, network: Network | None) -> Generator[Cluster]:
    with two_nodes(servers.environment("nodes"), "s3://hmtl-runs", network) as cluster:
        yield cluster


@pytest.fixture
def mlflow(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> "MlflowClient":
    for name, value in servers.environment("nodes").items():
        monkeypatch.setenv(name, value)
    from mlflow import MlflowClient

    return MlflowClient(servers.mlflow)


def recorded(mlflow: "MlflowClient", name: str) -> "Run":
    """The one run of a name."""
    experiments = [experiment.experiment_id for experiment in cast("Any", mlflow).search_experiments()]
    (found,) = mlflow.search_runs(experiments, f"attributes.run_name = '{name}'")
    return found


def test_run_that_loses_a_worker_node_and_then_the_head_ends_with_the_same_weights(
    cluster: Cluster, servers: Servers, mlflow: "MlflowClient", tmp_path: Path
) -> None:
    data = draw("s3://hmtl-data/faces", servers.environment("admin"))
    whole = Submitted(cluster, servers, data, "whole", tmp_path / "whole")
    assert whole.start().wait(timeout=600) == 0, whole.log.read_text()

    shaken = Submitted(cluster, servers, data, "shaken", tmp_path / "shaken")
    following = shaken.start()
    shaken.await_step(SAVED_STEPS, following)
    lost = time.monotonic()
    cluster.kill(1)
    before = shaken.saved()
    cluster.start_worker(alive=2)
    there = time.monotonic()
    shaken.await_step(before + 2 * SAVED_STEPS, following)  # Ray has started its workers again, and it goes on
    print(f"node there after {there - lost:.0f} s, two checkpoints later {time.monotonic() - there:.0f} s")  # noqa: T201
    cluster.kill(0)
    lost = time.monotonic()
    assert following.wait(timeout=300) == 2, shaken.log.read_text()  # not at once: a connection may come back
    print(f"told after {time.monotonic() - lost:.0f} s")  # noqa: T201
    assert "has not answered for" in shaken.log.read_text()
    assert SAVED_STEPS <= shaken.saved() < TOTAL_STEPS
    orphaned = recorded(mlflow, "shaken").info
    assert orphaned.status in {"RUNNING", "FAILED"}  # the latter where rank 0 was on the other node, and lost its peer

    cluster.end()
    cluster.start_head()
    cluster.start_worker(alive=2)
    before, begun = shaken.saved(), time.monotonic()
    following = shaken.start()
    shaken.await_step(before + SAVED_STEPS, following)
    print(f"the same command: next checkpoint after {time.monotonic() - begun:.0f} s")  # noqa: T201
    assert following.wait(timeout=600) == 0, shaken.log.read_text()
    assert shaken.weights() == whole.weights()

    assert [recorded(mlflow, name).info.status for name in ("whole", "shaken")] == ["FINISHED", "FINISHED"]
    assert recorded(mlflow, "shaken").info.run_id == orphaned.run_id
    steps = [metric.step for metric in mlflow.get_metric_history(orphaned.run_id, "train/loss/total")]
    # none is doubled, and none is missing: what a lost node had not delivered is in the checkpoint
    assert sorted(steps) == [*range(10, TOTAL_STEPS + 1, 10)]
    files = [info.key for info in servers.bucket("hmtl-mlflow", "admin").list()]
    assert any(f"/{orphaned.run_id}/artifacts/evaluation/" in key for key in files)
    told = mlflow.get_metric_history(orphaned.run_id, "system/node-1/system_memory_usage_percentage")
    assert all(0 < metric.value < 100 for metric in told)
    assert told
