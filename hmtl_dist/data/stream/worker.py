"""Data-loader processes: started from a preloaded server, filling the batches of a ring, noticed when they die.

The server ends with the process that started it.
"""

import contextlib
import gc
import multiprocessing
import multiprocessing.connection
import multiprocessing.spawn
import multiprocessing.util
import os
import pickle
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, cast

from hmtl_dist.data import forkserver
from hmtl_dist.data.storage.config import REACHED
from hmtl_dist.data.stream.loader import Loader, LoaderJob, StepReport
from hmtl_dist.data.stream.ring import Ring
from hmtl_dist.errors import UserError

_SAME_MOMENT_SECONDS = 0.01
"""Between a dead parent's closed connection and its being known to be dead."""
PRELOADED = ("hmtl_dist.data.stream.preload", "hmtl_dist.data.stream.worker", "cv2")
"""Modules that the server imports for all workers."""
PRELOADED_FOR_S3 = "hmtl_dist.data.stream.preload_s3"
JOIN_SECONDS = 5.0
"""How long an ended worker may take to disappear."""


@dataclass(frozen=True)
class Failure:
    """Why a worker gave up."""

    message: str
    is_user_error: bool


class LoaderDiedError(UserError):
    """A data-loader process was killed or crashed: starting again may well mend it."""


