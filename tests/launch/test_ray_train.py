"""Real Ray, in a process of the test's own: it takes over signals and the environment."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hmtl_dist.launch.signals import SAME_SECONDS
from tests.launch.drive import MAX_FAILURES
from tests.processes import command_line

Drive = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def drive(tmp_path: Path) -> Generator[Drive]:
    """Starts `tests.launch.drive` in a process group of its own, as a terminal would."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.launch.drive", *arguments],
            env=os.environ | {"HMTL_HOME": str(tmp_path / "home")} | environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def ends(process: "subprocess.Popen[str]", timeout: float = 280) -> list[dict[str, Any]]:
    """What the process says until it is over; Ray's own lines have no brace in front."""
    output, _ = process.communicate(timeout=timeout)
    return [json.loads(text) for text in output.splitlines() if text.startswith("{")]


def processes_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Ray's servers and workers under a driver; the workers come and go."""
    return psutil.Process(process.pid).children(recursive=True)


def first_progress(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    for text in process.stdout:
        if text.startswith('{"progress"'):
            return
    pytest.fail("it ended before any progress")


def gone(processes: list[psutil.Process], timeout: float = 30) -> bool:
    return not psutil.wait_procs(processes, timeout=timeout)[1]


@pytest.mark.nightly
def test_ranks_find_each_other_and_report_to_the_driver(drive: Drive, tmp_path: Path) -> None:
    said = ends(drive("ray", "sum_of_ranks"))

    assert [line["progress"] for line in said[:-1]] == [1, 2, 3]
    assert said[-1]["outcome"]["metrics"] == {"sum": 3.0, "seed": 5.0}
    scratch = tmp_path / "home" / "runs" / "toy"
    assert [(scratch / f"rank-{rank}" / "threads").read_text() for rank in (0, 1)] == ["1", "1"]


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_process_group_reaches_the_workers_as_a_request_and_leaves_nothing_behind(
    drive: Drive, number: signal.Signals
) -> None:
    process = drive("ray", "until_stopped")
    first_progress(process)
    processes = processes_of(process)
    os.killpg(process.pid, number)  # Ctrl-C, `timeout` or a batch system, a closed terminal

    assert ends(process)[-1]["outcome"]["status"] == "STOPPED"
    assert gone(processes)


@pytest.mark.nightly
def test_a_second_ctrl_c_does_not_wait(drive: Drive) -> None:
    process = drive("ray", "never_stops")
    first_progress(process)
    processes = processes_of(process)
    process.send_signal(signal.SIGINT)
    time.sleep(SAME_SECONDS + 1)
    process.send_signal(signal.SIGTERM)

    ends(process)
    assert process.returncode != 0
    assert gone(processes)


@pytest.mark.nightly
def test_a_killed_driver_takes_its_ray_along(drive: Drive) -> None:
    process = drive("ray", "never_stops")
    first_progress(process)
    processes = processes_of(process)
    folders = set(re.findall(r"/tmp/hmtl_tmp-ray-\w+", " ".join(map(command_line, processes))))
    process.kill()

    assert gone(processes, timeout=120)  # Ray's agents give up after a minute
    for folder in folders:  # which the driver would have removed
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.nightly
@pytest.mark.timeout(600)  # three trainings
def test_what_breaks_in_a_worker_is_one_line_for_the_driver(drive: Drive) -> None:
    said = ends(drive("shared", "user_mistake", "bug", "dies"), timeout=580)

    assert [(line["error"], line["message"].removeprefix("rank 1: ")) for line in said] == [
        ("UserError", "data.url: nothing there; build it first"),
        ("TrainingError", "ZeroDivisionError: by zero"),
        ("TrainingError", "its process died (it crashed or was killed, for memory perhaps)"),
    ]


@pytest.mark.nightly
def test_workers_of_an_own_ray_have_the_environment_and_folder_of_the_driver(drive: Drive, tmp_path: Path) -> None:
    ends(drive("ray", "environment", AWS_ACCESS_KEY_ID="some-key"))

    found = (tmp_path / "home" / "runs" / "toy" / "rank-1" / "environment").read_text()
    assert found == f"{Path.cwd()}\nsome-key"


@pytest.mark.nightly
def test_a_cluster_that_is_not_there_is_told_in_one_line(drive: Drive) -> None:
    said = ends(drive("ray", "sum_of_ranks", RAY_ADDRESS="127.0.0.1:1"))

    assert said[0]["error"] == "UserError"
    assert said[0]["message"].startswith("no Ray cluster answers at '127.0.0.1:1'")
    assert "\n" not in said[0]["message"]


@pytest.mark.nightly
def test_workers_that_died_are_started_again(drive: Drive) -> None:
    said = ends(drive("ray", "dies_once", **{MAX_FAILURES: "2"}))

    assert said[-1]["outcome"]["metrics"] == {"starts": 2.0, "ranks": 2.0}


@pytest.mark.nightly
def test_what_starting_again_cannot_mend_is_not_tried_again(drive: Drive, tmp_path: Path) -> None:
    said = ends(drive("ray", "counted_mistake", **{MAX_FAILURES: "5"}))

    assert (said[-1]["error"], said[-1]["message"]) == ("UserError", "data.url: nothing there; build it first")
    assert (tmp_path / "home" / "runs" / "toy" / "rank-1" / "starts").read_text() == "."
