"""A sweep from its request to its outcome: read this first.

the lock of the sweep's folder     one driver at a time
the ledger                         what earlier parts of it have done; nothing else is remembered
the parent run in MLflow           its trials are its children
the trials, on Ray Tune            tune.search; each end is told to MLflow, the best so far to the parent
the outcome                        leaderboard, pictures, best.yaml, the winner's model as `candidate`
the winner again                   with other seeds, if asked for
"""

import math
import os
import queue
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hmtl_dist.config.dialect import one_line
from hmtl_dist.errors import UserError
from hmtl_dist.launch.lock import only_one
from hmtl_dist.launch.ray_cluster import ray_cluster
from hmtl_dist.tracking.base import RunStatus
from hmtl_dist.tracking.config import TrackingConfig, resolve
from hmtl_dist.tracking.facts import code_tags
from hmtl_dist.tracking.jsonl import Journal
from hmtl_dist.tracking.runs import create_run, finish_run, record_metrics, run_url, tag_run
from hmtl_dist.tracking.sink import open_tracker
from hmtl_dist.train.background import Background, in_thread
from hmtl_dist.train.base import Progress
from hmtl_dist.tune.analysis import best_so_far, winner
from hmtl_dist.tune.book import Book
from hmtl_dist.tune.ledger import Ledger, Record, SweepState, changed
from hmtl_dist.tune.request import Request
from hmtl_dist.tune.results import count, register_winner, write_results
from hmtl_dist.tune.sections import Fifo
from hmtl_dist.tune.space import Space
from hmtl_dist.tune.trials import Trial

SAVE_SECONDS = 15.0
"""How often the time spent is written down."""
RETRAIN = "retrain"
TOLD_AGAIN = 50
"""Trials, the latest ones, whose end MLflow is told again when a sweep goes on: its driver may have been killed."""


@dataclass(frozen=True)
class Outcome:
    """What came of a sweep."""

    records: list[Record]
    best: Record | None
    stopped: bool
    """Whether it was stopped before all trials had ended; the same command goes on."""
    folder: str
    files: tuple[Path, ...]
    """Leaderboard, pictures and `best.yaml` on this machine."""
    parent: str | None
    url: str | None
    model: str | None
    """MLflow model of the winner."""
    retrained: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])
    """Figures of the winner trained again, by seed."""
    seconds: float = 0.0
    """Time spent on the sweep, over all its parts."""


class Onlooker:
    """Who sees the sweep go; does nothing by itself."""

    def begin(self, title: str, book: Book, concurrency: int, seconds: float, hours: float | None) -> None:
        """Called when Ray is there: the trials, how many at a time, the seconds spent and the hours allowed."""

    def note(self, line: str) -> None:
        """Called with what the user should know."""

    def progress(self, number: int, progress: Progress) -> None:
        """Called with every line of progress of a trial."""

    def ended(self, record: Record) -> None:
        """Called when a trial has ended; in another thread."""

    def tick(self) -> None:
        """Called several times a second."""

    def end(self) -> None:
        """Called when the trials are over."""


def run_sweep(request: Request, onlooker: Onlooker, *, retrain: Sequence[int] = ()) -> Outcome:
    """Run what is left of a sweep and write its outcome.

    Args:
        request: The sweep.
        onlooker: Who sees it go.
        retrain: Seeds to train the winner with again, at the end.

    Raises:
        UserError: Another driver is at it, it was begun with other settings, or something else a user can mend.
        TrainingError: Ray Tune itself broke.
    """
    with only_one(request.folder, request.name):
        sweep = _Sweep(request, onlooker)
        status: RunStatus = "FAILED"
        try:
            stopped = sweep.search()
            status = "KILLED" if stopped else "FINISHED"
            if retrain and not stopped:
                stopped = sweep.retrain(retrain)
            outcome = sweep.outcome(stopped)
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            sweep.close(status)
        return outcome


