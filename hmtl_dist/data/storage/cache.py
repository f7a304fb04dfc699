"""Shards of a remote data set, kept whole on a machine's own disk for all processes of that machine.

A file is named by its SHA-256, which the index knows: it is checked once when it is fetched, can never be out of date,
and sets that share shards share files. It is written under another name and renamed when it is whole and right, so a
process that is killed leaves nothing that would be used. Of several that want one shard, one fetches it and the others
wait. Files are removed in the order in which they were last read from, but not while they are being read.

webdataset's `cache_dir` and fsspec's `filecache` were looked at: neither checks what it fetched, the first fetches a
shard once a process, the second has no bound.
"""

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from hmtl_dist.data.storage import Storage
from hmtl_dist.data.storage.hashing import HashingWriter
from hmtl_dist.errors import UserError

logger = logging.getLogger(__name__)

ATTEMPTS = 2
"""How often a shard is fetched whose bytes are not those of its index, before it is read without being kept."""
_CHUNK_BYTES = 1 << 20
_PARTIAL = ".partial"
_LOCKS = "locks"
_ROOM = "room"
_told: set[Path] = set()


@dataclass(frozen=True)
class ShardCache:
    """Files under one folder, `max_bytes` together; safe in threads and among processes, picklable."""

    folder: Path
    max_bytes: int
    in_use_seconds: float = 120.0
    """A file that was read from so lately is being read and stays: where not all fits, the rest is read as without a
    cache, instead of each shard being fetched anew for each of its parts."""

    def prepare(self) -> None:
        """Make the folder, for its owner alone.

        Raises:
            UserError: It cannot be written to.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.folder / _LOCKS).mkdir(exist_ok=True)
            with self._locked("00"):
                pass
        except OSError as error:
            raise UserError(
                f"data.cache.folder: {self.folder} cannot be used ({error.strerror}); give a folder on a disk of the "
                "machine itself that its workers may write to, or leave it out"
            ) from error

    def read(self, storage: Storage, key: str, sha256: bytes, size: int, *, start: int, length: int) -> bytes:
        """Return `length` bytes of an object from byte `start` on, fetching the whole of it the first time.

        What cannot be kept, since it is too large or the disk is full, is read as without a cache.

        Args:
            storage: Where the object is.
            key: Its key there.
            sha256: Its digest.
            size: Its bytes.
            start: First byte to return.
            length: Bytes to return.

        Raises:
            UserError: The storage refuses, or the object ends before `start + length`.
        """
        for is_missing in (False, True):
            if is_missing and not self._fetch(storage, key, sha256, size):
                break
            data = self._part(sha256, start, length)
            if data is not None and len(data) == length:
                return data
            if data is not None:  # shorter than it was when it was kept
                self.drop(sha256)
        return storage.read(key, start=start, length=length)

    def whole(self, sha256: bytes, fetch: Callable[[], bytes]) -> bytes:
        """Return a small object whole: the file that is kept, else what `fetch` returns, which is kept if it is right.

        The caller checks the digest, and calls `drop` where it is not right.
        """
        data = self._part(sha256, 0, None)
        if data is not None:
            return data
        try:
            with self._locked(f"small-{sha256.hex()[:2]}"):
                data = self._part(sha256, 0, None)
                if data is None:
                    data = fetch()
                    if hashlib.sha256(data).digest() == sha256:
                        self._keep(sha256, len(data), partial(_write_all, data))
                return data
        except OSError as error:
            self._cannot_keep(error)
            return fetch()

    def drop(self, sha256: bytes) -> None:
        """Remove a file whose bytes turned out to be wrong: its disk is at fault."""
        with suppress(OSError):
            self._path(sha256).unlink()

    def _path(self, sha256: bytes) -> Path:
        return self.folder / sha256.hex()

    def _part(self, sha256: bytes, start: int, length: int | None) -> bytes | None:
        path = self._path(sha256)
        try:
            with path.open("rb") as file:
                os.utime(file.fileno())  # what was read last is removed last
                file.seek(start)
                return file.read(-1 if length is None else length)
        except OSError:  # another process removed it, or its disk fails: the storage has it too
            return None

    def _fetch(self, storage: Storage, key: str, sha256: bytes, size: int) -> bool:
        """Fetch an object whole; returns whether it is there now."""

        def fill(file: HashingWriter) -> None:
            with storage.open_read(key) as source:
                while chunk := source.read(_CHUNK_BYTES):
                    file.write(chunk)

        for attempt in range(ATTEMPTS):
            storage.stats.add(retries=min(attempt, 1))
            kept = self._keep(sha256, size, fill)
            if kept is not None:
                return kept
        return False

    def _keep(self, sha256: bytes, size: int, fill: Callable[[HashingWriter], object]) -> bool | None:
        """Put a file in place; returns whether it is there now, None if its bytes were not right."""
        path = self._path(sha256)
        unfinished = path.with_name(path.name + _PARTIAL)
        try:
            with self._locked(path.name[:2]):
                if path.exists():  # another process was faster
                    return True
                try:
                    written = self._write(unfinished, sha256, size, fill)
                    if written:
                        with self._locked(_ROOM):  # else a look at what is there might count it under neither name
                            unfinished.replace(path)
                    return written
                finally:
                    unfinished.unlink(missing_ok=True)
        except OSError as error:  # the storage's own troubles are UserErrors
            self._cannot_keep(error)
            return False

    def _write(
        self, unfinished: Path, sha256: bytes, size: int, fill: Callable[[HashingWriter], object]
    ) -> bool | None:
        """Write a file under its other name; as `_keep` returns."""
        with unfinished.open("wb") as file:
            if not self._make_room(file, size):
                return False
            hashing = HashingWriter(file)
            fill(hashing)
            if hashing.size != size or hashing.sha256.digest() != sha256:
                return None
            file.flush()
            os.fsync(file.fileno())
        return True

    def _make_room(self, file: BinaryIO, size: int) -> bool:
        """Remove what was not read for longest until `size` bytes fit, and reserve them; returns whether they fit."""
        if size > self.max_bytes:
            return False
        with self._locked(_ROOM):
            entries = self._files()
            used = sum(status.st_size for _, status in entries)
            idle_since = time.time() - self.in_use_seconds
            for path, status in sorted(entries, key=lambda entry: entry[1].st_mtime):
                if used + size <= self.max_bytes:
                    break
                if (path.suffix == _PARTIAL or status.st_mtime <= idle_since) and self._remove(path):
                    used -= status.st_size
            if used + size > self.max_bytes:
                return False
            os.truncate(file.fileno(), size)  # from now on it counts, although nothing is written yet
            return True

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        found: list[tuple[Path, os.stat_result]] = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another process has just given it up
                    if entry.is_file(follow_symlinks=False):
                        found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
        return found

    def _remove(self, path: Path) -> bool:
        """Remove a file, but not one that a living process writes to; returns whether it is gone."""
        if path.suffix != _PARTIAL:
            path.unlink(missing_ok=True)
            return True
        with self._lock_file(path.name[:2]).open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a process that was killed holds it no more
            except OSError:
                return False
            path.unlink(missing_ok=True)
            return True

    def _cannot_keep(self, error: OSError) -> None:
        if self.folder not in _told:
            _told.add(self.folder)
            logger.warning(
                "data.cache.folder: cannot keep shards in %s (%s); they are read anew", self.folder, error.strerror
            )

    @contextmanager
    def _locked(self, name: str) -> Generator[None]:
        """Hold one of the folder's locks; the kernel frees it with the process."""
        with self._lock_file(name).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _lock_file(self, name: str) -> Path:
        return self.folder / _LOCKS / name


def _write_all(data: bytes, file: HashingWriter) -> None:
    file.write(data)
