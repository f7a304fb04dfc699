"""Work spread over processes, with a bounded number of tasks under way."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing.connection import Connection
from typing import TypeVar

import cv2

from hmtl_dist.data import forkserver
from hmtl_dist.data.storage import waits
from hmtl_dist.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

_IN_FLIGHT = 2
"""Tasks handed out a process: one to work on and one to go on with."""


def default_workers() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0))


def run_tasks(
    work: Callable[[Task], Result], tasks: Iterable[Task], num_workers: int, *, preload: Sequence[str] = ()
) -> Iterator[Result]:
    """Yield the results of `work` on every task as they come, in no order; with one worker in this process.

    Tasks are taken from the iterable only when there is room. Stopping early (also Ctrl-C) waits for what is under
    way and drops the rest.

    Args:
        work: done for each task; a function of a module.
        tasks: what to do it for.
        num_workers: processes.
        preload: modules that are slow to import, to be imported once for all processes.

    Raises:
        UserError: when a process was killed (as by the system when memory runs out).
    """
    if num_workers <= 1:
        for task in tasks:
            yield work(task)
        return
    forkserver.start([work.__module__, *preload])
    waiting = iter(tasks)
    with (
        _waits_of_workers() as heard,
        ProcessPoolExecutor(num_workers, forkserver.CONTEXT, _start_worker, (heard,)) as pool,
    ):
        try:
            running: set[Future[Result]] = {
                pool.submit(work, task) for task in islice(waiting, num_workers * _IN_FLIGHT)
            }
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                running |= {pool.submit(work, task) for task in islice(waiting, len(done))}
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed (out of memory?): call again with fewer --num-workers; what is finished "
                "is kept"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _waits_of_workers() -> Generator[Connection]:
    """What workers write their waits to, while they are heard of here."""
    there, here = forkserver.CONTEXT.Pipe(duplex=False)

    def listen() -> None:
        with suppress(EOFError, OSError):
            while True:
                waits.hear(there.recv())

    listener = threading.Thread(target=listen, name="waits", daemon=True)
    listener.start()
    try:
        yield here
    finally:
        here.close()
        listener.join()
        there.close()


def _start_worker(heard: Connection) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # how a pool ends its processes when one has died
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(wait: waits.Wait) -> None:
        with suppress(OSError):  # of somebody who hears no more
            heard.send(wait)

    waits.WaitNotice(tell).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
