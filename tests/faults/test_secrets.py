"""No secret is left anywhere by a run on Ray, whether it ends well or not; and nothing of it listens to the network."""

import base64
import re
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import yaml

from hmtl_dist.data.storage import S3Access, S3Storage
from hmtl_dist.services import mlflow, seaweedfs
from hmtl_dist.services.process import Server, stop
from hmtl_dist.services.seaweedfs import Identity
from tests.e2e.drawn import draw, tree
from tests.faults.chaos import Command
from tests.faults.leaks import Search, files_under, open_to_others
from tests.processes import process_name, session_of
from tests.servers import await_server

SECONDS = 600
SECRETS = {
    "the S3 key": "S3/planted+2b1f0c9de84a7",
    "the password in MLflow's address": "address-planted-5c0d33e1",
    "MLflow's password": "mlflow-planted-90b1fe27",
    "MLflow's token": "token-planted-4be1c08d",
    "a hub's token": "hub-planted-1177acd05e",
}
USER = Identity(name="user", access_key_id="PLANTEDUSER", secret_access_key=SECRETS["the S3 key"])


# --- the search finds what there is -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{}", "x{}y", "https://me:{}@host", "Basic {}"])
def test_the_search_finds_a_planted_leak_in_a_file(tmp_path: Path, form: str) -> None:
    secret = SECRETS["the S3 key"]
    text = form.format(base64.b64encode(f"me:{secret}".encode()).decode() if form == "Basic {}" else secret)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "run.log").write_bytes(b"\xff\0" + text.encode())
    search = Search(SECRETS)
    search.files(tmp_path)
    assert search.seen == {f"the S3 key in {tmp_path}/deep/run.log"}


