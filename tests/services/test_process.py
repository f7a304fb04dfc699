"""Processes: recognised by more than their number, ended with all they started."""

import os
import socket
import sys
import time
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest

from hmtl_dist.services.process import ServerProcess, free_ports, is_running, launch, stop

_SLEEP = "import time; time.sleep(60)"
_PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_SLEEP!r}])"


@pytest.fixture
def server(tmp_path: Path) -> Generator[ServerProcess]:
    """A running process with a child."""
    server = _launch(tmp_path)
    yield server
    stop(server)


def _launch(folder: Path) -> ServerProcess:
    command = [sys.executable, "-c", _PARENT, "mark"]
    server = launch(command, mark="mark", log=folder / "log", folder=folder, environment=dict(os.environ))
    deadline = time.monotonic() + 30
    while not psutil.Process(server.pid).children() and time.monotonic() < deadline:
        time.sleep(0.01)
    return server


def test_a_launched_process_is_running_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _SLEEP, "mark"]
    server = launch(command, mark="mark", log=tmp_path / "log", folder=tmp_path, environment=dict(os.environ))
    assert is_running(server)
    stop(server)


def test_it_has_a_session_of_its_own(server: ServerProcess) -> None:
    assert os.getsid(server.pid) == server.pid


def test_stop_ends_it_and_its_child(server: ServerProcess) -> None:
    (child,) = psutil.Process(server.pid).children()
    assert stop(server)
    assert not is_running(server)
    assert not child.is_running()


def test_stopping_again_says_that_there_was_nothing(server: ServerProcess) -> None:
    stop(server)
    assert not stop(server)


def test_stop_ends_what_a_dead_server_has_left_behind(server: ServerProcess) -> None:
    (child,) = psutil.Process(server.pid).children()
    psutil.Process(server.pid).kill()
    psutil.wait_procs([psutil.Process(server.pid)])
    assert stop(server)
    assert not child.is_running()


@pytest.mark.parametrize("difference", [{"started": 1.0}, {"mark": "another"}])
def test_a_process_that_only_has_the_number_is_left_alone(
    server: ServerProcess, difference: dict[str, float | str]
) -> None:
    stranger = server.model_copy(update=difference)
    assert not is_running(stranger)
    assert not stop(stranger)
    assert is_running(server)


def test_a_program_that_ends_at_once_is_not_running(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "", "mark"]
    server = launch(command, mark="mark", log=tmp_path / "log", folder=tmp_path, environment=dict(os.environ))
    deadline = time.monotonic() + 30
    while is_running(server) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(server)


def test_wanted_ports_are_given_again() -> None:
    ports = free_ports(3)
    assert free_ports(3, ports) == ports


@pytest.mark.parametrize("offset", [0, 10_000])
def test_a_port_in_use_is_not_given_again(offset: int) -> None:
    ports = free_ports(2)
    with socket.create_server(("127.0.0.1", ports[1] + offset)):
        assert ports[1] not in free_ports(2, ports)
