"""The training loop: read this first.

    a run that goes on: show the evaluation that its checkpoint was saved at
    for each global batch of the plan, from the cursor on:
        for each micro-batch of this rank's share:
            inputs  <- the pictures on the device, augmented
            views   <- every task makes its own out of them (puzzles, masks), with its targets
            outputs <- one forward of all distinct views through backbone and heads
            losses  <- each task's, made global by one all-reduce, weighted into one total
            backward
        within a window, the next batch is fetched, and copied while a GPU computes
        the ranks agree: losses and gradients finite? asked to stop? time to save?
        optimizer step, unless something is not finite: then it is skipped, or the run ends
        at the end of a report window: read losses and rate, record and show them
            every few epochs:          evaluate
            every few epochs, steps or minutes: save a checkpoint, written while the run goes on
        a rank was asked to stop:      all ranks report and save at this step, and end

The loop knows protocols only: it can be read, run and profiled on a machine without Ray, DeepSpeed, MLflow or S3.
Nothing in it waits for the device but the flags that the ranks agree on, once an optimizer step, and the figures of a
window.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from hmtl_dist.engine.base import Engine
from hmtl_dist.tasks.base import Inputs, Ranks
from hmtl_dist.tasks.objective import Objective, StepLosses
from hmtl_dist.tracking.base import Tracker
from hmtl_dist.train.base import Callback, Listener, Outcome, Progress
from hmtl_dist.train.best import BEST_STEP
from hmtl_dist.train.guard import Guard, agree
from hmtl_dist.train.schedule import Schedule
from hmtl_dist.train.window import Window, WindowMeans


@dataclass(frozen=True)
class RankBatch:
    """This rank's part of one global batch."""

    num_samples: int
    """Samples of the global batch, over all ranks."""
    micro_batches: Iterable[Inputs]
    """The parts whose gradients are accumulated into one optimizer step; every pass gives the same."""
    sample_ids: Tensor
    """Global ids of the samples of all parts, int64 `[b]`."""


@dataclass(frozen=True)
class Run:
    """Everything one rank trains with, built by `train.worker`."""

    batches: Iterable[RankBatch]
    objective: Objective
    engine: Engine
    ranks: Ranks
    guard: Guard
    schedule: Schedule
    tracker: Tracker
    listener: Listener
    shows: bool
    """Whether this rank, the first, tells the listener of progress."""
    reseed: Callable[[int], None]
    """Seeds dropout and drop-path for a micro-step."""
    evaluate: Callable[[int, Mapping[str, float]], Mapping[str, float]]
    """Evaluates at a global step, on all ranks; given the figures before, returns the new ones, the same on each."""
    save: Callable[[int, Mapping[str, float]], str | None]
    """Begins to save at a global step with the last evaluation's figures, on all ranks; returns the URL of the newest
    checkpoint that is complete."""
    saved: Callable[[], str | None]
    """Waits until what was saved is complete, on all ranks; returns the URL of the newest checkpoint."""
    due: Callable[[], bool]
    """Whether this rank's clock, or a notice that its machine will go, asks for a checkpoint."""
    waited: Callable[[], float]
    """Seconds that this rank's stream has made the loop wait, so far."""
    ahead: Callable[[], None] = lambda: None
    """Fetches the next batch while the device computes, where that is a gain; the wait for it counts as `waited`."""
    more_metrics: Callable[[int], dict[str, float]] = lambda step: {}
    """Further figures of the window that ends at a global step, of data, checkpoints and machines; on all ranks."""
    callbacks: Sequence[Callback] = ()
    """Told of windows, evaluations and the end, on all ranks."""
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    """The last evaluation's figures of the checkpoint that the run goes on from."""
    evaluated_at: int | None = None
    """Global step of that evaluation, if it is known."""
    checkpoint: str | None = None
    """URL of that checkpoint."""


NOTHING = WindowMeans(losses={}, metrics={}, samples_per_second=0.0, wait_share=0.0, step_seconds=0.0)
"""Of a window in which nothing has been trained."""


