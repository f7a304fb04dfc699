"""The servers of a cluster as the compose file starts them: S3, MLflow with passwords on a real PostgreSQL."""

import configparser
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from hmtl_dist.data.storage import S3Access, S3Storage
from hmtl_dist.services.process import free_ports

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
POSTGRES = next(
    (
        folder
        for folder in (*Path("/usr/lib/postgresql").glob("*/bin"), Path("/usr/bin"))
        if (folder / "initdb").exists()
    ),
    None,
)


@dataclass(frozen=True)
class Servers:
    s3: str
    mlflow: str
    secrets: Path
    postgres: str
    """How PostgreSQL's own programs reach MLflow's database; its password is a secret's file."""

    def access(self, identity: str) -> S3Access:
        keys = configparser.ConfigParser()
        keys.read(self.secrets / f"aws_{identity}")
        return S3Access(self.s3, keys["default"]["aws_access_key_id"], keys["default"]["aws_secret_access_key"])

    def environment(self, identity: str) -> dict[str, str]:
        """The variables with which somebody comes to S3 and MLflow."""
        access, users = self.access(identity), configparser.ConfigParser()
        users.read(self.secrets / "mlflow_credentials")
        return {
            "AWS_ENDPOINT_URL": access.endpoint,
            "AWS_ACCESS_KEY_ID": access.access_key_id,
            "AWS_SECRET_ACCESS_KEY": access.secret_access_key,
            "AWS_REGION": "us-east-1",
            "MLFLOW_TRACKING_URI": self.mlflow,
            "MLFLOW_TRACKING_USERNAME": users["mlflow"]["mlflow_tracking_username"],
            "MLFLOW_TRACKING_PASSWORD": users["mlflow"]["mlflow_tracking_password"],
        }

    def bucket(self, name: str, identity: str) -> S3Storage:
        return S3Storage(f"s3://{name}", self.access(identity), patience_seconds=0.0)


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_"))} | more


@contextmanager
def started(
    command: Sequence[str], ready: Callable[[], bool], log: Path, variables: Mapping[str, str], user: str | None = None
) -> Generator[None]:
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=variables, user=user)
    try:
        deadline = time.monotonic() + 120
        while not ready():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def answer(url: str, host: str | None = None) -> int:
    """The HTTP status of a request for which nobody has signed in, 0 while nobody listens."""
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@contextmanager
def postgres(folder: Path, password: str, port: int) -> Generator[None]:
    """A real PostgreSQL, which never runs as root."""
    assert POSTGRES is not None
    user = "nobody" if os.getuid() == 0 else None
    data = folder / "data"
    data.mkdir()
    (folder / "password").write_text(password)
    if user:
        for path in (folder, data, folder / "password"):
            shutil.chown(path, user)
    init = [str(POSTGRES / "initdb"), "-D", str(data), "-U", "mlflow", "--auth=scram-sha-256", "--no-sync"]
    subprocess.run([*init, f"--pwfile={folder}/password"], check=True, capture_output=True, user=user)
    command = [str(POSTGRES / "postgres"), "-D", str(data), "-p", str(port), "-k", str(folder), "-h", "127.0.0.1"]
    with started([*command, "-F"], lambda: listening(port), folder / "log", environment(), user):
        deadline = time.monotonic() + 30
        while True:
            try:
                connection = psycopg.connect(
                    host="127.0.0.1", port=port, user="mlflow", password=password, dbname="postgres", autocommit=True
                )
                break
            except psycopg.OperationalError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        with connection:
            connection.execute("CREATE DATABASE mlflow")
        yield


@contextmanager
def compose_servers(*names: str) -> Generator[Servers]:
    """All of them, with their secrets; skips the test where PostgreSQL is not installed.

    Args:
        names: Further host names that MLflow answers to.
    """
    if POSTGRES is None:
        pytest.skip("PostgreSQL is not installed")
    compose: dict[str, Any] = yaml.safe_load((CLUSTER / "compose.yaml").read_text())["services"]
    folder = Path(tempfile.mkdtemp(prefix="hmtl-cluster-", dir="/tmp"))
    folder.chmod(0o711)
    secrets = folder / "secrets"
    subprocess.run([sys.executable, str(CLUSTER / "make_secrets.py"), str(secrets)], check=True, capture_output=True)
    ports = free_ports(7)
    s3_port, mlflow_port, postgres_port = ports[:3]
    replaced = {"-dir": folder / "s3", "-ip": "127.0.0.1", "-ip.bind": "127.0.0.1", "-s3.port": s3_port}
    replaced |= {"-s3.config": secrets / "s3_identities.json"}
    weed = [
        f"{name}={replaced.get(name, value)}"
        if (name := word.partition("=")[0]) and (value := word.partition("=")[2])
        else word
        for word in compose["s3"]["command"]
    ]
    weed += [
        f"-{name}.port={port}" for name, port in zip(("master", "volume", "filer", "admin"), ports[3:], strict=True)
    ]
    (folder / "s3").mkdir()
    (folder / "postgres").mkdir()
    hosts = f"127.0.0.1:{mlflow_port}"
    addresses = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3_port}",
        "MLFLOW_TRACKING_URI": f"http://{hosts}",
        "MLFLOW_SECRETS": str(secrets),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(CLUSTER.parent),
    }
    mlflow = compose["mlflow"]["environment"] | addresses
    allowed = ",".join([hosts, *(f"{name}:{mlflow_port}" for name in names)])
    mlflow |= {"MLFLOW_ALLOWED_HOSTS": allowed, "POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(postgres_port)}
    mlflow |= {"MLFLOW_HOST": "127.0.0.1", "MLFLOW_PORT": str(mlflow_port), "MLFLOW_WORKERS": "1"}
    mlflow |= {"AWS_SHARED_CREDENTIALS_FILE": str(secrets / "aws_mlflow")}
    setup = compose["setup"]["environment"] | addresses | {"AWS_SHARED_CREDENTIALS_FILE": str(secrets / "aws_admin")}
    database = f"host=127.0.0.1 port={postgres_port} user=mlflow dbname=mlflow"
    found = Servers(addresses["AWS_ENDPOINT_URL"], addresses["MLFLOW_TRACKING_URI"], secrets, database)

    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        password = (secrets / "postgres_password").read_text()
        stack.enter_context(postgres(folder / "postgres", password, postgres_port))
        path = {"PATH": addresses["PATH"]}
        stack.enter_context(started(weed, lambda: listening(s3_port), folder / "s3.log", environment(**path)))
        health = f"{found.mlflow}/health"
        script = [str(CLUSTER / "services" / "mlflow.sh")]
        stack.enter_context(
            started(script, lambda: answer(health) == 200, folder / "mlflow.log", environment(**mlflow))
        )
        for _ in range(2):  # as on a cluster that is started again
            command = [sys.executable, str(CLUSTER / "services" / "setup.py")]
            done = subprocess.run(command, env=environment(**setup), capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
        yield found
        said = (folder / "mlflow.log").read_text() + (folder / "s3.log").read_text()
        for name in ("postgres_password", "mlflow_admin_password", "mlflow_secret_key"):
            assert (secrets / name).read_text() not in said