def test_the_search_finds_a_planted_leak_in_a_command_line_and_an_open_port() -> None:
    program = "import socket, time; s = socket.socket(); s.bind(('0.0.0.0', 0)); s.listen(); print(1); time.sleep(60)"
    secret = SECRETS["MLflow's token"]
    with subprocess.Popen([sys.executable, "-uc", program, secret], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        search = Search(SECRETS)
        search.command_lines([psutil.Process(process.pid)])
        found = open_to_others([psutil.Process(process.pid)])
        process.kill()
    assert [where.partition(" in ")[0] for where in search.seen] == ["MLflow's token"]
    assert [where.partition(" at ")[2] for where in found] == ["0.0.0.0"]  # noqa: S104


# --- runs ---------------------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """A run that was looked at while it went, and everything it left."""

    code: int
    search: Search
    open: set[str]
    log: str
    ray_files: int
    """Files of Ray's own folder that were searched while the run went."""
    marked: set[str] = field(default_factory=set[str])
    """Names of the processes that were looked at."""


@dataclass(frozen=True)
class Place:
    """Servers that know the planted secrets, a data set, and the home of the runs."""

    folder: Path
    s3: Server
    mlflow: Server
    bucket: S3Storage

    def environment(self) -> dict[str, str]:
        address = self.mlflow.url.replace("://", "://me:" + SECRETS["the password in MLflow's address"] + "@")
        return {
            "HMTL_HOME": str(self.folder / "home"),
            "AWS_ENDPOINT_URL": self.s3.url,
            "AWS_ACCESS_KEY_ID": USER.access_key_id,
            "AWS_SECRET_ACCESS_KEY": USER.secret_access_key,
            "AWS_REGION": "us-east-1",
            "MLFLOW_TRACKING_URI": address,
            "MLFLOW_TRACKING_USERNAME": "me",
            "MLFLOW_TRACKING_PASSWORD": SECRETS["MLflow's password"],
            "MLFLOW_TRACKING_TOKEN": SECRETS["MLflow's token"],
            "HF_TOKEN": SECRETS["a hub's token"],
        }

    def watch(self, name: str, *overrides: str, kill: bool = False, **environment: str) -> Watched:
        """Runs a training to its end, looking at it all the time; `kill`: until its workers die."""
        log = self.folder / f"{name}.log"
        arguments = ("train", str(self.folder / "recipe.yaml"), f"name={name}", *overrides)
        command = Command(arguments, self.environment() | environment, log)
        journal = self.folder / "home" / "runs" / name / "rank-0" / "journal.jsonl"
        search, seen_open, names, ray_files = Search(SECRETS), set[str](), set[str](), set[Path]()
        deadline = time.monotonic() + SECONDS
        command.start()
        try:
            while command.code() is None:
                assert time.monotonic() < deadline, log.read_text()
                processes = command.marked()
                names |= {name for process in processes if (name := process_name(process))}
                search.command_lines(processes)
                seen_open |= open_to_others(processes)
                folders = ray_folders(processes)
                ray_files |= set(files_under(folders))
                search.files(*folders)
                if kill and journal.exists() and '"metrics"' in journal.read_text():
                    command.kill("workers")
                time.sleep(0.5)
            code = command.code()
            assert code is not None
        finally:
            command.close()
        said = log.read_text()
        told = journal.parent.parent / "log.txt"  # a run that is refused before it begins leaves no folder
        kept = re.findall(r"logs are kept in (\S+)", told.read_text()) if told.exists() else []
        search.text("the terminal", said.encode())
        search.files(self.folder / "home", self.folder / "mlflow", *map(Path, kept))
        search.objects(self.bucket)
        return Watched(code, search, seen_open, said, len(ray_files), names)


def ray_folders(processes: list[psutil.Process]) -> set[Path]:
    """The temporary folders that Ray's processes were started with."""
    found: set[Path] = set()
    for process in processes:
        try:
            found |= {Path(path) for path in re.findall(r"/tmp/hmtl_tmp-ray-\w+", " ".join(process.cmdline()))}
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Generator[Place]:
    folder = tmp_path_factory.mktemp("secrets")
    s3 = await_server(
        lambda: seaweedfs.start(folder / "s3", (USER,), log=folder / "s3.log"),
        lambda server: seaweedfs.is_ready(server, USER, "faces"),
        folder / "s3.log",
    )
    tracking = await_server(
        lambda: mlflow.start(folder / "mlflow", log=folder / "mlflow.log"), mlflow.is_ready, folder / "mlflow.log"
    )
    bucket = S3Storage("s3://faces", S3Access(s3.url, USER.access_key_id, USER.secret_access_key))
    found = Place(folder, s3, tracking, bucket)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in found.environment().items():
            patch.setenv(name, value)
        url = draw("s3://faces/drawn")
    sections = tree(
        url,
        tasks={"inpainting": None},
        engine={"kind": "deepspeed"},
        train={"epochs": 2, "evaluate_every_epochs": 2, "checkpoint_every_epochs": 1},
        launch={"kind": "ray", "num_workers": 2, "storage": "s3://faces/runs"},
        tracking={"enabled": True, "experiment": "secrets", "system_metrics": False},
    )
    (folder / "recipe.yaml").write_text(yaml.safe_dump(sections))
    yield found
    for server in (s3, tracking):
        stop(server.process, grace_seconds=0.0)
    seaweedfs.clean_up(s3)


@pytest.fixture(scope="module")
def well(place: Place) -> Watched:
    return place.watch("well")


@pytest.mark.nightly
@pytest.mark.timeout(2 * SECONDS)
def test_a_run_that_ends_well_leaves_no_secret(well: Watched) -> None:
    assert well.code == 0, well.log
    assert well.ray_files > 5
    assert len(well.marked) > 3
    assert well.search.looked_at > 100
    assert well.search.seen == set()


@pytest.mark.nightly
@pytest.mark.timeout(2 * SECONDS)
def test_nothing_of_a_run_listens_to_the_network(well: Watched) -> None:
    assert well.open == set()


@pytest.mark.nightly
def test_nothing_of_the_services_listens_to_the_network(place: Place) -> None:
    sessions = {place.s3.process.pid, place.mlflow.process.pid}
    members = [process for process in psutil.process_iter() if session_of(process) in sessions]
    assert len(members) >= 2
    assert open_to_others(members) == set()


@pytest.mark.nightly
@pytest.mark.timeout(2 * SECONDS)
def test_a_run_that_loses_its_workers_leaves_no_secret(place: Place) -> None:
    lost = place.watch("lost", "launch.max_failures=0", "train.epochs=1000", kill=True)
    assert lost.code not in (0, None), lost.log
    assert "died" in lost.log, lost.log
    assert lost.ray_files > 5
    assert lost.search.looked_at > 100
    assert lost.search.seen == set()


@pytest.mark.nightly
@pytest.mark.timeout(2 * SECONDS)
def test_a_run_that_is_refused_by_the_storage_leaves_no_secret(place: Place) -> None:
    refused = place.watch("refused", "data.url=s3://nothing/there", "launch.kind=local", "launch.num_workers=1")
    assert refused.code == 2, refused.log
    assert refused.search.seen == set()
