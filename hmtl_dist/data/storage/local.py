"""A local folder as a storage of objects."""

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from typing_extensions import override

from hmtl_dist.data.storage.base import (
    ObjectInfo,
    ObjectMissingError,
    Parts,
    Storage,
    StorageStats,
    check_key,
    check_prefix,
)
from hmtl_dist.errors import UserError

_TEMPORARY_PREFIX = ".partial-"


class LocalStorage(Storage):
    """Objects as files under a folder, which is made by the first write."""

    def __init__(self, root: Path) -> None:
        self._root = root.expanduser().absolute()
        self._stats = StorageStats()

    def __repr__(self) -> str:
        return f"LocalStorage({self.url!r})"

    def __reduce__(self) -> tuple[type["LocalStorage"], tuple[Path]]:
        return LocalStorage, (self._root,)

    @property
    @override
    def url(self) -> str:
        return str(self._root)

    @property
    @override
    def stats(self) -> StorageStats:
        return self._stats

    @override
    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        with self._open(key) as file:
            file.seek(start)
            data = file.read(-1 if length is None else length)
        self._stats.add(bytes_read=len(data))
        if length is not None and len(data) < length:
            raise UserError(
                f"{self._path(key)} ends before byte {start + length}: it is not the file its index describes; copy or "
                "build it again"
            )
        return data

    @override
    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Parts:
        return [self.read(key, start=start, length=length) for start, length in ranges]

    @override
    def open_read(self, key: str) -> BinaryIO:
        return self._open(key)

    @override
    def stat(self, key: str) -> ObjectInfo:
        self._stats.add(requests=1)
        path = self._path(key)
        with file_errors(path):
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            return _info(key, status)

    @override
    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    @override
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        folder = self._root / prefix.rpartition("/")[0]
        self._stats.add(requests=1)
        with file_errors(folder):
            found = [
                (path.relative_to(self._root).as_posix(), path)
                for parent, _, names in os.walk(folder)
                for path in (Path(parent, name) for name in names if not name.startswith(_TEMPORARY_PREFIX))
            ]
            for key, path in sorted(found):
                if key.startswith(prefix):
                    with suppress(FileNotFoundError):  # a link to nothing, or removed since
                        yield _info(key, path.stat())

    @override
    def write(self, key: str, data: bytes) -> None:
        self._replace(key, lambda file: file.write(data))

    @override
    def upload(self, key: str, path: Path) -> None:
        with file_errors(path), path.open("rb") as source:
            self._replace(key, lambda file: shutil.copyfileobj(source, file, 1 << 20))

    @override
    def download(self, key: str, path: Path) -> None:
        with self._open(key) as source:
            replace_file(path, lambda file: shutil.copyfileobj(source, file, 1 << 20))

    @override
    def delete(self, key: str) -> None:
        self._stats.add(requests=1)
        path = self._path(key)
        with file_errors(path):
            path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _open(self, key: str) -> BinaryIO:
        self._stats.add(requests=1)
        path = self._path(key)
        with file_errors(path):
            return path.open("rb")

    def _replace(self, key: str, fill: Callable[[BinaryIO], object]) -> None:
        self._stats.add(requests=1)
        replace_file(self._path(key), fill)


def replace_file(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Puts a file in place whole: `fill` writes a temporary one beside it, which is then renamed.

    Raises:
        UserError: The folder is not writable or the disk is full.
    """
    with file_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(_TEMPORARY_PREFIX + uuid.uuid4().hex)
        try:
            with temporary.open("xb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}")


@contextmanager
def file_errors(path: Path) -> Generator[None]:
    """Turns what the file system refuses into a `UserError` of one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise ObjectMissingError(f"{path} does not exist: check the path") from None
        if error.errno == errno.EISDIR:
            raise ObjectMissingError(f"{path} is a folder where a file is expected: check the path") from None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space is left for {path}: free some, or choose another folder") from None
        raise UserError(f"{path}: {error.strerror or error}") from None
