"""The live view of a sweep: a table of its trials on a terminal, plain lines elsewhere."""

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hmtl_dist.console import Console, Paced
from hmtl_dist.data.storage.waits import LOOK_SECONDS, Wait
from hmtl_dist.progress import duration, joined, waiting
from hmtl_dist.train.base import Progress
from hmtl_dist.tune.analysis import best_so_far, ranked, short_names, shown
from hmtl_dist.tune.book import Book
from hmtl_dist.tune.ledger import Record
from hmtl_dist.tune.space import Space
from hmtl_dist.tune.sweep import Onlooker

SHOWN = 14
"""Rows of the live table: all running trials, then the best of the others."""
PLAIN_SECONDS = 30.0
"""Seconds between two lines on how the sweep stands, where there is no terminal."""
REFRESH_SECONDS = 0.5


class SweepView(Onlooker):
    """Shows a sweep while it runs."""

    def __init__(self, console: Console, space: Space) -> None:
        self._console = console
        self._space = space
        self._stack = ExitStack()
        self._live: Any = None
        self._book: Book | None = None
        self._lines: dict[int, Progress] = {}
        self._last = 0.0
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._waits = Paced(console)
        self._wait: tuple[Wait, float] | None = None

    def begin(self, title: str, book: Book, concurrency: int, seconds: float, hours: float | None) -> None:
        """Open the table."""
        known = book.in_order()
        done = sum(record.ended for record in known)
        again = f", {done} done before" if done else ""
        self._console.say(f"{title}: {_total(book)} trials, {concurrency} at a time{again}")
        self._title, self._book, self._hours = title, book, hours
        self._began = time.monotonic()
        self._images_before = sum(record.images for record in known)
        if self._console.is_terminal:
            self._live = self._stack.enter_context(self._console.live())

    def note(self, line: str) -> None:
        """Show a line."""
        self._console.say(line)

    def wait(self, wait: Wait) -> None:
        """Show what the sweep or a trial waits for; called in another thread, about once a second."""
        self._wait = wait, time.monotonic()
        if self._live is None:
            self._waits.tell(None, wait.what, wait.seconds)

    def progress(self, number: int, progress: Progress) -> None:
        """Keep the last line of each trial."""
        if progress.phase in ("train", "evaluate"):  # in the others nothing has been measured
            self._lines[number] = progress

    def ended(self, record: Record) -> None:
        """Print how a trial ended, where there is no table."""
        with self._lock:
            if self._live is None and self._book is not None:
                self._console.say(f"{_count(self._book)} trial {record.number} {self._word(record)}")

    def tick(self) -> None:
        """Draw the table anew, or print a line, if it is time."""
        now = time.monotonic()
        book = self._book
        if book is None or now - self._last < (REFRESH_SECONDS if self._live is not None else PLAIN_SECONDS):
            return
        first = self._last == 0.0
        self._last = now
        records = book.in_order()
        if self._live is not None:
            self._live.update(self._screen(records), refresh=True)
        elif not first:
            with self._lock:
                self._console.say("  ".join(self._parts(records)))

    def end(self) -> None:
        """Close the table."""
        if self._live is not None and self._book is not None:
            self._live.update(self._screen(self._book.in_order()), refresh=True)
        self._live = None
        self._stack.close()
        self._lines.clear()

    # --- what is shown -------------------------------------------------------------------------------------------

    def _screen(self, records: Sequence[Record]) -> Group:
        """Draw the trials, how the sweep stands, and what is waited for."""
        table, left_out = self._table(records)
        parts = self._parts(records)
        if left_out:
            parts.append(f"no room for {left_out} more columns")
        lines = [joined(parts, self._console.width)]
        if self._wait is not None and time.monotonic() - self._wait[1] < 2 * LOOK_SECONDS:
            lines.append(waiting(self._wait[0].what, self._wait[0].seconds, self._console.width))
        return Group(table, *(Text(line) for line in lines))

    def _table(self, records: Sequence[Record]) -> tuple[Table, int]:
        """Lay the trials out; return how many settings have no room, too."""
        names = short_names(self._space.varied)
        metrics = [metric.removeprefix("eval/") for metric, _ in self._space.metrics]
        heads = ["trial", "status", "step", *metrics, "ETA", "img/s"]
        table = Table(*heads, *names.values())
        running = [record for record in records if self._runs(record)]
        others = [record for record in ranked(self._space, records) if not self._runs(record)]
        for record in [*running, *others[: max(3, SHOWN - len(running))]]:
            table.add_row(*self._row(record))
        if len(others) + len(running) > table.row_count:
            table.add_row(f"… {len(others) + len(running) - table.row_count} more")
        return table, self._console.fit(table, len(heads) - 1)

    def _runs(self, record: Record) -> bool:
        return self._book is not None and record.number in self._book.begun

    def _row(self, record: Record) -> list[str]:
        line = self._lines.get(record.number) if self._runs(record) else None
        status = record.status.lower() if line or record.ended else "waiting"
        step = line.global_step if line else record.step
        rate = line.samples_per_second if line else record.samples_per_second
        eta = duration(line.eta_seconds) if line and line.eta_seconds is not None else ""
        metrics = [f"{record.metrics[name]:.4f}" if name in record.metrics else "" for name, _ in self._space.metrics]
        total = line.total_steps if line else record.total_steps
        params = [shown(record.params[path]) if path in record.params else "" for path in self._space.varied]
        return [str(record.number), status, f"{step}/{total}" if total else "", *metrics, eta, f"{rate:.1f}", *params]

    def _parts(self, records: Sequence[Record]) -> list[str]:
        """Say how the sweep stands: trials, best, time left, speed."""
        if self._book is None:
            return []
        seconds = time.monotonic() - self._began
        begun = set(self._book.begun)  # Ray Tune's thread changes it
        parts = [f"{self._title} {_count(self._book)}", f"{len(begun)} running"]
        steps = {number: line.global_step for number, line in self._lines.items()}
        left = seconds_left(records, steps, _total(self._book), self._images_before, seconds)
        if left is not None and not self._space.exchanges:
            parts.append(f"ETA {duration(left)}")
        best = best_so_far(self._space, records)
        if best is not None:
            parts.append(f"best {self._space.metric.removeprefix('eval/')} {best:.4f}")
        rate = sum(self._lines[number].samples_per_second for number in begun if number in self._lines)
        parts.append(f"{rate:.1f} img/s")
        if self._hours is not None:
            parts.append(f"budget left {duration(self._hours * 3600 - seconds)}")
        return parts

    def _word(self, record: Record) -> str:
        if record.status == "FAILED":
            return f"failed: {record.error}"
        names = short_names(self._space.varied)
        params = " ".join(f"{names[path]}={shown(record.params[path])}" for path in names if path in record.params)
        metrics = " ".join(
            f"{name.removeprefix('eval/')} {record.metrics[name]:.4f}"
            for name, _ in self._space.metrics
            if name in record.metrics
        )
        how = {"FINISHED": "finished", "PRUNED": "stopped early", "STOPPED": "stopped, goes on next time"}
        return f"{how.get(record.status, record.status.lower())} at step {record.step}: {metrics}  {params}".rstrip()


