"""Server processes that outlive the command that starts them: started detached, recognised again, stopped by pid."""

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from hmtl_dist.config.base import Section
from hmtl_dist.errors import UserError

STOP_SECONDS = 5.0
"""How long a server may take to end by itself before it is killed, which loses nothing that was acknowledged."""
# SeaweedFS also listens at every port + 10000, and both must lie below the ports the system gives to outgoing
# connections (from 32768 on), or one of those could take it between the check and the start.
_PORTS = range(10_000, 20_000)
_HOST = "127.0.0.1"


class ServerProcess(Section):
    """How a started server is recognised: a process id alone may have been given to another program since."""

    pid: int
    """Process id, also of its session and its process group."""
    started: float
    """When it was started, in seconds since the epoch, as the system counts it."""
    mark: str
    """An argument of its command line."""


class Server(Section):
    """A started server: its process, and its ports on loopback, the one for clients first."""

    process: ServerProcess
    ports: tuple[int, ...]

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://{_HOST}:{self.ports[0]}"


def launch(
    command: Sequence[str], *, mark: str, log: Path, folder: Path, environment: Mapping[str, str]
) -> ServerProcess:
    """Starts a server in a session of its own, its output appended to `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    server = ServerProcess(pid=process.pid, started=psutil.Process(process.pid).create_time(), mark=mark)
    # For a moment after it was started a process has no command line yet, and would not be recognised.
    while process.poll() is None and not is_running(server):
        time.sleep(0.001)
    # The server is meant to go on: Popen should neither wait for it nor warn that nobody did.
    process.returncode = 0
    return server


def is_running(server: ServerProcess) -> bool:
    """Says whether the server's own process is alive."""
    leader = _process(server.pid)
    return leader is not None and _is_leader(leader, server)


def is_listening(server: Server) -> bool:
    """Says whether somebody takes connections at the server's first port."""
    try:
        socket.create_connection((_HOST, server.ports[0]), timeout=1.0).close()
    except OSError:
        return False
    return True


def stop(server: ServerProcess, grace_seconds: float = STOP_SECONDS) -> bool:
    """Ends a server and what it started, and says whether there was any of it.

    Args:
        server: As it was launched; a stranger that only has its process id is left alone.
        grace_seconds: How long it may take to end by itself before it is killed.

    Raises:
        UserError: It does not end, or belongs to another user.
    """
    members = _members(server)
    if not members:
        return False
    try:
        for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, STOP_SECONDS)):
            for member in members:
                with suppress(psutil.NoSuchProcess):
                    member.send_signal(number)
            _, members = psutil.wait_procs(members, timeout=seconds)
            if not members:
                return True
    except psutil.AccessDenied:
        raise UserError(f"process {server.pid} belongs to another user: ask them to stop it") from None
    raise UserError(f"process {server.pid} does not end: stop it by hand")


def _process(pid: int) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.NoSuchProcess:
        return None


def _is_leader(process: psutil.Process, server: ServerProcess) -> bool:
    try:
        return abs(process.create_time() - server.started) < 2.0 and server.mark in process.cmdline()
    except psutil.Error:
        return False


def _members(server: ServerProcess) -> list[psutil.Process]:
    """The processes of the server's session, also after its first process has died.

    While any of them lives, the system gives the session's id to no other process.
    """
    leader = _process(server.pid)
    if leader is not None and not _is_leader(leader, server):
        return []
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == server.pid and process.create_time() >= server.started - 2.0:
                found.append(process)
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue
    return found


def free_ports(count: int, wanted: Sequence[int] = ()) -> tuple[int, ...]:
    """Finds loopback ports that are free together with the ports 10,000 above them.

    Args:
        count: How many.
        wanted: The ones of the last time, taken again if they are all free, so that addresses stay valid.

    Raises:
        UserError: There are none.
    """
    if len(wanted) == count and all(_is_free(port) for port in wanted):
        return tuple(wanted)
    candidates = random.SystemRandom().sample(_PORTS, 200)
    found = [port for port in candidates if _is_free(port)][:count]
    if len(found) < count:
        raise UserError(f"no {count} free ports at {_HOST}: stop what listens there")
    return tuple(found)


def _is_free(port: int) -> bool:
    for number in (port, port + 10_000):
        with socket.socket() as probe:
            # A server restarted at once must not stumble over connections that are still closing.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, number))
            except OSError:
                return False
    return True
