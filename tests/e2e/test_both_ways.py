"""The demo's recipe on a cluster of two nodes, sent both ways; and what such a cluster refuses.

The servers are those of the compose file: S3 that lets nodes read shards and write runs alone, MLflow with passwords on
PostgreSQL.
"""

import json
import re
import subprocess
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from hmtl_dist.data.storage import S3Storage
from tests.cluster.servers import POSTGRES, Servers, compose_servers
from tests.e2e.network import Network, own_network
from tests.e2e.nodes import REPOSITORY, SECRET, Cluster, get, outcome, plain, run, two_nodes
from tests.faults.leaks import Search

if TYPE_CHECKING:
    from mlflow import MlflowClient

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(2400)]

FACES = "s3://hmtl-data/faces"
DASHBOARD = (
    "/api/jobs/",
    "/api/v0/nodes?detail=true",
    "/api/v0/actors?detail=true&limit=100",
    "/api/v0/tasks?detail=true&limit=100",
    "/api/v0/workers?detail=true&limit=100",
    "/api/v0/runtime_envs?detail=true",
    "/api/cluster_status",
    "/nodes?view=summary",
    "/logical/actors",
)
"""What the pages of Ray's dashboard are made of."""


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


@pytest.fixture(scope="module")
def faces(servers: Servers) -> str:
    command = [sys.executable, "-m", "hmtl_dist", "data", "synth", FACES, "--image-size=48", "--num-workers=2"]
    command += ["--samples=1200", "--identities=120"]
    environment = servers.environment("admin") | {"PATH": "/usr/bin:/bin", "HOME": str(servers.secrets)}
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, capture_output=True)
    return FACES


@pytest.fixture(scope="module")
def mlflow(servers: Servers) -> "Generator[MlflowClient]":
    with pytest.MonkeyPatch.context() as patch:
        for name, value in servers.environment("nodes").items():
            patch.setenv(name, value)
        from mlflow import MlflowClient

        yield MlflowClient(servers.mlflow)


def settings(name: str, *more: str) -> list[str]:
    return [f"name={name}", f"data.url={FACES}", "launch.storage=s3://hmtl-runs", "tracking.required=true", *more]


def weights(servers: Servers, name: str) -> dict[str, bytes]:
    """Every tensor file of a run's last checkpoint."""
    storage = S3Storage(f"s3://hmtl-runs/{name}/checkpoints", servers.access("admin"))
    keys = [info.key for info in storage.list() if info.key.endswith(".safetensors")]
    last = max(key.partition("/")[0] for key in keys)
    return {key: storage.read(key) for key in keys if key.startswith(f"{last}/")}


def searched(cluster: Cluster, servers: Servers, said: str) -> Search:
    """Look for every credential where somebody might see it, while the runs' traces are there."""
    secrets = {"the planted one": SECRET, "Ray's token": cluster.token.read_text()}
    for file in servers.secrets.iterdir():
        if not file.name.endswith(("credentials", ".json")) and not file.name.startswith("aws_"):
            secrets[file.name] = file.read_text().strip()
    secrets |= {f"S3 key of {who}": servers.access(who).secret_access_key for who in ("admin", "nodes", "mlflow")}
    secrets["MLflow's password"] = servers.environment("nodes")["MLFLOW_TRACKING_PASSWORD"]
    assert len(secrets) >= 9
    search = Search(secrets)
    search.text("the terminal", said.encode())
    search.command_lines(list(psutil.process_iter()))
    search.files(cluster.folder / "ray", cluster.folder / "home")
    for path in DASHBOARD:
        status, page = get(f"{cluster.dashboard}{path}", cluster.token.read_text())
        assert status in (200, 404), path
        search.text(f"dashboard {path}", page.encode())
    search.objects(S3Storage("s3://hmtl-runs", servers.access("admin")))
    search.objects(S3Storage("s3://hmtl-mlflow", servers.access("admin")))
    return search


