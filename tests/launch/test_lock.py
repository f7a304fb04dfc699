"""One run of a name at a time, in a folder and on S3."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hmtl_dist.data.storage import open_storage
from hmtl_dist.errors import UserError
from hmtl_dist.launch import lock
from hmtl_dist.launch.lock import only_one
from tests.servers import S3Server


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("PATIENCE", 0.5), ("RENEW", 0.3), ("STALE", 2.0), ("LOOK", 0.1)):
        monkeypatch.setattr(lock, f"{name}_SECONDS", seconds)


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_second_start_in_a_folder_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    with (
        only_one(str(tmp_path), "run"),
        pytest.raises(UserError, match=r"^run 'run' is being trained by process \d+ on .*name=run-2$"),
        only_one(str(tmp_path), "run"),
    ):
        pass
    with only_one(str(tmp_path), "run"):
        pass


def test_a_second_start_on_s3_is_refused_while_the_first_renews_its_lease(
    s3_env: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STALE_SECONDS", 60.0)
    url = f"{s3_env.bucket()}/run"
    with (
        only_one(url, "run"),
        pytest.raises(UserError, match=r"^run 'run' is being trained by process \d+ on "),
        only_one(url, "run"),
    ):
        pass
    assert not open_storage(url).exists(lock.LOCK)


@pytest.mark.parametrize("host", ["here", "elsewhere"])
def test_the_lease_of_a_dead_process_is_taken_over(
    s3_env: S3Server, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{s3_env.bucket()}/run"
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    left = {"host": host, "pid": dead_process(), "token": "another"}
    open_storage(url).write(lock.LOCK, json.dumps(left).encode())
    with only_one(url, "run"):
        assert json.loads(open_storage(url).read(lock.LOCK))["token"] != "another"
