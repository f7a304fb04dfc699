"""The server that worker processes are forked from: it imports once what all of them need, and is forked at once.

Forking a process that has threads is unsafe, and a fresh interpreter takes seconds for its imports.
"""

import contextlib
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import signal
import tempfile
import threading
from collections.abc import Generator, Sequence

CONTEXT = multiprocessing.get_context("forkserver")
starting = threading.Lock()
"""Held while anything is started: what multiprocessing is told of a new process it is told by globals."""
GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What reaches a whole process group: Ctrl-C, the signal of `timeout` and batch systems, a closed terminal."""
SOCKET_CHARACTERS = 60
"""Longest path of a folder for sockets: theirs may have 107 bytes, and multiprocessing's own names take some 40."""


def start(modules: Sequence[str]) -> None:
    """Start the server, unless it runs already; returns at once.

    Its processes work on one core each, and no signal to the process group ends them.

    Args:
        modules: what it imports.
    """
    with starting:
        CONTEXT.set_forkserver_preload([*modules])
        with _one_core_each(), _short_paths(), _signals_left_to_us():
            multiprocessing.forkserver.ensure_running()


@contextlib.contextmanager
def _signals_left_to_us() -> Generator[None]:
    """Start processes that do not heed what reaches a whole process group: this one decides what follows."""
    multiprocessing.resource_tracker.ensure_running()  # started by the way, it would let SIGTERM through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _short_paths() -> Generator[None]:
    """Put multiprocessing's sockets where their paths are short enough, also if TMPDIR is long."""
    usual = tempfile.gettempdir()
    if len(os.fsencode(usual)) > SOCKET_CHARACTERS:
        tempfile.tempdir = "/tmp"
    try:
        multiprocessing.util.get_temp_dir()  # made once for this process, and removed at its end
        yield
    finally:
        tempfile.tempdir = usual


@contextlib.contextmanager
def _one_core_each() -> Generator[None]:
    """Set what must be known before a process starts: it will fork, and its forks work on one core each.

    No threads of BLAS or OpenMP; one malloc arena, for the bytes that reading threads allocate and the main thread
    frees would else leave holes in as many arenas as there are threads, half as much memory again.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
