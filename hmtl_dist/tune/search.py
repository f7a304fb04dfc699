# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateUsage=false, reportIncompatibleMethodOverride=false
"""The trials of a sweep as trials of Ray Tune.

Ray Tune places trials, reuses their processes, judges what they report and exchanges their checkpoints. What a sweep
has to remember is not left to it: `Tuner.restore` brings back neither the state of a scheduler nor what was suggested
since its last snapshot. The ledger does, and a sweep that goes on is a new run of Tune whose searcher hands out the
trials that have not ended, and whose scheduler is shown all that was reported before.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import ray
import ray.exceptions
from ray import tune
from ray.tune.callback import Callback
from ray.tune.experiment import Trial as RayTrial
from ray.tune.experiment.config_parser import _create_trial_from_spec, _make_parser
from ray.tune.search import SearchAlgorithm

from hmtl_dist.data.storage.waits import Wait, hear
from hmtl_dist.launch.failure import TrainingError, one_line
from hmtl_dist.launch.ray_cluster import Cluster
from hmtl_dist.launch.ray_nodes import actor_here
from hmtl_dist.launch.signals import StopRequest
from hmtl_dist.run_config import RunConfig
from hmtl_dist.train.background import in_thread
from hmtl_dist.train.base import Progress
from hmtl_dist.tune.actor import PARAMS, TOLD, TRIAL, TrialActor
from hmtl_dist.tune.book import Book
from hmtl_dist.tune.mailbox import Mailbox
from hmtl_dist.tune.member import News
from hmtl_dist.tune.room import check_room, in_hand, places, price_per_second
from hmtl_dist.tune.schedulers import make_scheduler
from hmtl_dist.tune.space import Space
from hmtl_dist.tune.trials import Trial

_LOOK_SECONDS = 0.2
"""How often the driver looks for progress and for a stop request."""
_ANSWER_SECONDS = 10.0

_TUNE_VARIABLES = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # what they would write is in the ledger and in MLflow
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the end of a trial that broke has no figure
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own snapshots are not used
    "TUNE_WARN_THRESHOLD_S": "10",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class Job:
    """A sweep, or the part of it that is still to do."""

    space: Space
    config: RunConfig
    """A trial's configuration, but for what is drawn: it says where trials run and what one takes."""
    steps_per_epoch: int
    make: Callable[[int], Trial]
    """Returns what the process of a numbered trial gets."""
    hours_left: float | None = None
    """Wall-clock hours after which running trials are asked to stop."""


class Watcher(Protocol):
    """Who is told how the sweep goes; every method is called on the main thread."""

    def started(self, concurrency: int) -> None:
        """Ray is there; called once."""
        ...

    def progress(self, number: int, progress: Progress) -> None:
        """A trial has a line of progress."""
        ...

    def tick(self) -> None:
        """Time has passed; called several times a second."""
        ...


def run_trials(job: Job, book: Book, watcher: Watcher, cluster: Cluster) -> bool:
    """Run what is left of a sweep on Ray Tune, in the Ray that this process is connected to.

    Args:
        job: What to run.
        book: Hands out trials and keeps what they report.
        watcher: Who is told.
        cluster: That Ray.

    Returns:
        Whether it was stopped, by a signal or for want of time, before all trials had ended.

    Raises:
        UserError: The cluster has no room for a single trial, or no trial works.
        TrainingError: Ray Tune itself broke, or a server of an own Ray died.
    """
    for name, value in _TUNE_VARIABLES.items():
        os.environ.setdefault(name, value)
    with StopRequest() as stop:
        nodes = [cast("dict[str, float]", node["Resources"]) for node in ray.nodes() if node["Alive"]]
        room = places(nodes, job.config.launch)
        check_room(room, nodes, job.config.launch)
        concurrency = min(room, job.space.concurrency or room)
        book.price_per_second = price_per_second(nodes, job.config.launch, max(1, min(concurrency, book.left)))
        watcher.started(concurrency)
        mailbox = actor_here(Mailbox)
        at_once = in_hand(job.space, job.config.launch, concurrency, room)
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(concurrency)  # their processes start together
        fit = in_thread(_tuner(job, book, mailbox, at_once, cluster.scratch).fit, "ray tune")
        deadline = None if job.hours_left is None else time.monotonic() + 3600 * job.hours_left
        asked = False
        while not _done(fit):
            cluster.check()
            _take(mailbox, watcher)
            if not asked and (stop.requested or (deadline is not None and time.monotonic() > deadline)):
                asked = True
                book.close()
                mailbox.request_stop.remote()
        _take(mailbox, watcher)
        try:
            fit.result()
        except Exception as error:
            raise book.trouble or TrainingError(f"Ray Tune: {one_line(error)}", keep_logs=True) from error
        if book.trouble is not None:
            raise book.trouble
    return asked


