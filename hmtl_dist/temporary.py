"""Temporary folders; those of processes that were killed are removed by the next one that makes some."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "hmtl_tmp-"
FRESH_SECONDS = 60.0
"""A folder younger than this may not have been locked yet by whoever makes it."""


@contextmanager
def temporary_folder(what_for: str, parent: str | None = None) -> Generator[Path]:
    """Make a folder that is gone when the block ends, or else when another one is made after this process has died.

    Its maker locks it (`flock`), which ends with the process however that ends.

    Args:
        what_for: a word for its name, `hmtl_tmp-WORD-...`.
        parent: where it is made; the system's folder for temporary files if empty.
    """
    place = parent or tempfile.gettempdir()
    _remove_dead(Path(place))
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{what_for}-", dir=place))
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def _remove_dead(parent: Path) -> None:
    """Remove this user's folders that nobody holds any more."""
    for folder in parent.glob(f"{PREFIX}*-*"):
        with suppress(OSError):  # another's, or removed meanwhile
            found = folder.lstat()
            if found.st_uid != os.getuid() or time.time() - found.st_mtime < FRESH_SECONDS:
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