def train(run: Run) -> Outcome:
    """Train until the schedule ends or a rank is asked to stop; returns the same outcome on every rank."""
    window = Window(run.objective, run.waited)
    metrics, checkpoint = run.metrics, run.checkpoint
    if run.evaluated_at == run.engine.global_step:  # whoever listened may have died before it was told
        show(run, "resume", window, NOTHING, metrics)
    for batch in run.batches:
        losses: list[StepLosses] = []
        for inputs in batch.micro_batches:
            views, prepared = run.objective.prepare(inputs)
            run.reseed(run.engine.micro_step)
            outputs = run.engine.forward(views)
            losses.append(run.objective.losses(outputs, prepared, inputs))
            run.engine.backward(losses[-1].total)
        stop = run.listener.should_stop()
        # not beyond a window, whose figures and checkpoint are of its own batches
        if not (stop or run.schedule.reports(run.engine.global_step + 1)):
            run.ahead()
        verdict = agree(run.engine, run.ranks, losses, stop=stop, save=run.due())
        if verdict.finite:
            run.engine.step()
            run.objective.after_step()
            window.add(losses)
        else:
            run.engine.skip()
            run.guard.judge(run.engine, losses, batch.micro_batches, batch.sample_ids)
        window.count(batch.num_samples)

        step = run.engine.global_step
        if run.schedule.closes_epoch(step):
            run.objective.end_epoch()
        saves = verdict.stop or verdict.save or run.schedule.saves(step)
        if saves or run.schedule.reports(step):
            means = window.read()
            show(run, "train", window, means)
            told = {"global_step": float(step), **record(run, step, means)}
            for callback in run.callbacks:
                callback.on_window(step, told)
            if run.schedule.evaluates(step):
                metrics = run.evaluate(step, metrics)
                run.tracker.metrics(metrics, step)
                for callback in run.callbacks:
                    callback.on_evaluation(step, metrics)
                show(run, "evaluate", window, means, metrics)
            if saves or metrics.get(BEST_STEP) == step:
                checkpoint = run.save(step, metrics)
            run.listener.report({**told, **metrics}, checkpoint)
            window.restart()
        if verdict.stop or run.schedule.ends(step):
            break
    checkpoint = run.saved()
    outcome = Outcome(
        status="FINISHED" if run.schedule.ends(run.engine.global_step) else "STOPPED",
        global_step=run.engine.global_step,
        total_steps=run.schedule.total_steps,
        metrics=metrics,
        checkpoint=checkpoint,
        samples_per_second=window.run.samples_per_second,
        wait_share=window.run.wait_share,
    )
    for callback in run.callbacks:
        callback.on_end(outcome)
    return outcome


def losses_by_name(means: WindowMeans) -> dict[str, float]:
    """Name losses and pretext metrics the way they are recorded."""
    losses = {f"train/loss/{name}": value for name, value in means.losses.items()}
    return losses | {f"train/{name}": value for name, value in means.metrics.items()}


def record(run: Run, step: int, means: WindowMeans) -> dict[str, float]:
    """Write a window's figures to the run's record, and return them by their names there."""
    rates = {
        "train/learning_rate": run.engine.learning_rate,
        "train/samples_per_second": means.samples_per_second,
        "train/wait_share": means.wait_share,
        "train/step_seconds": means.step_seconds,
        "train/epoch": step / run.schedule.steps_per_epoch,
    }
    if run.guard.skipped:
        rates["train/skipped_steps"] = float(run.guard.skipped)
    told = losses_by_name(means) | rates | run.more_metrics(step)
    run.tracker.metrics(told, step)
    return told


def show(run: Run, phase: str, window: Window, means: WindowMeans, metrics: Mapping[str, float] | None = None) -> None:
    """Tell the launcher how far the run is, from one rank."""
    if not run.shows:
        return
    step, rate = run.engine.global_step, window.run.samples_per_second
    left = (run.schedule.total_steps - step) * run.schedule.batch_size
    run.listener.progress(
        Progress(
            phase=phase,
            global_step=step,
            total_steps=run.schedule.total_steps,
            epoch=step / run.schedule.steps_per_epoch,
            samples_per_second=means.samples_per_second,
            wait_share=means.wait_share,
            learning_rate=run.engine.learning_rate,
            losses=means.losses,
            metrics=metrics or {},
            eta_seconds=left / rate if rate else None,
        )
    )