def _done(future: "Future[Any]") -> bool:
    return bool(wait([future], timeout=_LOOK_SECONDS).done)


def _take(mailbox: Any, watcher: Watcher) -> None:
    try:
        lines: list[tuple[int, Progress | Wait]] = ray.get(mailbox.take.remote(), timeout=_ANSWER_SECONDS)
    except (ray.exceptions.GetTimeoutError, ray.exceptions.RayError):
        lines = []
    for number, line in lines:
        if isinstance(line, Wait):
            hear(line)
        else:
            watcher.progress(number, line)
    watcher.tick()


def _tuner(job: Job, book: Book, mailbox: Any, at_once: int, scratch: Path) -> tune.Tuner:
    launch = job.config.launch
    resources: dict[str, float] = {"CPU": launch.cpus_per_worker}
    if launch.gpus_per_worker:
        resources["GPU"] = launch.gpus_per_worker
    if launch.world_size > 1:  # the trial's own process only waits for its workers, which have places of their own
        resources = {"memory": 1.0}  # a byte: Ray places nothing that takes nothing
    actor = tune.with_parameters(TrialActor, mailbox=mailbox)
    return tune.Tuner(
        tune.with_resources(actor, tune.PlacementGroupFactory([resources])),
        tune_config=tune.TuneConfig(
            search_alg=Source(book, job.make, at_once),
            scheduler=make_scheduler(job.space, job.steps_per_epoch, book),
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(scratch / "tune"),  # only what Tune writes of its own; it is not needed again
            callbacks=[Recorder(book)],
            stop=Closing(book),
            failure_config=tune.FailureConfig(max_failures=launch.max_failures),
            verbose=0,
        ),
    )


def _name(trial: RayTrial) -> str:
    return trial.trial_id


class Source(SearchAlgorithm):
    """Hands the book's trials to Tune.

    Args:
        book: Knows them.
        make: Returns what the process of a numbered trial gets.
        at_once: How many may be in Tune's hands.
    """

    def __init__(self, book: Book, make: Callable[[int], Trial], at_once: int) -> None:
        self._book = book
        self._make = make
        self._at_once = at_once
        self._parser = _make_parser()
        self._spec: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave nothing to be restored from, as the book does."""
        return {}

    @property
    def total_samples(self) -> int:
        """How many trials there are to be."""
        return self._book.space.num_trials

    def add_configurations(self, experiments: Any) -> None:
        """Take note of how Tune runs a trial."""
        (experiment,) = experiments if isinstance(experiments, list) else [experiments]
        self._spec = experiment.spec

    def next_trial(self) -> RayTrial | None:
        """Return another trial, None while there is no room for it, or when there is none."""
        if len(self._book.running) >= self._at_once:
            return None
        record = self._book.next()
        if record is None:
            return None
        trial = self._make(record.number)
        config = {PARAMS: dict(record.params), TRIAL: trial.model_dump_json(), TOLD: record.told_step}
        spec = {**self._spec, "config": config}
        return _create_trial_from_spec(spec, self._parser, trial_id=f"{record.number:05d}", experiment_tag="")

    def is_finished(self) -> bool:
        """Whether no more trials will come."""
        return self._book.exhausted


class Closing(tune.Stopper):
    """Ends Tune when no more trials are handed out and those that had begun are over: a waiting one is not begun."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stop no single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether only trials are left that have not begun."""
        return self._book.closed and not self._book.begun


class Recorder(Callback):
    """Writes into the book what becomes of trials."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def on_trial_start(self, iteration: int, trials: Any, trial: RayTrial, **info: Any) -> None:
        """Write that a trial has a process."""
        self._book.begin(int(trial.trial_id))

    def on_trial_result(
        self, iteration: int, trials: Any, trial: RayTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """Write what a trial told."""
        news: News = result.pop("news")
        self._book.hear(int(trial.trial_id), news, trial.config[PARAMS])
        trial.config[TOLD] = news.step  # a process that is started again after this gets it

    def on_trial_complete(self, iteration: int, trials: Any, trial: RayTrial, **info: Any) -> None:
        """Write that a trial is over, of itself or because it was stopped early."""
        self._book.over(int(trial.trial_id))

    def on_trial_error(self, iteration: int, trials: Any, trial: RayTrial, **info: Any) -> None:
        """Write that a trial broke, more often than it may."""
        error = trial.get_error() if hasattr(trial, "get_error") else None
        self._book.broke(int(trial.trial_id), _cause(error))


def _cause(error: Any) -> str:
    if error is None or isinstance(error, ray.exceptions.RayActorError):
        return "its process died (it crashed or was killed, for memory perhaps)"
    return one_line(getattr(error, "cause", None) or error)
