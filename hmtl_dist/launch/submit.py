# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false
"""Sends a command to a Ray cluster as a job, follows it and stops it, through Ray's job client.

Whatever can be known before the job is sent is checked before: that the address is a cluster's, that the token is the
right one, that both sides run the same Ray. Nothing secret goes into a job: its command line, metadata and runtime
environment are shown to whoever may look at the dashboard.
"""

import asyncio
import http.client
import json
import logging
import os
import shlex
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit

from hmtl_dist.errors import UserError
from hmtl_dist.launch.failure import one_line
from hmtl_dist.launch.package import check_words, pack
from hmtl_dist.launch.ray_token import find_token
from hmtl_dist.temporary import temporary_folder

ANSWER_SECONDS = 10.0
"""How long a cluster may take to answer at all."""
STOP_SECONDS = 600
"""How long a job that is stopped has for its last checkpoint; Ray itself would kill it after 3 s."""
_PATIENCE_SECONDS = 60.0
"""How long a cluster may be away while a job is followed."""
_LOOK_SECONDS = 1.0
"""How often a job is looked at when its log has ended, or after the connection broke."""
_WRONG_ADDRESS = "give --address=http://HEAD:8265, the dashboard of the head (its port 6379 is another one)"
_WRONG_TOKEN = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE with the cluster's token"


@dataclass(frozen=True)
class Ended:
    """A job that is over."""

    code: int
    """Exit code for whoever waited: the command's own, 130 for one that was stopped."""
    said: str
    """One line about it."""


def find_address(given: str | None, environment: Mapping[str, str]) -> str:
    """Return the URL of a cluster's dashboard: the one given, else RAY_API_SERVER_ADDRESS or RAY_ADDRESS.

    Raises:
        UserError: There is none, or it is no address of this kind.
    """
    address = given or environment.get("RAY_API_SERVER_ADDRESS") or environment.get("RAY_ADDRESS")
    if not address:
        raise UserError(f"--address: not given, and RAY_ADDRESS is not set; {_WRONG_ADDRESS}")
    address = (address if "://" in address else f"http://{address}").rstrip("/")
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        parts, good = None, False
    if not good or parts is None:
        raise UserError(f"--address: given '{one_line(ValueError(address)).partition(': ')[2]}'; {_WRONG_ADDRESS}")
    if "@" in parts.netloc:
        raise UserError(f"--address: leave name and password out of it; {_WRONG_TOKEN}")
    return address


def check_cluster(address: str) -> None:
    """See whether a cluster answers, takes our token and runs the same Ray.

    Raises:
        UserError: One of them is not so; the message says what to do.
    """
    token = find_token(os.environ)
    try:
        version = _ray_version(address, token)
    except urllib.error.HTTPError as error:
        with error:
            raise UserError(_refused(address, error.code, bool(token))) from error
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        said = one_line(reason) if isinstance(reason, Exception) else str(reason)
        raise UserError(f"no Ray cluster answers at '{address}' ({said}); {_WRONG_ADDRESS}") from error
    own = metadata.version("ray")
    if version != own:
        raise UserError(
            f"the cluster at '{address}' runs Ray {version}, this machine {own}; install one and the same on both: "
            "pip install -c constraints.txt 'ray[default,train,tune]'"
        )


def lets_in(address: str, *, token: str | None) -> bool:
    """Say whether a cluster that answers does so with this token, or without one."""
    try:
        _ray_version(address, token)
    except urllib.error.HTTPError as error:
        error.close()
        return False
    return True


def _ray_version(address: str, token: str | None) -> str:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{address}/api/version", headers=headers)
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
        return json.loads(answer.read())["ray_version"]


def _refused(address: str, status: int, has_token: bool) -> str:
    if status == http.HTTPStatus.UNAUTHORIZED and not has_token:
        return f"the cluster at '{address}' asks for a token and none was found; {_WRONG_TOKEN}"
    if status in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
        return f"the cluster at '{address}' does not take the token that was found; {_WRONG_TOKEN}"
    return f"no Ray cluster answers at '{address}' (HTTP status {status}); {_WRONG_ADDRESS}"


