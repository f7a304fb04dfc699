"""The training of one trial, in a thread of the process that Ray Tune has given to it.

    Tune asks for a result  ->  the thread trains on, to its next evaluation
    Tune judges the result      (the thread waits: a trial that is stopped has not trained for nothing)
    Tune asks again, or stops the trial, or gives the process to another trial

Nothing here knows Ray: `tune.actor` makes an actor of it.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hmtl_dist.config.explain import choices
from hmtl_dist.data.storage.waits import Wait, WaitNotice
from hmtl_dist.errors import UserError
from hmtl_dist.launch.driver import drive
from hmtl_dist.launch.failure import one_line
from hmtl_dist.launch.folders import run_folder, scratch_folder
from hmtl_dist.launch.record import read_record
from hmtl_dist.run_config import RunConfig
from hmtl_dist.train.base import Progress, StopNow
from hmtl_dist.tune.bridge import adopt, await_checkpoint
from hmtl_dist.tune.trials import Trial

STOP_SECONDS = 120.0
"""How long a trial that is told to end may take: it ends at the next step, but an evaluation has none."""


@dataclass
class News:
    """What a trial tells at an evaluation, and at its end."""

    step: int
    """Global step of the run."""
    metrics: dict[str, float]
    """Figures of the evaluation; at the end of several seeds, their means."""
    status: str = "RUNNING"
    """`RUNNING`, `FINISHED`, `STOPPED` (in order, to go on later) or `FAILED`."""
    total_steps: int = 0
    """Steps of a whole run."""
    batch_size: int = 0
    """Samples of a step."""
    images: int = 0
    """Pictures trained on by all seeds in this process and before."""
    samples_per_second: float = 0.0
    seconds: float = 0.0
    """Time trained since the last news."""
    runs: dict[str, str | None] = field(default_factory=dict[str, str | None])
    """MLflow run by name of each run so far."""
    by_seed: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    """Last figures of each seed that has ended."""
    error: str = ""
    adopted: int | None = None
    """Step of the checkpoint of another trial from which this part began."""


class Member:
    """One trial at a time.

    Args:
        push: Sends a line of progress, or what the trial waits for, to the driver, without waiting.
    """

    def __init__(self, push: Callable[[int, Progress | Wait], None]) -> None:
        self._push = push
        self._asked = threading.Event()
        self._over = False
        self._thread: threading.Thread | None = None
        self._news: queue.SimpleQueue[News | BaseException] = queue.SimpleQueue()
        self._go_on = threading.Semaphore(0)
        self._waits = False
        self._exchanges = False
        self._last: tuple[RunConfig, int] | None = None

    def start(self, trial: Trial, params: Mapping[str, Any], donor: str | None = None, told_step: int = 0) -> None:
        """Begin, or go on with, a trial; the one before must have ended.

        Args:
            trial: What to train.
            params: The drawn values.
            donor: URL of another trial's checkpoint to go on from.
            told_step: Global step of the last evaluation that the sweep knows of.
        """
        self._over = False
        self._waits = False
        self._news = queue.SimpleQueue()
        self._go_on = threading.Semaphore(0)
        self._exchanges = trial.exchanges
        self._last = None
        arguments = (trial, dict(params), donor, News(step=told_step, metrics={}))
        self._thread = threading.Thread(target=self._run, args=arguments, name="trial", daemon=True)
        self._thread.start()

    @property
    def started(self) -> bool:
        """Whether there is a trial."""
        return self._thread is not None

    def next(self) -> News:
        """Let the trial go on to its next evaluation, and return what it tells.

        Raises:
            Exception: What broke, where this process is not to be used any more.
        """
        if self._waits:
            self._waits = False
            self._go_on.release()
        news = self._news.get()
        if isinstance(news, BaseException):
            raise news
        self._waits = news.status == "RUNNING"
        return news

    def checkpoint(self) -> str | None:
        """Return the URL of the checkpoint of the last evaluation told, None if no other trial will go on from it.

        Tune asks for it at the end of any trial, also of one that writes none.
        """
        return None if self._last is None else await_checkpoint(*self._last)

    def end(self) -> bool:
        """End the trial where it is; returns whether it did."""
        thread, self._thread = self._thread, None
        if thread is None:
            return True
        self._over = True
        self._go_on.release()
        thread.join(STOP_SECONDS)
        return not thread.is_alive()

    def ask_to_stop(self) -> None:
        """Ask for an orderly stop, with a checkpoint."""
        self._asked.set()
        self._go_on.release()

    # --- in the trial's thread -----------------------------------------------------------------------------------

    def _run(self, trial: Trial, params: dict[str, Any], donor: str | None, told: News) -> None:
        """Train every seed; what a seed cannot do without the process being at fault is told, not raised."""
        try:
            with WaitNotice(lambda wait: self._push(trial.number, wait)):
                self._train(trial, params, donor, told)
        except StopNow:
            return
        except (UserError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, OSError) as error:
            if trial.recipe.resolve(trial.settings).launch.gpus_per_worker:  # the device may be unusable from now on
                self._news.put(error)
                return
            told.status = "FAILED"
            told.error = str(error) if isinstance(error, UserError) else one_line(error)
            self._news.put(told)
        except BaseException as error:  # noqa: BLE001  (handed to whoever waits)
            self._news.put(error)

    def _train(self, trial: Trial, params: dict[str, Any], donor: str | None, told: News) -> None:
        means: dict[str, dict[str, float]] = {}
        if self.should_stop:  # Tune gave it a process when the sweep was ending already
            told.status = "STOPPED"
            self._news.put(told)
            return
        for place, seed in enumerate(trial.seeds):
            config = trial.config(params, seed)
            told.batch_size = config.data.batch_size
            if donor is not None:
                known = _known_run(config)
                told.adopted = adopt(donor, config, known, scratch_folder(config, 0)) or None
            listener = _SeedListener(self, trial, config, told, first=place == 0)
            try:
                finished = drive(
                    config,
                    listener.show,
                    again="changed" if trial.exchanges else "unchanged",
                    listener=listener,
                    parent=trial.parent,
                )
            except Exception:  # what it has cost is told with what broke
                told.seconds += listener.lap()
                told.runs[config.name] = told.runs.get(config.name) or _known_run(config)
                raise
            if listener.pruned:
                raise StopNow
            outcome = finished.outcome
            told.runs[config.name] = finished.run_id
            told.step = outcome.global_step if place == 0 else told.step
            told.total_steps = outcome.total_steps
            told.images = listener.images_before + outcome.global_step * told.batch_size
            told.samples_per_second = outcome.samples_per_second or told.samples_per_second
            told.seconds += listener.lap()
            if outcome.status != "FINISHED":
                told.status = "STOPPED"
                told.metrics = {}
                break
            means[str(seed)] = dict(outcome.metrics)
            _check_metrics(trial, outcome.metrics)
        else:
            told.status = "FINISHED"
            told.metrics = mean_metrics(list(means.values()))
        told.by_seed = means if len(trial.seeds) > 1 else {}
        self._news.put(told)

    def wait_for_verdict(self, news: News, config: RunConfig) -> None:
        """Tell the news of an evaluation and wait until the trial may go on.

        Raises:
            StopNow: It is stopped here.
        """
        if self._exchanges:
            self._last = (config, news.step)
        self._news.put(news)
        self._go_on.acquire()
        if self._over:
            raise StopNow

    def tell(self, number: int, progress: Progress) -> None:
        """Send a line of progress."""
        self._push(number, progress)

    @property
    def should_stop(self) -> bool:
        """Whether the trial is to stop at its next step."""
        return self._asked.is_set() or self._over


class _SeedListener:
    """The loop's listener in one run of a trial."""

    def __init__(self, member: Member, trial: Trial, config: RunConfig, told: News, *, first: bool) -> None:
        self._member = member
        self._trial = trial
        self._config = config
        self._told = told
        self._first = first
        self._fresh: Progress | None = None
        self._since = time.monotonic()
        self._run_id: str | None = None
        self.images_before = told.images
        self.pruned = False

    def lap(self) -> float:
        """Return the seconds since the last lap."""
        now = time.monotonic()
        since, self._since = self._since, now
        return now - since

    def progress(self, progress: Progress) -> None:
        """Send a line of progress to the driver; the figures of an evaluation wait for their report.

        Those of the checkpoint that the run goes on from are reported at once, if they were lost on their way.

        Raises:
            StopNow: The trial is stopped early by those.
        """
        self._member.tell(self._trial.number, progress)
        if progress.phase == "evaluate":
            self._fresh = progress
        lost = progress.phase == "resume" and progress.global_step > self._told.step
        if lost and not self._trial.exchanges:  # where weights are exchanged, they may be another trial's figures
            self._fresh = progress
            self.report({}, None)

    def report(self, metrics: Mapping[str, float], checkpoint: str | None) -> None:
        """Tell the figures of a new evaluation, and wait for the verdict; the end of the run is told after it.

        Raises:
            StopNow: The trial is stopped early, or its process is wanted for another one.
        """
        if self._fresh is None:
            return
        progress, self._fresh = self._fresh, None
        _check_metrics(self._trial, progress.metrics)
        if not self._first or progress.global_step >= progress.total_steps:
            return
        told = self._told
        self._run_id = self._run_id or _known_run(self._config)
        news = News(
            step=progress.global_step,
            metrics=dict(progress.metrics),
            total_steps=progress.total_steps,
            batch_size=told.batch_size,
            images=self.images_before + progress.global_step * told.batch_size,
            samples_per_second=progress.samples_per_second,
            seconds=self.lap(),
            runs={self._config.name: self._run_id},
            adopted=told.adopted,
        )
        told.step, told.adopted = progress.global_step, None
        self._member.wait_for_verdict(news, self._config)
        self._since = time.monotonic()

    def show(self, progress: Progress) -> None:
        """Do the same for a run of several workers, which trains on meanwhile: it is asked to stop, and does so."""
        try:
            self.progress(progress)
            self.report({}, None)
        except StopNow:
            self.pruned = True

    def should_stop(self) -> bool:
        """Whether the driver asked for an orderly stop, or the trial is over."""
        return self.pruned or self._member.should_stop

    def should_save(self) -> bool:
        """Return False: nobody announces anything to a trial."""
        return False

    def note(self, line: str) -> None:
        """Say so in the trial's output."""
        os.write(2, f"{line}\n".encode())

    def hung(self, said: str) -> None:
        """Say so in the trial's output."""
        os.write(2, f"error: {said}\n".encode())


def mean_metrics(metrics: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each figure that all of them have."""
    if not metrics:
        return {}
    names = [name for name in metrics[0] if all(name in one for one in metrics)]
    return {name: sum(one[name] for one in metrics) / len(metrics) for name in names}


def _check_metrics(trial: Trial, metrics: Mapping[str, float]) -> None:
    for metric in trial.metrics:
        if metric not in metrics:
            there = sorted(name for name in metrics if name.startswith("eval/"))
            raise UserError(f"metric: no figure '{metric}' was evaluated; {choices(metric, there)}")


def _known_run(config: RunConfig) -> str | None:
    """Return the MLflow run that the run of a name was begun in."""
    record = read_record(run_folder(config))
    return record.run_id if record else None