class _Sweep:
    """One part of a sweep: from the command to its end, or to the next interruption."""

    def __init__(self, request: Request, onlooker: Onlooker) -> None:
        self.request = request
        self._onlooker = onlooker
        self._ledger = Ledger(request.folder)
        self._state = self._begin()
        self._tracking = request.config.tracking.model_copy(update={"tags": {}, "register_model": None})
        self._parent = self._open_parent()
        self._journal = self._open_journal()
        self._notes = _Notes(self._tracking)
        self._began = time.monotonic()
        self._saved = 0.0
        self._saving = Background("time spent")

    def _begin(self) -> SweepState:
        """Read how the sweep was begun, or note it.

        Raises:
            UserError: It was begun with other settings.
        """
        request, state = self.request, self._ledger.state()
        if state is None:
            return SweepState(settings=request.settings())
        if difference := changed(state.settings, request.settings()):
            raise UserError(
                f"sweep '{request.name}' was begun with {difference}; set it back, or give the new sweep another --name"
            )
        return state

    def _open_parent(self) -> str | None:
        """Create the MLflow run of the sweep, or find that of an earlier part."""
        request = self.request
        header = request.selection.header
        facts = {"data.digest": header.digest, "space": request.space.model_dump_json(exclude_unset=True)}
        facts |= {key: value for key, value in request.settings().items() if key.startswith("space.")}
        facts |= {f"space.budget.{key}": one_line(value) for key, value in request.space.budget}
        tags = code_tags() | {"sweep": request.name, "kind": "sweep"}
        known, say = self._state.parent, self._onlooker.note
        parent = create_run(self._tracking, name=request.name, known=known, params=facts, tags=tags, say=say)
        self._state = self._state.model_copy(update={"parent": parent})
        self._ledger.write_state(self._state)
        return parent

    def _open_journal(self) -> Journal:
        quiet = self._tracking.model_copy(update={"system_metrics": False})
        journal = open_tracker(resolve(quiet, self._parent), self.request.home / "sweep")
        for source in self.request.selection.sources:
            profile = {"num_samples": source.chosen, "num_shards": source.shards, "draws": source.draws}
            journal.dataset(source.dataset, source.digest, f"{source.url}/{source.split}", "train", profile)
        return journal

    # --- the trials ----------------------------------------------------------------------------------------------

    def search(self) -> bool:
        """Run the trials that are left; returns whether somebody or the budget stopped it."""
        request = self.request
        hours = request.space.budget.hours
        left = None if hours is None else hours - self._state.seconds / 3600
        book = Book(request.space, self._ledger, request.steps[1], ended=self._ended, check=self._check)
        if left is not None and left <= 0:
            return False  # what the time allowed has been done
        for record in self._ledger.in_order()[-TOLD_AGAIN:]:
            if record.ended:
                self._tell(record)
        stopped = self._run(request.space, book, lambda number: request.trial(number, self._parent), left, request.name)
        spent = hours is not None and self._spent() >= hours * 3600
        return stopped and not spent

    def _run(
        self, space: Space, book: Book, make: Callable[[int], Trial], hours_left: float | None, title: str
    ) -> bool:
        if book.exhausted:
            return False
        request, launch = self.request, self.request.config.launch
        watcher = _Watcher(self, title, book, hours_left)
        # an own Ray has room for as many trials as there are cores, and for as many as are asked for
        wanted = math.ceil(launch.world_size * launch.cpus_per_worker * (space.concurrency or 1))
        self._onlooker.note("starting Ray")
        with ray_cluster(launch, num_cpus=max(wanted, len(os.sched_getaffinity(0)))) as cluster:
            from hmtl_dist.tune.search import Job, run_trials  # Ray reads its environment when it is imported

            try:
                job = Job(space, request.config, request.steps[0], make, hours_left)
                return run_trials(job, book, watcher, cluster)
            finally:
                self._onlooker.end()

    def _check(self, record: Record) -> None:
        self.request.trial(record.number, self._parent).config(record.params, self.request.seeds[0])

    def _ended(self, record: Record) -> None:
        """Tell how a trial ended, and the parent how the sweep stands."""
        self._onlooker.ended(record)
        self._tell(record)
        self._tell_parent()

    def _tell(self, record: Record) -> None:
        """Tell MLflow how a trial ended."""
        tags = {"outcome": record.status.lower()}
        if record.error:
            tags["error"] = record.error
        if record.adoptions:
            tags["adopted"] = ", ".join(f"{one.donor} at step {one.step}" for one in record.adoptions)
        self._note(record, tags)

    def _note(self, record: Record, tags: Mapping[str, str]) -> None:
        """Tell the runs of a trial how it ended, and the first of them what it has cost with all its seeds."""
        metrics = {"cost/run": record.cost} if record.cost else {}
        if record.cost and record.images:
            metrics["cost/per_million_images"] = record.cost / record.images * 1e6
        for place, run_id in enumerate(record.runs.values()):
            told = metrics if place == 0 else {}
            self._notes.add(run_id, tags, told, step=record.step, failed=record.status == "FAILED")

    def _tell_parent(self) -> None:
        records = self._ledger.in_order()
        ended = [record for record in records if record.ended]
        metrics = {f"trials/{kind}": float(count(ended, kind.upper())) for kind in ("finished", "pruned", "failed")}
        metrics["images"] = float(sum(record.images for record in records))
        if cost := sum(record.cost for record in records):
            metrics["cost/trials"] = cost
        best = best_so_far(self.request.space, ended)
        if best is not None:
            metrics[f"best/{self.request.space.metric.removeprefix('eval/')}"] = best
        self._journal.metrics(metrics, len(ended))

    def begun(self, title: str, book: Book, concurrency: int, hours_left: float | None) -> None:
        """Tell that Ray is there."""
        self._onlooker.begin(title, book, concurrency, self._spent(), hours_left)

    def progress(self, number: int, progress: Progress) -> None:
        """Hand a line of progress on."""
        self._onlooker.progress(number, progress)

    def tick(self) -> None:
        """Write the time spent down, now and then; storage that is away does not keep the onlooker waiting."""
        if time.monotonic() - self._saved > SAVE_SECONDS and not self._saving.busy:
            self._saved = time.monotonic()
            state = self._state_by_now()
            self._saving.start(lambda: self._ledger.write_state(state))
        self._onlooker.tick()

    def _spent(self) -> float:
        return self._state.seconds + time.monotonic() - self._began

    def _state_by_now(self) -> SweepState:
        return self._state.model_copy(update={"seconds": self._spent()})

    def _save_time(self) -> None:
        self._saving.wait()
        self._ledger.write_state(self._state_by_now())

    # --- the winner again ----------------------------------------------------------------------------------------

    def retrain(self, seeds: Sequence[int]) -> bool:
        """Train the winner with other seeds; returns whether it was stopped before the end."""
        request = self.request
        best = winner(request.space, self._ledger.in_order())
        if best is None:
            raise UserError(f"--retrain: no trial of '{request.name}' has finished, there is no winner to train again")
        ledger = Ledger(f"{request.folder.rstrip('/')}/{RETRAIN}")
        for seed in seeds:
            known = ledger.records.get(seed)
            if known is None or known.params != best.params:
                ledger.write(Record(number=seed, params=best.params))
        space = request.space.model_copy(
            update={
                "schedule": Fifo(type="fifo"),
                "seeds": 1,
                "budget": request.space.budget.model_copy(update={"trials": len(ledger.records), "hours": None}),
            }
        )

        def make(seed: int) -> Trial:
            trial = request.trial(seed, self._parent)
            kept = tuple(one for one in trial.settings if not one.startswith(("tracking.", "train.keep", "train.eval")))
            return trial.model_copy(
                update={"sweep": f"{request.name}-best", "seeds": (seed,), "settings": kept, "exchanges": False}
            )

        stopped = self._run(space, Book(space, ledger, request.steps[1], ended=self._retrained), make, None, "winner")
        metrics = {str(record.number): dict(record.metrics) for record in ledger.in_order() if record.number in seeds}
        self._state = self._state.model_copy(update={"retrained": {seed: one for seed, one in metrics.items() if one}})
        self._save_time()
        return stopped

    def _retrained(self, record: Record) -> None:
        self._onlooker.ended(record)
        self._note(record, {"outcome": record.status.lower(), "kind": RETRAIN})

    # --- the outcome ---------------------------------------------------------------------------------------------

    def outcome(self, stopped: bool) -> Outcome:
        """Write and record what came of the sweep."""
        records = self._ledger.in_order()
        best = winner(self.request.space, records)
        files = write_results(self.request, records, best, self._retrained_values())
        for file in files:
            self._journal.artifact(file)
        metrics = self._retrained_metrics()
        if metrics:
            self._journal.metrics(metrics, len([record for record in records if record.ended]))
        model = None
        if best is not None and not stopped:
            model = register_winner(self.request, self._tracking, best)
        return Outcome(
            records=records,
            best=best,
            stopped=stopped,
            folder=self.request.folder,
            files=tuple(files),
            parent=self._parent,
            url=run_url(self._tracking, self._parent) if self._parent else None,
            model=model,
            retrained=self._state.retrained,
            seconds=self._spent(),
        )

    def _retrained_metrics(self) -> dict[str, float]:
        values = self._retrained_values()
        if not values:
            return {}
        name = self.request.space.metric.removeprefix("eval/")
        found = {f"retrained/{name}/mean": statistics.fmean(values)}
        if len(values) > 1:
            found[f"retrained/{name}/sd"] = statistics.stdev(values)
        return found

    def _retrained_values(self) -> list[float]:
        metric = self.request.space.metric
        return [metrics[metric] for metrics in self._state.retrained.values() if metric in metrics]

    def close(self, status: RunStatus) -> None:
        """End the parent run and write the time down."""
        self._save_time()
        self._notes.close()
        self._journal.close(status)
        finish_run(self._tracking, self._parent, status)


