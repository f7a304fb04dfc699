"""The local services: started once, found again, private, stopped."""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from hmtl_dist.cli.app import app as whole_app
from hmtl_dist.cli.services import app
from hmtl_dist.data.storage import open_storage
from hmtl_dist.errors import UserError
from hmtl_dist.services import ServicesInfo, running, seaweedfs, services_status, start_services, stop_services
from hmtl_dist.services.store import known_mlflow, use_local


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """A home whose services are started by the first test that needs them."""
    home = tmp_path_factory.mktemp("services-home")
    yield home
    stop_services(home)


@pytest.fixture
def services(home: Path) -> ServicesInfo:
    """Both servers, running."""
    return start_services(home)


@pytest.fixture
def command(home: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    """The command line, in this home."""
    monkeypatch.setenv("HMTL_HOME", str(home))
    return CliRunner()


def _use(services: ServicesInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in services.env().items():
        monkeypatch.setenv(name, value)


def test_the_environment_leads_to_a_bucket(services: ServicesInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(services, monkeypatch)
    root = open_storage(f"{services.bucket_url}/test")
    root.write("object", b"x")
    assert root.read("object") == b"x"


def test_commands_without_the_environment_find_the_mlflow_that_runs(
    home: Path, services: ServicesInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HMTL_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert known_mlflow().uri == services.tracking_uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert known_mlflow().uri is None  # what the environment says


def test_the_number_of_buckets_is_not_the_disk_s_free_space(home: Path, services: ServicesInfo) -> None:
    """Each takes a volume, of which the server's master knows how many there may be."""
    port = json.loads((home / "services" / "services.json").read_text())["servers"]["s3"]["ports"][1]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/dir/status") as answer:
        topology = json.load(answer)["Topology"]
    assert topology["Max"] == seaweedfs.MAX_BUCKETS
    assert topology["Free"] > 1000


def test_a_leftover_session_token_does_no_harm(services: ServicesInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of another account")
    _use(services, monkeypatch)
    assert not open_storage(services.bucket_url).exists("nothing")


def test_mlflow_answers_and_shows_its_page(services: ServicesInfo) -> None:
    with urllib.request.urlopen(services.tracking_uri, timeout=20) as page:
        assert b"<html" in page.read()


@pytest.fixture
def bare(home: Path) -> Generator[None]:
    """An environment that leads to no S3 and no MLflow; what is set in it is gone afterwards."""
    before = dict(os.environ)
    leading = ("AWS_ACCESS", "AWS_SECRET", "AWS_ENDPOINT", "AWS_PROFILE", "MLFLOW_TRACKING")
    for name in [name for name in os.environ if name.startswith(leading)]:
        del os.environ[name]
    os.environ["HMTL_HOME"] = str(home)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.usefixtures("bare")
def test_a_command_uses_the_local_services_and_says_so(services: ServicesInfo) -> None:
    result = CliRunner().invoke(whole_app, ["data", "info", f"{services.bucket_url}/gone"])
    first, *rest = result.stderr.splitlines()
    assert first == "using the local S3 and MLflow (`hmtl-dist services stop` ends them)"
    assert [line for line in rest if "no data set at s3://hmtl/gone" in line] == rest  # it was let in
    assert os.environ["MLFLOW_TRACKING_URI"] == services.tracking_uri
    assert os.environ["AWS_ENDPOINT_URL"] == services.endpoint


@pytest.mark.usefixtures("bare", "services")
@pytest.mark.parametrize(
    ("variables", "used"),
    [
        ({}, ("S3", "MLflow")),
        ({"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}, ("S3",)),
        ({"AWS_PROFILE": "work"}, ("MLflow",)),
        ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}, ("MLflow",)),
        ({"AWS_ACCESS_KEY_ID": "k", "MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}, ()),
        ({"HOME": "{aws}", "AWS_SHARED_CREDENTIALS_FILE": ""}, ("MLflow",)),
        ({"HMTL_HOME": "{aws}"}, ()),
    ],
)
def test_what_is_set_comes_before_the_local_services(
    tmp_path: Path, variables: dict[str, str], used: tuple[str, ...]
) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[default]\n")
    os.environ.update({name: value.format(aws=tmp_path) for name, value in variables.items()})
    before = dict(os.environ)
    assert use_local() == used
    changed = {name for name in os.environ if os.environ[name] != before.get(name)}
    assert ("MLFLOW_TRACKING_URI" in changed) == ("MLflow" in used)
    assert ("AWS_ENDPOINT_URL" in changed) == ("S3" in used)


@pytest.mark.usefixtures("bare", "services")
def test_commands_that_need_no_store_say_nothing() -> None:
    assert CliRunner().invoke(whole_app, ["recipes", "ls"]).stderr == ""


def test_starting_again_starts_nothing(home: Path, services: ServicesInfo) -> None:
    again = start_services(home)
    assert again.started == ()
    assert again.env() == services.env()


def test_running_services_are_found_by_another_process(home: Path, services: ServicesInfo) -> None:
    program = (
        "import sys, json, pathlib; from hmtl_dist.services import running; "
        "print(json.dumps(running(pathlib.Path(sys.argv[1])).env()))"
    )
    answer = subprocess.run([sys.executable, "-c", program, str(home)], capture_output=True, check=True, text=True)
    assert json.loads(answer.stdout) == services.env()


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize("name", ["services.json", "s3.json"])
def test_files_with_credentials_are_private(home: Path, name: str) -> None:
    assert stat.S_IMODE((home / "services" / name).stat().st_mode) == 0o600


def test_no_command_line_and_no_log_holds_the_secret(home: Path, services: ServicesInfo) -> None:
    lines = [" ".join(psutil.Process(service.pid).cmdline()) for service in services_status(home)]
    logs = [service.log.read_text() for service in services_status(home)]
    assert services.secret_access_key not in "\n".join([*lines, *logs, repr(services)])


@pytest.mark.usefixtures("services")
def test_mlflow_runs_two_processes_and_no_more(home: Path) -> None:
    (server,) = (service for service in services_status(home) if service.name == "mlflow")
    assert len(psutil.Process(server.pid).children(recursive=True)) == 1


@pytest.mark.usefixtures("services")
def test_the_servers_listen_on_loopback_only(home: Path) -> None:
    found: set[str] = set()
    for service in services_status(home):
        leader = psutil.Process(service.pid)
        for process in [leader, *leader.children(recursive=True)]:
            found |= {link.laddr[0] for link in process.net_connections("inet") if link.status == psutil.CONN_LISTEN}
    assert found == {"127.0.0.1"}


@pytest.mark.usefixtures("services")
def test_status_as_json_says_what_runs(command: CliRunner) -> None:
    result = command.invoke(app, ["status", "--json"])
    assert {name: service["ready"] for name, service in json.loads(result.output).items()} == {
        "mlflow": True,
        "s3": True,
    }


def test_start_says_where_the_servers_are(services: ServicesInfo, command: CliRunner) -> None:
    lines = command.invoke(app, ["start"]).output.splitlines()
    assert lines[:2] == [
        f"S3      {services.endpoint}  was already running",
        f"MLflow  {services.tracking_uri}  was already running",
    ]


def test_env_is_evaluated_by_a_shell(services: ServicesInfo, command: CliRunner) -> None:
    result = command.invoke(app, ["env"])
    script = result.output + 'printf %s "$AWS_SECRET_ACCESS_KEY"'
    answer = subprocess.run(["sh", "-c", script], capture_output=True, check=True, text=True)
    assert answer.stdout == services.secret_access_key


@pytest.mark.nightly
def test_objects_and_addresses_outlive_a_restart(
    home: Path, services: ServicesInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(services, monkeypatch)
    open_storage(services.bucket_url).write("kept", b"x")
    assert sorted(stop_services(home)) == ["mlflow", "s3"]
    assert stop_services(home) == []
    assert running(home) is None
    again = start_services(home)
    assert again.env() == services.env()
    assert open_storage(again.bucket_url).read("kept") == b"x"


@pytest.mark.nightly
def test_a_port_taken_meanwhile_is_replaced(home: Path, services: ServicesInfo) -> None:
    stop_services(home)
    with socket.create_server(("127.0.0.1", int(services.endpoint.rpartition(":")[2]))):
        again = start_services(home)
    assert again.endpoint != services.endpoint
    assert again.tracking_uri == services.tracking_uri


def test_nothing_is_running_in_a_new_home(tmp_path: Path) -> None:
    assert running(tmp_path) is None


def test_stopping_in_a_new_home_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMTL_HOME", str(tmp_path))
    assert CliRunner().invoke(app, ["stop"]).output == "nothing was running\n"


def test_status_of_a_new_home_has_exit_code_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMTL_HOME", str(tmp_path))
    assert CliRunner().invoke(app, ["status"]).exit_code == 1


def test_env_without_services_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMTL_HOME", str(tmp_path))
    assert "hmtl-dist services start" in str(CliRunner().invoke(app, ["env"]).exception)


def test_a_server_that_is_not_installed_is_named_and_nothing_left_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_found(_program: str, path: str | None = None) -> None:
        del path

    monkeypatch.setattr(shutil, "which", not_found)
    with pytest.raises(UserError, match=r"pip install .*hmtl-dist\[local\]"):
        start_services(tmp_path)
    assert stop_services(tmp_path) == []


def test_a_damaged_record_is_one_line_without_its_content(tmp_path: Path) -> None:
    (tmp_path / "services").mkdir()
    (tmp_path / "services" / "services.json").write_text('{"identity": {"secret_access_key": "hush"}}')
    with pytest.raises(UserError, match="cannot be read") as caught:
        running(tmp_path)
    assert "hush" not in str(caught.value)


def test_a_home_that_cannot_be_one_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "home").write_bytes(b"")
    with pytest.raises(UserError, match="HMTL_HOME"):
        start_services(tmp_path / "home")
