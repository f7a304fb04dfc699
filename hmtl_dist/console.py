"""What a person sees: our own lines on the real terminal, everybody else's chatter in the run's log file.

Ray, DeepSpeed, MLflow and their C++ parts write to the process's file descriptors 1 and 2. During `Console.capture`
those lead to a log file; the console keeps duplicates of the terminal for its own lines.
"""

import ctypes
import errno
import io
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TextIO

from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.live import Live
from rich.measure import Measurement, measure_renderables
from rich.table import Table

from hmtl_dist.errors import STORAGE_TROUBLE, UserError
from hmtl_dist.progress import PLAIN_SECONDS, Lines, ProgressBar, bar_on, waiting

_ANY_WIDTH = 1_000_000
_FOLDED_COLUMNS = 24
"""Least width of a column whose words may be broken, such as addresses."""
_BREAK = re.compile(r"(?<=[/._])(?=\w{3})")
"""Where the head of a column, such as a metric's or a setting's name, may be broken."""


class Console:
    """The terminal this process was started on, wherever its file descriptors lead by now.

    One a process, made before anything redirects the output; close it, or use it as a context manager.
    """

    def __init__(self) -> None:
        _flush()
        self._out = _duplicate(1)
        self._err = _duplicate(2)
        self._rich = RichConsole(file=self._out, highlight=False, soft_wrap=True, emoji=False)
        self._log: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the duplicates back."""
        self._out.close()
        self._err.close()

    @property
    def is_terminal(self) -> bool:
        """Whether somebody may watch a bar move."""
        return self._rich.is_terminal

    @property
    def width(self) -> int:
        """Columns of the terminal."""
        return self._rich.width

    def say(self, text: str = "") -> None:
        """Print a line; markup in it means nothing."""
        self._rich.print(text, markup=False)

    def say_parts(self, lead: str, parts: Sequence[str]) -> None:
        """Print parts after a word, and on a terminal go on in a new line rather than break one of them."""
        line, gap = lead, " "
        for part in parts:
            if self.is_terminal and gap == "  " and cell_len(line + gap + part) > self._rich.width:
                self.say(line)
                line, gap = " ", " "
            line, gap = line + gap + part, "  "
        self.say(line)

    def show(self, table: Table, keep: int | None = None) -> None:
        """Print a table of which no word is cut, nor broken unless there is no other way.

        Args:
            table: Is changed by this.
            keep: Columns after so many may be left out, from the end, on a terminal that has no room for them.
        """
        if not self.is_terminal:  # where nobody sees an edge, a table is as wide as it needs
            width = max(self.width, _needed(self._rich, table))
            _set_widths(self._rich, table)
            RichConsole(file=self._out, highlight=False, emoji=False, width=width).print(table)
            return
        left_out = self.fit(table, keep)
        self._rich.print(table)
        if left_out:
            self.say(f"no room here for {left_out} more columns, which `--json` shows")

    def fit(self, table: Table, keep: int | None = None) -> int:
        """Fit a table to the terminal: break its heads, then take columns off its end; return how many.

        Args:
            table: Is changed by this.
            keep: Columns that stay whatever there is room for, from the first; None for all.
        """
        left_out = 0
        if _needed(self._rich, table) > self.width:
            for column in table.columns:
                column.header = _BREAK.sub("\n", str(column.header))
            while keep is not None and len(table.columns) > keep and _needed(self._rich, table) > self.width:
                table.columns.pop()
                left_out += 1
        _set_widths(self._rich, table)
        return left_out

    def pass_on(self, text: str) -> None:
        """Write what another program printed, as it is."""
        self._out.write(text)
        self._out.flush()

    def ask(self, question: str) -> str:
        """Return the line that somebody at the terminal answers with."""
        self.pass_on(question)
        return sys.stdin.readline()

    def warn(self, text: str) -> None:
        """Print a warning of one line to the error output."""
        print("warning:", text, file=self._err)

    def interrupt(self, text: str) -> None:
        """Print a line to the error output from inside a signal's handler, where no lock may be taken."""
        begin = "\r\x1b[2K" if self.is_terminal else ""  # over the bar, which draws itself again below
        with suppress(OSError):
            os.write(self._err.fileno(), f"{begin}{text}\n".encode())

    @contextmanager
    def capture(self, log: Path, redact: Callable[[str], str] = str) -> Generator[None]:
        """Lead descriptors 1 and 2 of this process, and of those it starts, to the end of a log file.

        A `UserError` passes through, and so does an `OSError` of `STORAGE_TROUBLE`. Any other exception leaves its
        traceback in the log and its one line, with the path of the log, on the terminal. After a `UserError` an empty
        log does not stay, nor a folder that was made for it alone.
        What `redact` takes out of a line does not stay in the log.

        Raises:
            SystemExit: with code 1, after such an exception.
            UserError: the log file cannot be opened.
        """
        made, refused = not log.parent.exists(), False
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise UserError(f"log file {log}: {(error.strerror or str(error)).lower()}") from error
        _flush()
        saved = os.dup(1), os.dup(2)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
        self._log = log
        try:
            yield
        except UserError:
            refused = True
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in STORAGE_TROUBLE:
                raise
            self._fail(error, log, redact)
            raise SystemExit(1) from error
        finally:
            self._log = None
            _flush()
            for descriptor, original in zip((1, 2), saved, strict=True):
                os.dup2(original, descriptor)
                os.close(original)
            _rewrite(log, redact)
            if made and refused:
                _remove_unused(log)

    def _fail(self, error: Exception, log: Path, redact: Callable[[str], str]) -> None:
        with log.open("a", encoding="utf-8") as file:
            traceback.print_exception(error, file=file)
        lines = [line.strip() for line in redact(str(error)).splitlines() if line.strip()]
        cause = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        print(f"error: {cause}\nthe log has more: {log}", file=self._err)

    @contextmanager
    def live(self) -> "Generator[Live]":
        """Keep one renderable at the end of the terminal, drawn anew by every `update`."""
        free = self._log is None
        with Live(
            console=self._rich, auto_refresh=False, redirect_stdout=free, redirect_stderr=free, transient=True
        ) as live:
            yield live

    @contextmanager
    def progress(self, title: str, total: int, *, plain_seconds: float = PLAIN_SECONDS) -> "Generator[ProgressBar]":
        """Show how far something is: a bar on a terminal, elsewhere a plain line at most every `plain_seconds`.

        A `plain_seconds` of 0 prints a line at every update. The last update is always shown.
        """
        if not self.is_terminal:
            lines = Lines(self.say, title, total, plain_seconds)
            try:
                yield lines
            finally:
                lines.flush()
            return
        # A captured process has nothing to say on the terminal; one that is not may print above the bar.
        with bar_on(self._rich, title, total, redirect=self._log is None) as bar:
            yield bar

    @contextmanager
    def counted(self, title: str, *, quiet: bool = False) -> "Generator[Counted]":
        """Yield what shows the share done and the time left, from its first call on, unless it is to be quiet."""
        with ExitStack() as stack:
            yield Counted(self, stack, title, quiet=quiet)


