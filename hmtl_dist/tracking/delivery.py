"""Carries a journal to a server, in order and each event once, however often the server or this process goes away."""

import fcntl
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from hmtl_dist.tracking.jsonl import Event, read_events
from hmtl_dist.tracking.redact import first_line

DELIVERED = "journal.delivered"
"""File beside the journal with the number of its bytes that have been delivered."""

POLL_SECONDS = 1.0
"""How often the journal is looked at; what gathered meanwhile goes in one request."""
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 20.0
REFUSALS = 5
"""An event that fails so often at a server in good health is left out, lest it hold up all that follow."""
AWAY_SECONDS = 3.0
"""Longest wait at the end of a run for a server that did not answer last time."""
REWIND_SECONDS = 40.0
"""Longest wait for another process to end its delivery: longer than it may take at its end."""
MAX_VALUES = 1000
"""Most metric values in one request (MLflow's limit)."""

METRICS = frozenset({"metrics", "system"})

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """The server's side of a delivery. Any exception means that nothing is known to have arrived."""

    def answers(self) -> bool:
        """Whether the server is there and in good health."""
        ...

    def deliver(self, events: list[Event]) -> None:
        """Store events: one of any kind, or several `metrics` and `system` ones; storing twice must do no harm."""
        ...


class AwayError(Exception):
    """The time for trying is over."""