def seconds_left(
    records: Sequence[Record], steps: Mapping[int, int], total: int, images_before: int, seconds: float
) -> float | None:
    """Return the time that a sweep will take yet, None before a trial has ended.

    Every trial is taken to train on as many pictures as those that have ended, and all of them at the speed so far.

    Args:
        records: The trials that have been drawn.
        steps: Steps that trials are at by now, by number; what they have told may be older.
        total: How many trials there are to be.
        images_before: Pictures trained on when this part of the sweep began.
        seconds: Time since then.
    """
    ended = [record.images for record in records if record.ended and record.images]
    if not ended:
        return None
    whole = sum(ended) / len(ended)
    batch = max(record.batch_size for record in records)
    done = {one.number: max(one.images, steps.get(one.number, 0) * batch) for one in records}
    begun = [max(0.0, whole - done[one.number]) for one in records if not one.ended]
    rate = (sum(done.values()) - images_before) / seconds
    return (sum(begun) + whole * (total - len(records))) / rate if rate > 0 else None


def _total(book: Book) -> int:
    return max(book.space.num_trials, len(book.ledger.records)) if book.space.budget.trials else book.space.num_trials


def _count(book: Book) -> str:
    return f"[{sum(record.ended for record in book.in_order())}/{_total(book)}]"