class Counted:
    """Something that is counted, called with what is done and what there is in all; made by `Console.counted`."""

    def __init__(self, console: Console, stack: ExitStack, title: str, *, quiet: bool) -> None:
        self._console = console
        self._stack = stack
        self._title = title
        self._quiet = quiet
        self._bar: ProgressBar | None = None
        self._begun = time.monotonic()
        self._waits = Paced(console)

    def __call__(self, done: int, total: int) -> None:
        """Show how far it is."""
        if self._quiet:
            return
        self._bar = self._bar or self._stack.enter_context(self._console.progress(self._title, total))
        spent = time.monotonic() - self._begun
        self._bar.update(done, eta_seconds=spent / done * (total - done) if done else None)

    def wait(self, what: str, seconds: float) -> None:
        """Show what is waited for, and for how long by now."""
        if not self._quiet:
            self._waits.tell(self._bar, what, seconds)


def _measured(terminal: RichConsole, table: Table) -> tuple[list[Measurement], int]:
    """Return the least width of each column (of its longest word) and the most; and the width of the frame."""
    options = terminal.options.update(max_width=_ANY_WIDTH)
    columns: list[Measurement] = []
    for column in table.columns:
        least, most = measure_renderables(terminal, options, [column.header, *column.cells])
        if column.no_wrap:
            least = most
        elif column.overflow == "fold":
            least = min(least, _FOLDED_COLUMNS)
        columns.append(Measurement(least, most))
    whole = Measurement.get(terminal, options, table).maximum
    return columns, whole - sum(column.maximum for column in columns)


def _needed(terminal: RichConsole, table: Table) -> int:
    """Return the columns that a table needs so that no word of it is broken."""
    columns, frame = _measured(terminal, table)
    return frame + sum(column.minimum for column in columns)


def _set_widths(terminal: RichConsole, table: Table) -> None:
    """Give each column its longest word's width at least, which rich by itself does not, and share out the rest."""
    columns, frame = _measured(terminal, table)
    room = terminal.width - frame - sum(column.minimum for column in columns)
    if terminal.is_terminal and room < 0:  # words have to be broken
        for column in table.columns:
            column.overflow = "fold"
        return
    room = max(0, room)
    wanted = sorted(range(len(columns)), key=lambda place: columns[place].span)
    for rank, place in enumerate(wanted):
        more = min(columns[place].span, room // (len(wanted) - rank))
        table.columns[place].width = columns[place].minimum + more
        room -= more


class Paced:
    """Tells of waits: in the bar, or while there is none by a line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_line = 0.0

    def tell(self, bar: "ProgressBar | None", what: str, seconds: float) -> None:
        """Tell what is waited for, and for how long by now."""
        if bar is not None:
            bar.wait(what, seconds)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + PLAIN_SECONDS
            self._console.say(waiting(what, seconds))


class _Reader(io.FileIO):
    """Somebody who reads what is written, a terminal or a pipe, and may leave: the rest is dropped, the run goes on."""

    def write(self, data: Any, /) -> int:
        """Write what there is somebody for."""
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE):  # of a terminal that was closed, of a pipe
                raise
            return len(data)


def _duplicate(descriptor: int) -> TextIO:
    raw = _Reader(os.dup(descriptor), "w")
    encoding = sys.stdout.encoding or "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=True)


def _rewrite(log: Path, redact: Callable[[str], str]) -> None:
    """Apply `redact` to each line of a log, which other programs have written too; nothing happens on a full disk."""
    with suppress(OSError):
        lines = log.read_text(errors="replace", encoding="utf-8").splitlines(keepends=True)
        cleaned = [redact(line) for line in lines]
        if cleaned != lines:
            new = log.with_suffix(".new")
            new.write_text("".join(cleaned), encoding="utf-8")
            new.replace(log)


def _remove_unused(log: Path) -> None:
    """Remove an empty log with its folder, if nothing else is in it."""
    with suppress(OSError):
        if log.stat().st_size == 0 and [*log.parent.iterdir()] == [log]:
            log.unlink()
            log.parent.rmdir()


def _flush() -> None:
    """Write out what Python and the C library hold back, so that it lands where it was meant to."""
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)
