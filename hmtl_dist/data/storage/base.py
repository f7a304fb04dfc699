"""What a storage of objects is: the protocol, its records and its errors."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from hmtl_dist.errors import UserError

# Named here because inside the classes `list` is the method that lists objects.
Parts = list[bytes]


class ObjectMissingError(UserError):
    """The storage answers, and holds no object under this key."""


class ObjectChangedError(UserError):
    """The object was replaced while it was being read."""


class StorageUnavailableError(UserError):
    """The storage did not answer, or answered with faults, for longer than is worth waiting."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object: its key relative to the storage's root, its size in bytes and its entity tag (without quotes)."""

    key: str
    size: int
    etag: str


class StorageStats:
    """What a storage has done so far; safe to add to from several threads."""

    def __init__(self) -> None:
        self.requests = 0
        """Requests sent (for a local folder: files opened, written or looked up)."""
        self.retries = 0
        """Requests sent again after a transient fault."""
        self.bytes_read = 0
        """Bytes of objects received."""
        self._lock = threading.Lock()

    def add(self, *, requests: int = 0, retries: int = 0, bytes_read: int = 0) -> None:
        """Adds to the counters."""
        with self._lock:
            self.requests += requests
            self.retries += retries
            self.bytes_read += bytes_read


class Storage(Protocol):
    """Objects under one root. Keys are relative to it, `/` separates their parts, `..` is refused.

    A storage is cheap to make, connects when first used, may be shared by threads, is pickled by its URL, and is
    usable after a fork. Whatever goes wrong for good is a `UserError`; transient faults are waited out.
    """

    @property
    def url(self) -> str:
        """The root, as `open_storage` takes it."""
        ...

    @property
    def stats(self) -> StorageStats:
        """What it has done so far."""
        ...

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Reads a whole object, or exactly `length` bytes from byte `start` on.

        Raises:
            ObjectMissingError: There is no such object.
            ObjectChangedError: The object was replaced while it was read.
            UserError: The object ends before `start + length`, or the storage refuses.
        """
        ...

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Parts:
        """Reads several (start, length) ranges of one object, a bounded number at a time; answers in their order.

        Every range is a request of its own: neighbours are cheaper read as one range and cut apart by the caller.
        """
        ...

    def open_read(self, key: str) -> BinaryIO:
        """Opens a whole object as a stream, for one pass from its start; close it."""
        ...

    def stat(self, key: str) -> ObjectInfo:
        """Looks an object up.

        Raises:
            ObjectMissingError: There is no such object.
        """
        ...

    def exists(self, key: str) -> bool:
        """Says whether there is such an object."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Lists the objects whose key starts with `prefix`, sorted by key."""
        ...

    def write(self, key: str, data: bytes) -> None:
        """Writes or replaces an object; readers see the old or the new one, never a part."""
        ...

    def upload(self, key: str, path: Path) -> None:
        """Copies a local file into the storage, whole or not at all."""
        ...

    def download(self, key: str, path: Path) -> None:
        """Copies an object to a local file, whole or not at all."""
        ...

    def delete(self, key: str) -> None:
        """Deletes an object; deleting what is not there is no error."""
        ...


def check_key(key: str) -> str:
    """Returns the key if it names something under the root.

    Raises:
        UserError: The key is empty, absolute, or has a part that would leave the root or be lost.
    """
    if key == "" or "\\" in key or "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise UserError(
            f"object key {key!r} is not allowed: give a relative name such as 'train/index.json', without '..'"
        )
    return key


def check_prefix(prefix: str) -> str:
    """Returns the prefix if everything under it lies under the root; unlike a key it may be empty or end in `/`."""
    if prefix != "":
        check_key(prefix.removesuffix("/"))
    return prefix
