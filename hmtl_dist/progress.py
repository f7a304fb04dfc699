"""How far something is: a bar on a terminal, lines elsewhere, and how times are written."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager

from rich.cells import cell_len, set_cell_size
from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as RichProgress

PLAIN_SECONDS = 10.0
"""Seconds between two plain lines of one progress, where nobody watches a bar."""
BAR_COLUMNS = 8, 16
"""Least and most columns of a bar; a terminal without room for the least has none."""
FIGURES_COLUMNS = 50
"""Columns that a bar leaves to the figures beside it: time left, pictures a second, share of waiting, a loss."""
_REFRESH_SECONDS = 0.1


def duration(seconds: float) -> str:
    """Write a time as `42s`, `3m05s` or `2h03m`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def waiting(what: str, seconds: float, room: int | None = None) -> str:
    """Say what is waited for, as much of its end as there are columns for, and for how long by now."""
    since = duration(seconds)
    what = what if room is None else _fitting(what, room - cell_len(f"waiting for  {since}"))
    return f"waiting for {what} {since}"


def joined(parts: Sequence[str], room: int) -> str:
    """Return parts in a line of so many columns; what has no room is left out from the end."""
    line = ""
    for part in parts:
        longer = f"{line}  {part}" if line else part
        if cell_len(longer) > room:
            break
        line = longer
    return line


class ProgressBar:
    """One thing that is under way."""

    def update(
        self,
        step: int,
        *,
        samples_per_second: float | None = None,
        wait_share: float | None = None,
        losses: Mapping[str, float] | None = None,
        eta_seconds: float | None = None,
    ) -> None:
        """Tell the steps done and the figures that are known.

        Args:
            step: Steps done so far.
            samples_per_second: Pictures per second.
            wait_share: Share of wall time in [0, 1] spent waiting for data.
            losses: Loss of each task, by name.
            eta_seconds: Time left, in seconds.
        """
        parts = [] if eta_seconds is None else [f"ETA {duration(eta_seconds)}"]
        if samples_per_second is not None:
            parts.append(f"{samples_per_second:,.1f} img/s")
        if wait_share is not None:
            parts.append(f"wait {wait_share:.0%}")
        parts += [f"{name} {loss:.4g}" for name, loss in (losses or {}).items()]
        self._update(step, parts)

    def wait(self, what: str, seconds: float) -> None:
        """Tell what is waited for, and for how long by now, in place of the figures.

        Args:
            what: URL of what is waited for.
            seconds: How long by now.
        """
        raise NotImplementedError

    def tell(self, text: str) -> None:
        """Tell what is done between two steps, in place of the figures."""
        raise NotImplementedError

    def _update(self, step: int, parts: Sequence[str]) -> None:
        raise NotImplementedError


class _Bar(ProgressBar):
    """A bar on a terminal: what it has no room for is left out from the end, never the count and the share.

    Args:
        bar: Of rich.
        title: Before it.
        total: Of what is counted.
        taken: Columns of all but the figures.
    """

    def __init__(self, bar: RichProgress, title: str, total: int, taken: int) -> None:
        self._bar = bar
        self._taken = taken
        self._task = bar.add_task(title, total=total, figures="")
        self._shown = 0.0
        bar.refresh()

    def _update(self, step: int, parts: Sequence[str]) -> None:
        self._bar.update(self._task, completed=step, figures=joined(parts, self._room()))
        now = time.monotonic()
        if now - self._shown >= _REFRESH_SECONDS:
            self._shown = now
            self._bar.refresh()

    def wait(self, what: str, seconds: float) -> None:
        """Tell what is waited for: as much of its end as there is room for."""
        self.tell(waiting(what, seconds, self._room()))

    def tell(self, text: str) -> None:
        """Tell it where the figures were."""
        self._bar.update(self._task, figures=text if cell_len(text) <= self._room() else "")
        self._bar.refresh()

    def _room(self) -> int:
        return self._bar.console.width - self._taken


class Lines(ProgressBar):
    """Lines, where nobody watches a bar.

    Args:
        say: Prints one.
        title: Before each.
        total: Of what is counted.
        interval: Seconds between two of them.
    """

    def __init__(self, say: Callable[[str], None], title: str, total: int, interval: float) -> None:
        self._say = say
        self._title = title
        self._total = total
        self._interval = interval
        self._shown = self._told = -interval
        self._step: int | None = None
        self._left = ""

    def _update(self, step: int, parts: Sequence[str]) -> None:
        if step == self._step and not self._left:  # told already
            return
        share = f"{step / self._total:.0%}" if self._total else "100%"
        self._step = step
        self._left = f"{self._title} {step}/{self._total} {share}  {'  '.join(parts)}".rstrip()
        now = time.monotonic()
        if now - self._shown >= self._interval:
            self._shown = now
            self.flush()

    def flush(self) -> None:
        """Print the last line if it is still to be shown."""
        if self._left:
            self._say(self._left)
            self._left = ""

    def wait(self, what: str, seconds: float) -> None:
        """Tell what is waited for."""
        self.tell(waiting(what, seconds))

    def tell(self, text: str) -> None:
        """Tell it in a line of its own, if it is time for one."""
        now = time.monotonic()
        if now - self._told >= self._interval:
            self._told = now
            self._say(text)


@contextmanager
def bar_on(terminal: RichConsole, title: str, total: int, *, redirect: bool) -> Generator[ProgressBar]:
    """Show a bar on a terminal while the block runs.

    Args:
        terminal: Where.
        title: Before the bar.
        total: Of what is counted.
        redirect: Whether what this process prints meanwhile goes above the bar.
    """
    counts = len(f" {total}/{total} 100% ")
    title = _fitting(title, terminal.width - counts)
    taken = cell_len(title) + counts
    room = terminal.width - taken - FIGURES_COLUMNS - 1
    bar_column = [BarColumn(bar_width=min(room, BAR_COLUMNS[1]))] if room >= BAR_COLUMNS[0] else []
    taken += min(room, BAR_COLUMNS[1]) + 1 if bar_column else 0
    columns = (
        TextColumn("{task.description}", markup=False),
        *bar_column,
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
    )
    with RichProgress(
        *columns, console=terminal, auto_refresh=False, redirect_stdout=redirect, redirect_stderr=redirect
    ) as bar:
        yield _Bar(bar, title, total, taken)
        bar.refresh()


def _fitting(text: str, room: int) -> str:
    """Return as much of a text's end as there are columns for."""
    return text if cell_len(text) <= room else "…" + set_cell_size(text[::-1], max(0, room - 1))[::-1]
