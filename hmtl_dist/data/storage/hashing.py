"""Streams that know the size and the SHA-256 of what went through them."""

import hashlib
from typing import BinaryIO

_HEAD = 16


class HashingWriter:
    """Hands on what is written to it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        """Write all of `data`."""
        self.sha256.update(data)
        self.size += len(data)
        return self._stream.write(data)


class HashingReader:
    """Hands on what is read through it, from the start to the end."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.head = b""
        """The first bytes that were read, 16 or fewer."""

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes; all that are left when negative."""
        data = self._stream.read(size)
        self.sha256.update(data)
        self.size += len(data)
        if len(self.head) < _HEAD:
            self.head += data[: _HEAD - len(self.head)]
        return data

    def finish(self) -> None:
        """Read on to the end, for the digest's sake."""
        while self.read(1 << 20):
            pass
