# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedBaseClass=false, reportUnknownParameterType=false
# pyright: reportPrivateUsage=false, reportIncompatibleMethodOverride=false
"""The trials of a sweep as trials of Ray Tune.

Ray Tune places trials, reuses their processes, judges what they report and exchanges their checkpoints. What a sweep
has to remember is not left to it: `Tuner.restore` brings back neither the state of a scheduler nor what was suggested
since its last snapshot. The ledger does, and a sweep that goes on is a new run of Tune whose searcher hands out the
trials that have not ended, and whose scheduler is shown all that was reported before.
"""

import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import pyarrow.fs
import ray
import ray.exceptions
from ray import tune
from ray.train._internal.session import _TrainingResult
from ray.tune.callback import Callback
from ray.tune.experiment import Trial as RayTrial
from ray.tune.experiment.config_parser import _create_trial_from_spec, _make_parser
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import SearchAlgorithm

from hmtl_dist.launch.failure import TrainingError, one_line
from hmtl_dist.launch.ray_cluster import Cluster
from hmtl_dist.launch.ray_nodes import actor_here
from hmtl_dist.launch.signals import StopRequest
from hmtl_dist.run_config import LaunchConfig, RunConfig
from hmtl_dist.train.background import in_thread
from hmtl_dist.train.base import Progress
from hmtl_dist.tune.book import Book
from hmtl_dist.tune.distributions import Choice, LogUniform, Uniform
from hmtl_dist.tune.ledger import Record
from hmtl_dist.tune.mailbox import Mailbox
from hmtl_dist.tune.member import Member, News
from hmtl_dist.tune.room import check_room, in_hand, places
from hmtl_dist.tune.space import Asha, Median, Pb2, Pbt, Space
from hmtl_dist.tune.trials import Trial

STEP, FAILED = "global_step", "failed"
PARAMS, TRIAL, TOLD = "params", "trial", "told"
"""Keys of a trial's configuration as Tune holds it: the values by path, what does not change, as JSON, and the global
step of the last report."""
_LOOK_SECONDS = 0.2
"""How often the driver looks for progress and for a stop request."""
_ANSWER_SECONDS = 10.0

_TUNE_VARIABLES = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # what they would write is in the ledger and in MLflow
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the end of a trial that broke has no figure
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own snapshots are not used
    "TUNE_WARN_THRESHOLD_S": "10",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
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
        room = _room(job.config.launch)
        concurrency = min(room, job.space.concurrency or room)
        watcher.started(concurrency)
        mailbox = actor_here(Mailbox)
        at_once = in_hand(job.space, job.config.launch, concurrency, room)
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


def _room(launch: LaunchConfig) -> int:
    """Return how many trials there is room for.

    Raises:
        UserError: There is room for none.
    """
    nodes = [cast("dict[str, float]", node["Resources"]) for node in ray.nodes() if node["Alive"]]
    room = places(nodes, launch)
    check_room(room, nodes, launch)
    return room


def _done(future: "Future[Any]") -> bool:
    return bool(wait([future], timeout=_LOOK_SECONDS).done)


def _take(mailbox: Any, watcher: Watcher) -> None:
    try:
        lines: list[tuple[int, Progress]] = ray.get(mailbox.take.remote(), timeout=_ANSWER_SECONDS)
    except (ray.exceptions.GetTimeoutError, ray.exceptions.RayError):
        lines = []
    for number, progress in lines:
        watcher.progress(number, progress)
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


# --- in the trial's process --------------------------------------------------------------------------------------