def test_both_ways_train_on_both_nodes_to_the_same_weights_and_leave_no_secret(
    cluster: Cluster, servers: Servers, faces: str, mlflow: "MlflowClient"
) -> None:
    train = ("train", "demo", "--json")
    submit = (sys.executable, "-m", "hmtl_dist", "submit", f"--address={cluster.dashboard}")
    sent = {
        "plain": plain(cluster, "python", "-m", "hmtl_dist", *train, *settings("plain")),
        "ours": run(cluster, [*submit, *train, *settings("ours")]),
    }
    for name, job in sent.items():
        assert job.returncode == 0, job.stdout + job.stderr
        told: dict[str, Any] = outcome(job.stdout)
        assert (told["status"], told["folder"]) == ("FINISHED", f"s3://hmtl-runs/{name}")
        recorded = mlflow.get_run(str(told["run_id"]))
        assert (recorded.info.run_name, recorded.info.status) == (name, "FINISHED")
        assert recorded.data.metrics["eval/expression/accuracy"] == told["metrics"]["eval/expression/accuracy"]
        for machine in ("", "node-1/"):  # the first is that of rank 0
            assert recorded.data.metrics[f"system/{machine}system_memory_usage_percentage"] > 0
    one, other = (weights(servers, name) for name in sent)
    assert len(one) >= 3
    assert one == other

    search = searched(cluster, servers, "".join(job.stdout + job.stderr for job in sent.values()))
    assert search.looked_at > 100
    assert search.seen == set()


def test_postgres_holds_no_password_that_could_be_read(servers: Servers) -> None:
    """Of the runs of the test before."""
    assert POSTGRES is not None
    command = [str(POSTGRES / "pg_dump"), servers.postgres, "--data-only"]
    password = (servers.secrets / "postgres_password").read_text()
    dump = subprocess.run(command, env={"PGPASSWORD": password}, check=True, capture_output=True).stdout
    assert b"expression/accuracy" in dump  # it is the right database
    search = Search(
        {
            "MLflow's password": servers.environment("nodes")["MLFLOW_TRACKING_PASSWORD"],
            "MLflow's first password": (servers.secrets / "mlflow_admin_password").read_text().strip(),
            "S3 key of nodes": servers.access("nodes").secret_access_key,
            "the planted one": SECRET,
        }
    )
    search.text("PostgreSQL", dump)
    assert search.seen == set()


@pytest.mark.parametrize(
    ("variables", "more", "said"),
    [
        (["AWS_SECRET_ACCESS_KEY=mistyped"], [], r"refuses the secret key: check AWS_SECRET_ACCESS_KEY"),
        (["AWS_ACCESS_KEY_ID=nobody"], [], r"does not know the access key id: check AWS_ACCESS_KEY_ID"),
        ([], ["launch.storage=s3://hmtl-data/runs"], r"access to s3://hmtl-data/runs/\S+ is denied"),
        ([], ["tracking.uri=http://localhost:{mlflow_port}"], r"does not answer to this host name .*--allowed-hosts"),
        (["MLFLOW_TRACKING_PASSWORD=mistyped-password"], [], r"asks for a name and a password"),
    ],
    ids=["wrong secret key", "unknown key", "write among the shards", "MLflow by another name", "wrong password"],
)
def test_what_nodes_may_not_do_is_one_line(
    cluster: Cluster, servers: Servers, faces: str, variables: list[str], more: list[str], said: str
) -> None:
    port = servers.mlflow.rpartition(":")[2]
    words = ["env", *variables, "python", "-m", "hmtl_dist", "train", "demo", *settings("refused")]
    job = plain(cluster, *words, *(one.format(mlflow_port=port) for one in more))

    assert job.returncode != 0
    errors = list(
        dict.fromkeys(line for line in job.stdout.splitlines() if line.startswith("error: "))
    )  # Ray says it twice
    assert len(errors) == 1, job.stdout + job.stderr
    assert re.search(said, errors[0]), errors
    assert "Traceback" not in job.stdout
    assert "mistyped" not in errors[0]
    _, jobs = get(f"{cluster.dashboard}/api/jobs/", cluster.token.read_text())
    last = max(json.loads(jobs), key=lambda one: one["start_time"])
    assert last["driver_exit_code"] == 2
    kept = [info.key for info in S3Storage("s3://hmtl-runs", servers.access("admin")).list() if "refused" in info.key]
    assert kept == []