class Delivery:
    """A daemon thread that follows a journal; `start` returns at once, `close` waits a bounded time."""

    def __init__(self, journal: Path, connect: Callable[[], Sink], close_seconds: float) -> None:
        self._journal = journal
        self._connect = connect
        self._close_seconds = close_seconds
        self._sink: Sink | None = None
        self._offset = 0
        self._alone_now = False
        self._away = False
        self.refused = 0
        """Events that the server, in good health, would not take: they are left out."""
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="journal-delivery", daemon=True)

    def start(self) -> None:
        """Begin to deliver."""
        self._thread.start()

    def close(self) -> None:
        """Wait until all is delivered, not longer than the bound, and shortly only if the server is away."""
        begin = time.monotonic()
        self._closing.set()
        while self._thread.is_alive():
            waited = time.monotonic() - begin
            if waited > self._close_seconds or (self._away and waited > AWAY_SECONDS):
                self._abandoned.set()
                self._thread.join(1.0)
                break
            self._thread.join(0.05)
        left = self.left()
        if left:
            logger.warning("MLflow: %d bytes of %s are not delivered; they wait there", left, self._journal)

    def drain(self, on_progress: Callable[[], None], patience_seconds: float) -> None:
        """Wait until all is delivered, however long it takes; give up when the server stays away for too long."""
        self._closing.set()
        offset, moved = -1, time.monotonic()
        while self._thread.is_alive():
            if self._offset != offset or (self._alone_now and not self._away):
                offset, moved = self._offset, time.monotonic()
            if time.monotonic() - moved > patience_seconds:
                self._abandoned.set()
                self._thread.join(1.0)
                break
            on_progress()
            self._thread.join(0.05)
        on_progress()

    def left(self) -> int:
        """Return how many bytes of the journal are not delivered."""
        return max(0, self._journal.stat().st_size - self.delivered)

    @property
    def delivered(self) -> int:
        """How many bytes of the journal have been delivered."""
        return _read_offset(self._journal)

    def _follow(self) -> None:
        try:
            with self._alone():
                self._alone_now = True
                self._offset = _read_offset(self._journal)
                start = _start_before(self._journal, self._offset)
                while not self._abandoned.is_set():
                    closing = self._closing.is_set()  # read first: what was written before it is seen below
                    for events, offset in _groups(self._journal, self._offset):
                        if self._abandoned.is_set():
                            return
                        if start:  # not without something to follow: it says that the run is under way
                            self._store([start])
                            start = None
                        self._store(events)
                        self._offset = offset
                        _write_offset(self._journal, offset)
                    if closing:
                        return
                    self._closing.wait(POLL_SECONDS)
        except AwayError:
            pass
        except Exception as error:  # noqa: BLE001 - tracking never ends a run
            logger.warning("MLflow: delivery ended (%s); the journal goes on", first_line(error))

    def _store(self, events: list[Event]) -> None:
        """Deliver events; should the server refuse several together, deliver them one by one."""
        if not self._try(events) and len(events) > 1:
            for event in events:
                self._try([event])

    def _try(self, events: list[Event]) -> bool:
        """Deliver, waiting while the server is away; False when it is there and refuses."""
        pause, refusals = FIRST_PAUSE_SECONDS, 0
        while True:
            try:
                if self._sink is None:
                    self._sink = self._connect()
                self._sink.deliver(events)
            except Exception as error:  # noqa: BLE001 - whatever the client raises: only whether it answers counts
                if self._sink is not None and self._sink.answers():
                    refusals += 1
                    if refusals == REFUSALS:
                        logger.warning("MLflow: refused %s (%s); left out", events[0]["event"], first_line(error))
                        self.refused += len(events) == 1
                        return False
                elif not self._away:
                    self._away = True
                    logger.warning("MLflow: does not answer (%s); the journal waits for it", first_line(error))
            else:
                if self._away:
                    self._away = False
                    logger.info("MLflow: answers again; the journal is being delivered")
                return True
            self._wait(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def _wait(self, seconds: float) -> None:
        """Wait before the next try; raises AwayError when the run is over and its time for waiting too."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._abandoned.is_set():
                raise AwayError
            if self._closing.is_set():
                left = min(left, 0.2)
                until = min(until, time.monotonic() + left)
                self._abandoned.wait(left)
            else:
                self._closing.wait(left)

    @contextmanager
    def _alone(self) -> Generator[None]:
        """Hold the journal's lock: a process of an interrupted run may still be delivering its end."""
        with _offset_path(self._journal).open("a", encoding="utf-8") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    self._wait(FIRST_PAUSE_SECONDS)
            yield


def waiting(journal: Path) -> list[int]:
    """Return where each event ends, in bytes, that is not delivered yet; none where there is no journal."""
    return [end for _, end in read_events(journal, _read_offset(journal))] if journal.exists() else []


def waiting_metrics(journal: Path, step: int, most: int) -> list[Event]:
    """Return the newest figures up to a step that are not delivered yet; none where the journal cannot be read."""
    try:
        rest = (event for event, _ in read_events(journal, _read_offset(journal)))
        return list(deque((one for one in rest if one["event"] == "metrics" and one["step"] <= step), maxlen=most))
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            logger.warning("cannot read %s (%s): the checkpoint holds none of its figures", journal, error)
        return []


def lacking(journal: Path, events: Sequence[Event]) -> list[Event]:
    """Return those of some figures that a journal does not hold."""
    there = read_events(journal) if events and journal.exists() else ()
    held = {(event["step"], *event["values"]) for event, _ in there if event["event"] == "metrics"}
    return [event for event in events if (event["step"], *event["values"]) not in held]


def rewind(journal: Path, step: int) -> None:
    """Drop from a journal what was recorded after a step: the run goes on from there and will record it again.

    The mark of what has been delivered moves along. A process of the interrupted run that still delivers is waited for.
    """
    if not journal.exists():
        return
    with _offset_path(journal).open("a", encoding="utf-8") as lock:
        deadline = time.monotonic() + REWIND_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    logger.warning("%s is still being delivered; steps after %d may stand in it twice", journal, step)
                    return
                time.sleep(0.1)
        delivered, data, kept = _read_offset(journal), journal.read_bytes(), bytearray()
        before = kept_before = 0
        for event, end in read_events(journal):
            line, before = data[before:end], end
            if event.get("step", step) <= step:
                kept += line
                kept_before += len(line) if end <= delivered else 0
        if len(kept) < before:
            _write_offset(journal, kept_before)  # first: delivered again is better than left out
            temporary = journal.with_suffix(".rewound")
            temporary.write_bytes(kept)
            temporary.replace(journal)


def _groups(journal: Path, offset: int) -> Iterator[tuple[list[Event], int]]:
    """Yield what goes in one request: neighbouring figures together, up to a limit, everything else alone."""
    group: list[Event] = []
    size = 0
    for event, end in read_events(journal, offset):
        count = len(event["values"]) if event["event"] in METRICS else MAX_VALUES
        if group and size + count > MAX_VALUES:
            yield group, offset
            group, size = [], 0
        group.append(event)
        size += count
        offset = end
    if group:
        yield group, offset


def _start_before(journal: Path, offset: int) -> Event | None:
    """Return the last `start` that was delivered already: it names the run of what follows."""
    start = None
    for event, end in read_events(journal):
        if end > offset:
            break
        if event["event"] == "start":
            start = event
    return start


def _offset_path(journal: Path) -> Path:
    return journal.with_name(DELIVERED)


def _read_offset(journal: Path) -> int:
    try:
        return int(_offset_path(journal).read_text(encoding="utf-8") or 0)
    except (FileNotFoundError, ValueError):
        return 0


def _write_offset(journal: Path, offset: int) -> None:
    # In place, since the lock is on this file: a torn number only means that a part is delivered again.
    _offset_path(journal).write_text(str(offset), encoding="utf-8")