class TrialActor(tune.Trainable):
    """A process that trains one trial after another."""

    def setup(self, config: dict[str, Any], mailbox: Any = None) -> None:
        """Wait for the stop request from now on; the trial itself starts when Tune asks for its first result."""
        self._donor: str | None = None
        self._gone = False
        self._member = Member(mailbox.push.remote)
        threading.Thread(target=self._wait_for_stop, args=(mailbox,), name="stop request", daemon=True).start()

    def _wait_for_stop(self, mailbox: Any) -> None:
        try:
            ray.get(mailbox.stop_requested.remote())
        except ray.exceptions.RayError:
            if not self._gone:  # the mailbox ends with its driver: nobody is left to train for, another may begin
                os._exit(1)
        self._member.ask_to_stop()

    def step(self) -> dict[str, Any]:
        """Train on to the next evaluation, or to the end."""
        if not self._member.started:
            trial = Trial.model_validate_json(self.config[TRIAL])
            self._member.start(trial, self.config[PARAMS], self._donor, self.config[TOLD])
            self._donor = None
        news = self._member.next()
        figures: dict[str, Any] = {**news.figures, STEP: news.step, "news": news}
        if news.status != "RUNNING":
            figures["done"] = True
        if news.status == "FAILED":  # schedulers pass over what is not a number
            figures |= dict.fromkeys(Trial.model_validate_json(self.config[TRIAL]).metrics, math.nan)
        return figures

    def save(self, checkpoint_dir: str | None = None) -> Any:
        """Return the newest checkpoint as Tune passes it on: nothing but its URL."""
        url = self._member.checkpoint()
        pointer = None if url is None else tune.Checkpoint(url, filesystem=pyarrow.fs.LocalFileSystem())
        metrics = {key: value for key, value in (self._last_result or {}).items() if key != "news"}
        return _TrainingResult(checkpoint=pointer, metrics=metrics)

    def restore(self, checkpoint_path: Any) -> None:
        """Note from whose checkpoint to go on."""
        self._donor = checkpoint_path.checkpoint.path

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End the trial before, and be ready for another one."""
        self._donor = None
        return self._member.end()

    def cleanup(self) -> None:
        """End the trial; its process goes."""
        self._gone = True
        self._member.end()


# --- on the driver -----------------------------------------------------------------------------------------------


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


def make_scheduler(space: Space, steps_per_epoch: int, book: Book) -> TrialScheduler:
    """Return the scheduler of a space, which knows all that has been reported before."""
    schedule = space.schedule
    judged: dict[str, Any] = {"time_attr": STEP, "metric": space.metric, "mode": space.mode}
    if isinstance(schedule, Asha):
        grace = schedule.grace_epochs * steps_per_epoch
        scheduler = ASHAScheduler(
            **judged,
            max_t=max(grace, book.total_steps) + 1,  # who comes to the end has finished, and is not stopped there
            grace_period=grace,
            reduction_factor=schedule.reduction,
        )
        _replay(scheduler, space, book.in_order())
        return scheduler
    if isinstance(schedule, Median):
        scheduler = MedianStoppingRule(
            **judged,
            grace_period=schedule.grace_epochs * steps_per_epoch,
            min_samples_required=schedule.min_trials,
            min_time_slice=10**12,  # trials do not make room for others
        )
        _replay(scheduler, space, [record for record in book.in_order() if record.ended])
        return scheduler
    if isinstance(schedule, Pbt):
        return Population(
            space,
            book,
            **judged,
            perturbation_interval=schedule.interval_epochs * steps_per_epoch,
            quantile_fraction=schedule.quantile,
            resample_probability=schedule.resample,
            perturbation_factors=tuple(schedule.factors),
        )
    if isinstance(schedule, Pb2):
        return bandits(
            space,
            book,
            **judged,
            perturbation_interval=schedule.interval_epochs * steps_per_epoch,
            quantile_fraction=schedule.quantile,
        )
    return FIFOScheduler()


@dataclass(frozen=True)
class _Past:
    """What a scheduler asks of a trial that it is only told about."""

    trial_id: str
    status: str = RayTrial.TERMINATED

    def is_finished(self) -> bool:
        return True


def _replay(scheduler: TrialScheduler, space: Space, records: list[Record]) -> None:
    """Tell a scheduler what was reported before, in the order of time; what it decides of it is history."""
    reports = [(report, record) for record in records for report in record.reports if space.metric in report.figures]
    known: dict[int, Any] = {}
    for report, record in sorted(reports, key=lambda pair: pair[0].at):
        past: Any = known.get(record.number)
        if past is None:
            past = known[record.number] = _Past(f"{record.number:05d}")
            scheduler.on_trial_add(cast("Any", None), past)
        result = {STEP: report.step, space.metric: report.figures[space.metric]}
        if isinstance(scheduler, MedianStoppingRule):
            scheduler.on_trial_complete(cast("Any", _NOBODY), past, result)  # only notes it
        else:
            scheduler.on_trial_result(cast("Any", _NOBODY), past, result)


class _Nobody:
    """A controller with no trials."""

    def get_live_trials(self) -> list[Any]:
        return []


_NOBODY = _Nobody()


class _Exchange:
    """What both population schedulers do alike: values are kept apart in `config["params"]`, and noted in the book."""

    _space: Space
    _book: Book

    def _get_new_config(self, trial: RayTrial, trial_to_clone: RayTrial) -> Any:
        config, operations = cast("Any", super())._get_new_config(trial, trial_to_clone)
        params = {path: config[PARAMS][path] for path in trial.config[PARAMS]}
        config = {**trial.config, PARAMS: {path: within(self._space, path, value) for path, value in params.items()}}
        self._book.exchange(int(trial.trial_id), int(trial_to_clone.trial_id), config[PARAMS])
        return config, operations


class Population(_Exchange, PopulationBasedTraining):
    """Ray's population based training over the parameters of a space."""

    def __init__(self, space: Space, book: Book, **settings: Any) -> None:
        self._space, self._book = space, book
        mutations = {path: _mutation(space, path) for path in space.varied}
        super().__init__(hyperparam_mutations={PARAMS: mutations}, require_attrs=False, log_config=False, **settings)


def bandits(space: Space, book: Book, **settings: Any) -> TrialScheduler:
    """Return Ray's population based bandits over the parameters of a space; scikit-learn comes with them."""
    from ray.tune.schedulers.pb2 import PB2

    class Bandits(_Exchange, PB2):
        def __init__(self) -> None:
            self._space, self._book = space, book
            bounds = {path: space.params[path].extremes() for path in space.varied}
            super().__init__(hyperparam_bounds={PARAMS: bounds}, require_attrs=False, log_config=False, **settings)

    return Bandits()


def _mutation(space: Space, path: str) -> Any:
    """Return what Ray draws a value anew from."""
    distribution = space.params[path]
    match distribution:
        case Uniform(low=low, high=high):
            return tune.uniform(low, high)
        case LogUniform(low=low, high=high):
            return tune.loguniform(low, high)
        case Choice(values=values):
            return list(values)
        case _:
            steps = distribution.steps()
            if steps is not None:
                return steps
            low, high = distribution.extremes()
            return tune.uniform(low, high)


def within(space: Space, path: str, value: Any) -> Any:
    """Return the nearest value that a parameter may have."""
    distribution = space.params[path]
    if distribution.holds(value):
        return value
    steps = distribution.steps()
    if steps is not None:
        return min(steps, key=lambda step: abs(step - value)) if isinstance(value, int | float) else steps[0]
    low, high = distribution.extremes()
    return min(high, max(low, value))
