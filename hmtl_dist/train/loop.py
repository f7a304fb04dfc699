"""The training loop: read this first.

    for each global batch of the plan, from the cursor on:
        for each micro-batch of this rank's share:
            inputs  <- the pictures on the device, augmented
            views   <- every task makes its own out of them (puzzles, masks), with its targets
            outputs <- one forward of all distinct views through backbone and heads
            losses  <- each task's, made global by one all-reduce, weighted into one total
            backward
        optimizer step
        at the end of a report window: read losses and rate, record and show them
            every few epochs:          evaluate
            every few epochs or steps: save a checkpoint
        a rank was asked to stop:      all ranks report and save at this step, and end

The loop knows protocols only: it can be read, run and profiled on a machine without Ray, DeepSpeed, MLflow or S3.
Nothing in it waits for the device but the stop flag that the ranks agree on, once a micro-batch, and the figures of a
window.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hmtl_dist.engine.base import Engine
from hmtl_dist.tasks.base import Inputs
from hmtl_dist.tasks.objective import Objective
from hmtl_dist.tracking.base import Tracker
from hmtl_dist.train.base import Listener, Outcome, Progress
from hmtl_dist.train.schedule import Schedule
from hmtl_dist.train.window import Window, WindowFigures


@dataclass(frozen=True)
class Share:
    """This rank's part of one global batch."""

    num_samples: int
    """Samples of the global batch, over all ranks."""
    micro_batches: Iterable[Inputs]
    """The parts whose gradients are accumulated into one optimizer step."""


@dataclass(frozen=True)
class Run:
    """Everything one rank trains with, built by `train.worker`."""

    shares: Iterable[Share]
    objective: Objective
    engine: Engine
    schedule: Schedule
    tracker: Tracker
    listener: Listener
    shows: bool
    """Whether this rank, the first, tells the listener of progress."""
    reseed: Callable[[int], None]
    """Seeds dropout and drop-path for a micro-step."""
    evaluate: Callable[[int], dict[str, float]]
    """Evaluates at a global step, on all ranks; returns the same figures on each."""
    save: Callable[[int, Mapping[str, float]], str]
    """Saves at a global step with the last evaluation's figures, on all ranks; returns the checkpoint's URL."""
    waited: Callable[[], float]
    """Seconds that this rank's stream has made the loop wait, so far."""
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    """The last evaluation's figures of the checkpoint that the run goes on from."""
    checkpoint: str | None = None
    """URL of that checkpoint."""


def train(run: Run) -> Outcome:
    """Train until the schedule ends or a rank is asked to stop; returns the same outcome on every rank."""
    window = Window(run.objective, run.waited)
    metrics, checkpoint = run.metrics, run.checkpoint
    for share in run.shares:
        stop = False
        for inputs in share.micro_batches:
            views, prepared = run.objective.prepare(inputs)
            run.reseed(run.engine.micro_step)
            outputs = run.engine.forward(views)
            losses = run.objective.losses(outputs, prepared, inputs, flags=stop_flag(run))
            run.engine.backward(losses.total)
            window.add(losses)
            stop |= agreed(losses.flags)
            run.engine.step()
        run.objective.after_step()
        window.count(share.num_samples)

        step = run.engine.global_step
        if run.schedule.closes_epoch(step):
            run.objective.end_epoch()
        if stop or run.schedule.reports(step):
            figures = window.read()
            show(run, "train", window, figures)
            record(run, step, figures)
            if run.schedule.evaluates(step):
                metrics = run.evaluate(step)
                run.tracker.metrics(metrics, step)
                show(run, "evaluate", window, figures, metrics)
            saves = stop or run.schedule.saves(step)
            if saves:
                checkpoint = run.save(step, metrics)
            run.listener.report({"global_step": float(step), **losses_by_name(figures), **metrics}, checkpoint)
            window.restart()
        if stop or run.schedule.ends(step):
            break
    return Outcome(
        status="FINISHED" if run.schedule.ends(run.engine.global_step) else "STOPPED",
        global_step=run.engine.global_step,
        total_steps=run.schedule.total_steps,
        metrics=metrics,
        checkpoint=checkpoint,
        samples_per_second=window.run.samples_per_second,
        wait_share=window.run.wait_share,
    )


def stop_flag(run: Run) -> Tensor:
    """Whether this rank was asked to stop, as a one-element tensor that is summed over ranks with the losses."""
    return torch.tensor([float(run.listener.should_stop())], device=run.engine.device)


def agreed(flags: Tensor | None) -> bool:
    """Read the one flag: every rank reads the same sum, so all of them stop at the same step or none does."""
    return flags is not None and flags.item() > 0


def losses_by_name(figures: WindowFigures) -> dict[str, float]:
    """Name losses and pretext metrics the way they are recorded."""
    losses = {f"train/loss/{name}": value for name, value in figures.losses.items()}
    return losses | {f"train/{name}": value for name, value in figures.metrics.items()}


def record(run: Run, step: int, figures: WindowFigures) -> None:
    """Write a window's figures to the run's record."""
    rates = {
        "train/learning_rate": run.engine.learning_rate,
        "train/samples_per_second": figures.samples_per_second,
        "train/wait_share": figures.wait_share,
        "train/epoch": step / run.schedule.steps_per_epoch,
    }
    run.tracker.metrics(losses_by_name(figures) | rates, step)


def show(
    run: Run, phase: str, window: Window, figures: WindowFigures, metrics: Mapping[str, float] | None = None
) -> None:
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
            samples_per_second=figures.samples_per_second,
            wait_share=figures.wait_share,
            learning_rate=run.engine.learning_rate,
            losses=figures.losses,
            metrics=metrics or {},
            eta_seconds=left / rate if rate else None,
        )
    )