class _Watcher:
    """Hands on what the search tells."""

    def __init__(self, sweep: _Sweep, title: str, book: Book, hours_left: float | None) -> None:
        self._sweep = sweep
        self._title = title
        self._book = book
        self._hours_left = hours_left

    def started(self, concurrency: int) -> None:
        self._sweep.begun(self._title, self._book, concurrency, self._hours_left)

    def progress(self, number: int, progress: Progress) -> None:
        self._sweep.progress(number, progress)

    def tick(self) -> None:
        self._sweep.tick()


class _Notes:
    """Sets tags, the cost and the status of broken trials in a thread: MLflow must not hold Ray Tune up."""

    def __init__(self, tracking: TrackingConfig) -> None:
        self._tracking = tracking
        self._left: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = in_thread(self._work, "notes")

    def add(
        self, run_id: str | None, tags: Mapping[str, str], metrics: Mapping[str, float], *, step: int, failed: bool
    ) -> None:
        def write() -> None:
            tag_run(self._tracking, run_id, tags)
            record_metrics(self._tracking, run_id, metrics, step)
            if failed:
                finish_run(self._tracking, run_id, "FAILED")

        if run_id is not None:
            self._left.put(write)

    def close(self) -> None:
        self._left.put(None)
        self._thread.result(timeout=self._tracking.close_seconds)

    def _work(self) -> None:
        while (write := self._left.get()) is not None:
            write()
