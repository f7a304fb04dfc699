"""One run of a name at a time: a second start is refused, the lock of a dead one is taken over.

In a local folder the lock is the kernel's (`flock`), which ends with its process. On S3 it is a lease: an object that
only one can create (conditional PUT) and that its holder renews; whoever sees it unchanged for long enough, or knows
its process to be dead, takes it over by a PUT on the condition that it is still the same.
"""

import fcntl
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import psutil

from hmtl_dist.config.dialect import parse_json
from hmtl_dist.data.storage import ObjectMissingError, S3Storage
from hmtl_dist.errors import UserError

LOCK = "lock"
PATIENCE_SECONDS = 5.0
"""How long a start waits for a local lock: a run that was just stopped may be about to end."""
RENEW_SECONDS = 10.0
STALE_SECONDS = 35.0
"""A lease unchanged for so long has no holder any more."""
LOOK_SECONDS = 0.5

logger = logging.getLogger(__name__)


@contextmanager
def only_one(folder: str, name: str) -> Generator[None]:
    """Hold a run's lock while the block runs.

    Args:
        folder: Folder or URL of the run.
        name: What the run is called, for people.

    Raises:
        UserError: Another process trains the run.
    """
    holder = _Lease(S3Storage(folder), name).hold() if folder.startswith("s3:") else _file_lock(Path(folder), name)
    with holder:
        yield


def is_held(folder: Path) -> bool:
    """Whether a process of this machine holds the lock of a run in a folder."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _me() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _taken(name: str, holder: dict[str, Any]) -> UserError:
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
    return UserError(
        f"run '{name}' is being trained by {who}: wait for it or stop it, or give this run another name, such as "
        f"name={name}-2"
    )


@contextmanager
def _file_lock(folder: Path, name: str) -> Generator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    raise _taken(name, _parsed(file.read())) from None
                time.sleep(LOOK_SECONDS)
        file.seek(0)
        file.truncate()
        file.write(json.dumps(_me()))
        file.flush()
        yield


class _Lease:
    """The lock of a run on S3."""

    def __init__(self, storage: S3Storage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._content = {**_me(), "token": uuid.uuid4().hex}
        self._beats = 0
        self._etag: str | None = None
        self._over = threading.Event()

    @contextmanager
    def hold(self) -> Generator[None]:
        self._acquire()
        renewing = threading.Thread(target=self._renew, name="lease", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            self._over.set()
            renewing.join()
            try:  # not for long: where the storage is away, that is why the run ends, and the lease grows stale
                S3Storage(self._storage.url, patience_seconds=PATIENCE_SECONDS).delete(LOCK)
            except UserError as error:
                logger.warning("cannot remove the lock of run '%s': %s", self._name, error)

    def _acquire(self) -> None:
        etag: str | None = None
        while not self._put(etag):
            etag, holder = self._look()
            mine = holder.get("token") == self._content["token"]  # the answer to our own PUT was lost
            if etag is not None and not mine and not _is_dead(holder) and self._is_renewed(etag):
                raise _taken(self._name, holder)

    def _is_renewed(self, etag: str) -> bool:
        """Watch another's lease until it changes, or for as long as it takes to call it stale."""
        deadline = time.monotonic() + STALE_SECONDS
        while time.monotonic() < deadline:
            found, _ = self._look()
            if found != etag:
                return found is not None
            time.sleep(LOOK_SECONDS)
        return False

    def _put(self, etag: str | None) -> bool:
        """Write the lease if its object is still the one of the tag (None: if there is none)."""
        self._beats += 1  # so that every renewal is another object
        new = self._storage.write_if(LOCK, json.dumps({**self._content, "beat": self._beats}).encode(), etag)
        self._etag = new or self._etag
        return new is not None

    def _look(self) -> tuple[str | None, dict[str, Any]]:
        try:
            etag = self._storage.stat(LOCK).etag
            return etag, _parsed(self._storage.read(LOCK).decode())
        except ObjectMissingError:
            return None, {}

    def _renew(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            try:
                if self._put(self._etag):
                    continue
                found, holder = self._look()
                if holder.get("token") == self._content["token"]:
                    self._etag = found
                    continue
            except UserError as error:
                logger.warning("cannot renew the lock of run '%s': %s", self._name, error)
                continue
            logger.error("the lock of run '%s' was taken over by %s: stopping", self._name, holder)
            signal.raise_signal(signal.SIGTERM)
            return


def _is_alive(pid: object) -> bool:
    return isinstance(pid, int) and 0 < pid < 1 << 31 and psutil.pid_exists(pid)


def _is_dead(holder: dict[str, Any]) -> bool:
    return holder.get("host") == socket.gethostname() and not _is_alive(holder.get("pid"))


def _parsed(text: str) -> dict[str, Any]:
    try:
        found: object = parse_json(text)
    except ValueError:
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