def send(address: str, words: Sequence[str], files: Mapping[str, str]) -> str:
    """Send `python -m hmtl_dist WORDS` to a cluster and return the job's id.

    Args:
        address: As `find_address` returns it.
        words: The command line behind the program's name.
        files: Text of the user's own files, by the relative path that `words` call them by.

    Raises:
        UserError: The cluster does not take it, or there is something in it that must not be sent.
    """
    check_words(words)
    check_cluster(address)
    job_id = f"hmtl-{words[0]}-{time.strftime('%Y%m%d-%H%M%S')}-{token_hex(3)}"
    with temporary_folder("job") as folder:
        pack(folder, files)
        runtime_env = {"working_dir": str(folder), "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}}
        entrypoint = shlex.join(["python", "-m", "hmtl_dist", *words])
        try:
            _client(address).submit_job(entrypoint=entrypoint, submission_id=job_id, runtime_env=runtime_env)
        except _trouble() as error:
            raise UserError(f"the cluster at '{address}' did not take the job ({one_line(error)})") from error
    return job_id


class Job:
    """A job of a cluster, by its id.

    Args:
        address: As `find_address` returns it.
        job_id: As `send` returned it.

    Raises:
        UserError: The cluster knows none of this id, or does not answer.
    """

    def __init__(self, address: str, job_id: str) -> None:
        self._address = address
        self._id = job_id
        self._written = 0
        self._client = _client(address)
        try:
            self._details()
        except _trouble() as error:
            raise self._unknown(error) from error

    def stop(self) -> bool:
        """Ask it to stop in order, with a checkpoint; return whether it was running.

        Raises:
            UserError: The cluster does not answer.
        """
        try:
            return self._client.stop_job(self._id)
        except _trouble() as error:
            raise self._unknown(error) from error

    def follow(self, write: Callable[[str], None]) -> Ended:
        """Pass on what it prints until it is over, from the beginning, or from where an earlier call was interrupted.

        A connection that breaks is made again, and nothing is written twice.

        Raises:
            UserError: The cluster is gone.
        """
        lost_at: float | None = None
        while True:
            try:
                details = self._details()
                if details.status != "PENDING":
                    asyncio.run(self._tail(write))
                    details = self._details()
            except _trouble() as error:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > _PATIENCE_SECONDS:
                    raise self._lost(error) from error
            else:
                lost_at = None
                if details.status not in ("PENDING", "RUNNING"):
                    return _ended(details, self._id)
            time.sleep(_LOOK_SECONDS)  # a log ends a moment before its job

    async def _tail(self, write: Callable[[str], None]) -> None:
        """Write what the log holds beyond what was written before, until it ends."""
        seen = 0
        async for text in self._client.tail_job_logs(self._id):
            seen += len(text)
            if seen > self._written:
                new = text[-(seen - self._written) :]
                self._written = seen
                write(new)

    def _details(self) -> Any:
        return self._client.get_job_info(self._id)

    def _unknown(self, error: Exception) -> UserError:
        if "404" in str(error) or "does not exist" in str(error):
            return UserError(f"job '{self._id}': the cluster at '{self._address}' knows none of this name")
        return UserError(f"the cluster at '{self._address}' does not answer ({one_line(error)})")

    def _lost(self, error: Exception) -> UserError:
        return UserError(
            f"the cluster at '{self._address}' has not answered for {_PATIENCE_SECONDS:.0f} s "
            f"({type(error).__name__}); if its head is gone, so is the job, and the same command again goes on from "
            "its last checkpoint; else: "
            f"hmtl-dist submit --address={self._address} --follow {self._id}"
        )


# --- Ray's client ------------------------------------------------------------------------------------------------


def _client(address: str) -> Any:
    # Ray reads these when it is imported, and puts what the environment says over the argument.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    os.environ.setdefault("RAY_AUTH_MODE", "token" if find_token(os.environ) else "disabled")
    from ray.job_submission import JobSubmissionClient

    for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except _trouble() as error:
        raise UserError(f"the cluster at '{address}' does not answer ({one_line(error)})") from error


def _trouble() -> tuple[type[Exception], ...]:
    """Return what Ray's client raises when a cluster refuses or is away."""
    import aiohttp
    from ray.exceptions import AuthenticationError
    from requests.exceptions import RequestException

    return (
        AuthenticationError,
        RequestException,
        aiohttp.ClientError,
        ConnectionError,
        RuntimeError,
        TimeoutError,
        socket.gaierror,
    )


def _ended(details: Any, job_id: str) -> Ended:
    if details.status == "SUCCEEDED":
        return Ended(0, f"job {job_id} succeeded")
    if details.status == "STOPPED":
        return Ended(130, f"job {job_id} was stopped; the same command again goes on")
    code: int | None = details.driver_exit_code
    if code is None:
        said = " ".join(str(details.message or "no reason is given").split())
        return Ended(1, f"job {job_id} did not run: {one_line(RuntimeError(said)).partition(': ')[2]}")
    return Ended(code if 0 < code < 256 else 1, f"job {job_id} failed with exit code {code}")