class Workers:
    """The data-loader processes of one rank, each owning some of its lanes; ended by `close`.

    Args:
        jobs: what each process loads.
        ring: where they put it: step n, counted from the start, goes to slot n modulo the number of slots.
    """

    def __init__(self, jobs: Sequence[LoaderJob], ring: Ring) -> None:
        self._connections: list[Connection] = []
        self._processes: list[Any] = []
        preload_workers([part.url for part in jobs[0].index.parts], _modules_of(jobs[0]))
        try:
            for number, job in enumerate(jobs):
                self._start(number, job, ring)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Process ids, for those who watch."""
        return [process.pid for process in self._processes]

    def receive(self) -> list[StepReport]:
        """Wait until every worker has filled its rows of the next step.

        Raises:
            UserError: a worker met what the user can mend, or has died.
            RuntimeError: a worker met a fault of the program; the message holds its traceback.
        """
        return [self._receive(number) for number in range(len(self._processes))]

    def release(self) -> None:
        """Let the workers write into the slot of the oldest step that was received."""
        for connection in self._connections:
            # A worker that is through, or dead, needs no slot; the death is noticed by `receive`.
            with contextlib.suppress(OSError):
                connection.send_bytes(b"")

    def close(self) -> None:
        """End the processes; nothing of them is left when this returns."""
        for process in self._processes:
            process.kill()  # they own nothing that would have to be put back
        for process in self._processes:
            process.join()
            process.close()
        for connection in self._connections:
            connection.close()
        self._processes, self._connections = [], []

    def _start(self, number: int, job: LoaderJob, ring: Ring) -> None:
        ours, theirs = forkserver.CONTEXT.Pipe(duplex=True)
        # The server may be older than the environment (credentials, endpoint) under which the job is to be opened.
        # A process that was itself started by multiprocessing shares the folder of its parent, which lives on.
        sockets = None if multiprocessing.parent_process() else multiprocessing.util.get_temp_dir()
        environment = {**os.environ, REACHED: "1"}  # this process has read the index there
        arguments = (pickle.dumps(job), environment, ring, theirs, sockets)
        process = forkserver.CONTEXT.Process(target=_run, args=arguments, name=f"data-loader-{number}", daemon=True)
        with theirs, forkserver.starting, _main_module_left_alone(job):
            process.start()
        self._connections.append(ours)
        self._processes.append(process)

    def _receive(self, number: int) -> StepReport:
        connection, process = self._connections[number], self._processes[number]
        multiprocessing.connection.wait([connection, process.sentinel])
        try:
            # What a worker said before it ended is still to be read.
            message = cast(StepReport | Failure, connection.recv()) if connection.poll() else None
        except (EOFError, OSError):
            message = None
        if isinstance(message, StepReport):
            return message
        if message is None:
            raise LoaderDiedError(self._death(number))
        raise UserError(message.message) if message.is_user_error else RuntimeError(message.message)

    def _death(self, number: int) -> str:
        process = self._processes[number]
        process.join(JOIN_SECONDS)
        code = process.exitcode
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            hint = "if memory ran out, lower data.buffer_bytes or data.num_workers"
        else:
            how, hint = f"ended with exit code {code}", "see the run's log"
        return f"data-loader process {number} (pid {process.pid}) {how}: {hint}, then start again"


def preload_workers(urls: Iterable[str], modules: Sequence[str]) -> None:
    """Start the server that workers are forked from, unless it runs already; returns at once.

    Called early, it does its imports while the training process builds its model.

    Args:
        urls: the data sets.
        modules: what to import beside the loader's own modules: that of the transform.
    """
    storages = [PRELOADED_FOR_S3] if any(url.startswith("s3:") for url in urls) else []
    forkserver.start([*PRELOADED, *modules, *storages])


def _run(job: bytes, environment: dict[str, str], ring: Ring, connection: Connection, sockets: str | None) -> None:
    """Be a worker."""
    gc.freeze()  # else a collection would write to, and so copy, the pages of all modules shared with the server
    import cv2  # here and not above: who has no workers need not load it

    watcher = threading.Thread(target=_end_with_parent, args=(sockets,), daemon=True)
    watcher.start()
    os.environ.clear()
    os.environ.update(environment)
    cv2.setNumThreads(0)
    try:
        loader_job = pickle.loads(job)  # noqa: S301  # made by the process that started this one
        if torch := sys.modules.get("torch"):  # a transform has brought it
            torch.set_num_threads(1)
        _load(loader_job, ring, connection)
    except UserError as error:
        _send(connection, Failure(str(error), is_user_error=True))
    except Exception:  # noqa: BLE001  # the training process shows it
        _send(connection, Failure(f"data-loader process failed:\n{traceback.format_exc()}", is_user_error=False))
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join(_SAME_MOMENT_SECONDS)
        if not parent.is_alive():
            watcher.join(1.0)


def _load(job: LoaderJob, ring: Ring, connection: Connection) -> None:
    loader = Loader(job)
    try:
        for number, (epoch, step) in enumerate(job.plan.steps(job.start, job.epochs)):
            if number >= ring.slots:
                connection.recv_bytes()
            connection.send(loader.load(epoch, step, ring.slot(number % ring.slots)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the stream was closed
    finally:
        loader.close()


def _send(connection: Connection, failure: Failure) -> None:
    with contextlib.suppress(OSError):
        connection.send(failure)


def _end_with_parent(sockets: str | None) -> None:
    """Wait for the training process to end; one that was killed leaves the folder of its sockets behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    if sockets is not None:
        shutil.rmtree(sockets, ignore_errors=True)
    os._exit(1)


def _modules_of(job: LoaderJob) -> list[str]:
    return [name for name in {type(job.transform).__module__} if name != "__main__"]


@contextlib.contextmanager
def _main_module_left_alone(job: LoaderJob) -> Generator[None]:
    """Keep new processes from importing the main module again, unless the transform comes from it.

    multiprocessing does so for what may be pickled from there; here nothing is, and the main module may be Ray's
    worker, or a script without a `__main__` guard.
    """
    if type(job.transform).__module__ == "__main__":
        yield
        return
    original = multiprocessing.spawn.get_preparation_data

    def without_main(name: str) -> dict[str, Any]:
        data = original(name)
        return {key: value for key, value in data.items() if key not in ("init_main_from_name", "init_main_from_path")}

    multiprocessing.spawn.get_preparation_data = without_main
    try:
        yield
    finally:
        multiprocessing.spawn.get_preparation_data = original
