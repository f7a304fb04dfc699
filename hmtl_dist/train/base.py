"""What a launcher hands to the training of one rank, and what the training says back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

from hmtl_dist.run_config import RunConfig
from hmtl_dist.tracking.config import Recording


@dataclass(frozen=True)
class RunContext:
    """Which run this is, and who is told of it: what is no setting, and so no part of the configuration."""

    folder: str
    """URL or path of the run's folder, the same for every rank: checkpoints go there."""
    recording: Recording = field(default_factory=Recording)
    """Where it is recorded, and as which MLflow run."""
    parent: str | None = None
    """MLflow run that it belongs to, such as a search's."""
    attempt: int = 1
    """How often it has been started by a command, this time included; not how often Ray has restarted its workers."""
    callbacks: tuple["Callback", ...] = ()
    """Told by every rank of what happens."""


@dataclass(frozen=True)
class RankContext:
    """Where one rank runs, and what for."""

    rank: int
    world_size: int
    local_rank: int
    device: str
    """A torch device name, such as `cpu` or `cuda:0`."""
    scratch: Path
    """Folder on this rank's machine for the journal and for files on their way to storage."""
    run: RunContext
    """Which run it takes part in."""
    node: int = 0
    """Number of this rank's machine; that of rank 0 is 0."""
    nodes: int = 1
    """Machines of the run."""

    @classmethod
    def alone(cls, device: str = "cpu") -> Self:
        """Return the place of a process that only reads data, and takes part in no run."""
        return cls(0, 1, 0, device, Path(), RunContext(""))


@dataclass(frozen=True)
class Progress:
    """One line of progress, from rank 0."""

    phase: str
    """`train`, `evaluating`, `evaluate` after it, or `resume`: the evaluation that the checkpoint which the run goes on
    from was saved at."""
    global_step: int
    total_steps: int
    epoch: float
    samples_per_second: float
    """Pictures per second of the whole run over the last window."""
    wait_share: float
    """Share of wall time in [0, 1] that the step loop waited for data."""
    learning_rate: float
    losses: Mapping[str, float] = field(default_factory=dict[str, float])
    """Global mean loss of each task over the window, and `total`."""
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    """Evaluation figures, when there are new ones."""
    eta_seconds: float | None = None
    """Time left of the run, or of an evaluation that is under way."""
    share: float = 1.0
    """How much of an evaluation that is under way is done, in [0, 1]."""


@dataclass(frozen=True)
class Outcome:
    """How the training of a run ended; equal on every rank."""

    status: str
    """`FINISHED` or `STOPPED` (orderly, can be resumed)."""
    global_step: int
    total_steps: int
    metrics: Mapping[str, float]
    """The last evaluation's figures."""
    checkpoint: str | None
    """URL or path of the last complete checkpoint."""
    samples_per_second: float
    wait_share: float
    nodes: int = 1
    """Machines that it was trained on."""


class Callback:
    """What a caller of `launch.driver.drive` wants to be told, on every rank and in its training process.

    With Ray it travels to the workers by pickle. If it raises, the run ends; if it takes long, every rank waits.
    """

    def on_window(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take a report window's figures, by their names in MLflow, at its last global step."""

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take an evaluation's figures, the same on every rank."""

    def on_end(self, outcome: Outcome) -> None:
        """Take how the training ended in order, the last checkpoint being complete."""


class StopNow(KeyboardInterrupt):
    """Raised by a listener to end a run where it is, without a checkpoint: nobody will go on with it from here."""


class Listener(Protocol):
    """The launcher as the loop sees it."""

    def progress(self, progress: Progress) -> None:
        """Show a line of progress; called on rank 0 only, never blocks for long.

        A trial of a search waits at a line of phase `resume` as in `report`, where the sweep has not heard of it.
        """
        ...

    def note(self, line: str) -> None:
        """Show a line that the user should read, such as what was passed over; called on rank 0 only."""
        ...

    def report(self, metrics: Mapping[str, float], checkpoint: str | None) -> None:
        """Report a step window; every rank calls it equally often, since it may be a barrier."""
        ...

    def should_stop(self) -> bool:
        """Whether this rank was asked to stop in order (a signal); cheap, called every step."""
        ...

    def hung(self, said: str) -> None:
        """Tell, in one line, that this rank hangs; its process ends next."""
        ...

    def should_save(self) -> bool:
        """Whether this rank's machine was announced to go, so that a checkpoint is due; cheap, called every step."""
        ...


TrainRank = Callable[[RunConfig, RankContext, Listener], Outcome]
"""What a launcher runs on every rank: `train.worker.train_rank`, or a test's own function."""
