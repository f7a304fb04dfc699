"""The sweep as its driver knows it: what is next, what each trial told and how it ended; all of it in the ledger."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from hmtl_dist.errors import UserError
from hmtl_dist.tune.ledger import Adoption, Ledger, Record
from hmtl_dist.tune.member import News
from hmtl_dist.tune.space import Space
from hmtl_dist.tune.suggest import suggest

FAILED_AT_FIRST = 3
"""So many trials that break before any has told a figure end the sweep: they would all break."""


class Book:
    """Hands out trials and writes down what becomes of them.

    Ray Tune calls it from its own thread, the terminal from another one.

    Args:
        space: What is searched.
        ledger: Where it is written.
        total_steps: Steps of a whole trial of the recipe.
        ended: Told of every trial that ended.
        check: Checks the values of a new trial; raises UserError where they make no sound configuration.
    """

    def __init__(
        self,
        space: Space,
        ledger: Ledger,
        total_steps: int,
        *,
        ended: Callable[[Record], None] = lambda record: None,
        check: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self.space = space
        self.ledger = ledger
        self.total_steps = total_steps
        self.running: set[int] = set()
        """Trials that were handed out and have not ended."""
        self.begun: set[int] = set()
        """Those of them that have a process."""
        self.price_per_second = 0.0
        """What a second of a trial costs."""
        self.trouble: UserError | None = None
        """Why the sweep cannot go on."""
        self._ended = ended
        self._check = check
        self._lock = threading.RLock()
        self._waiting = [record.number for record in ledger.in_order() if not record.ended]
        self.closed = False
        self._nothing_left = False

    def __getstate__(self) -> dict[str, Any]:
        """Leave nothing to Ray Tune, which pickles all it is given in case somebody should restore it."""
        return {}

    def in_order(self) -> list[Record]:
        """Return all trials by their numbers; does not wait for one that is being written."""
        return self.ledger.in_order()

    @property
    def exhausted(self) -> bool:
        """Whether no trial will be handed out any more."""
        with self._lock:
            left = len(self.ledger.records) < self.space.num_trials and not self._nothing_left
            return self.closed or (not self._waiting and not left)

    @property
    def left(self) -> int:
        """How many trials have not ended, those that are not drawn yet included; fewer may be drawn."""
        with self._lock:
            return max(self.space.num_trials, len(self.ledger.records)) - sum(one.ended for one in self.in_order())

    def close(self) -> None:
        """Hand out no more trials; does not wait for one that is being written."""
        self.closed = True

    def begin(self, number: int) -> None:
        """Note that a trial has a process."""
        with self._lock:
            self.begun.add(number)

    def next(self) -> Record | None:
        """Return a trial that has not ended, else a new one, which is written down first; None if there is none."""
        with self._lock:
            try:
                while not self.exhausted:
                    record = self._next()
                    if record is not None:
                        self.running.add(record.number)
                        return record
            except UserError as error:
                self._give_up(error)
            return None

    def _next(self) -> Record | None:
        if self._waiting:
            number = self._waiting.pop(0)
            return self.ledger.update(number, status="RUNNING")
        number = len(self.ledger.records)
        record = suggest(self.space, self.ledger.in_order(), number)
        if record is None:
            self._nothing_left = True
            return None
        try:
            self._check(record)
        except UserError as error:
            self._end(self.ledger.write(record.model_copy(update={"status": "FAILED", "error": str(error)})))
            return None
        return self.ledger.write(record)

    def hear(self, number: int, news: News, params: Mapping[str, Any]) -> None:
        """Write what a trial told."""
        with self._lock:
            record = self.ledger.records[number]
            changes: dict[str, Any] = {
                "params": dict(params),
                "total_steps": news.total_steps or record.total_steps,
                "batch_size": news.batch_size or record.batch_size,
                "images": max(news.images, record.images),
                "seconds": record.seconds + news.seconds,
                "cost": record.cost + news.seconds * self.price_per_second,
                "samples_per_second": news.samples_per_second or record.samples_per_second,
                "runs": record.runs | news.runs,
                "by_seed": record.by_seed | news.by_seed,
            }
            record = record.model_copy(update=changes)
            if news.metrics:
                record = record.reported(news.step, news.metrics)
            elif news.status == "STOPPED":
                record = record.model_copy(update={"step": max(news.step, record.step)})
            if news.status != "RUNNING":
                record = record.model_copy(update={"status": news.status, "error": news.error})
            self.ledger.write(record)
            if news.status != "RUNNING":
                self._end(record)

    def exchange(self, number: int, donor: int, params: Mapping[str, Any]) -> None:
        """Write that a trial goes on from another one's last checkpoint, with other values."""
        with self._lock:
            record, other = self.ledger.records[number], self.ledger.records[donor]
            adoption = Adoption(step=other.step, donor=donor, params=dict(params))
            self.ledger.write(
                record.model_copy(update={"params": dict(params), "adoptions": (*record.adoptions, adoption)})
            )

    def over(self, number: int) -> None:
        """Write that a trial is over; if it has not said so itself, it was stopped early."""
        with self._lock:
            record = self.ledger.records[number]
            if record.status == "RUNNING" and number in self.running:
                if number not in self.begun:  # never begun, it is left for the next time
                    self.running.discard(number)
                    return
                self._end(self.ledger.update(number, status="PRUNED"))

    def broke(self, number: int, error: str) -> None:
        """Write that a trial broke for good."""
        with self._lock:
            self._end(self.ledger.update(number, status="FAILED", error=error))

    def _end(self, record: Record) -> None:
        self.running.discard(record.number)
        self.begun.discard(record.number)
        self._ended(record)
        known = self.ledger.records.values()
        failed = [one for one in known if one.status == "FAILED"]
        if record.status == "FAILED" and len(failed) >= FAILED_AT_FIRST and not any(one.reports for one in known):
            self._give_up(UserError(f"the first {len(failed)} trials failed, the last one so: {record.error}"))

    def _give_up(self, error: UserError) -> None:
        self.trouble = self.trouble or error
        self.closed = True
