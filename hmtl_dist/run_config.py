"""The whole configuration tree of a run, assembled from each component's own section."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from hmtl_dist.augment import AugmentConfig
from hmtl_dist.config.base import Section
from hmtl_dist.data.config import DataConfig
from hmtl_dist.engine.optim import EngineConfig, OptimConfig
from hmtl_dist.model.hmtl import ModelConfig
from hmtl_dist.tasks.base import PretextConfig
from hmtl_dist.tasks.registry import AnyTaskConfig
from hmtl_dist.tasks.weighting import WeightingConfig
from hmtl_dist.tracking.config import TrackingConfig

Count = Annotated[int, Field(ge=1)]


class TrainConfig(Section):
    """How long to train, and how often to report, evaluate and save."""

    epochs: Count = 10
    """Passes over the training split."""
    max_steps: Count | None = None
    """Stop after this many optimizer steps, if sooner than the epochs."""
    report_every_steps: Count = 10
    """Optimizer steps in a report window: progress, metrics and tracking are written once a window."""
    evaluate_every_epochs: Count = 1
    """Evaluate on `data.eval_split` after every so many epochs; the last epoch is always evaluated."""
    checkpoint_every_epochs: Count = 1
    """Save after every so many epochs; the end of the run is always saved."""
    checkpoint_every_steps: Count | None = None
    """Save after every so many optimizer steps too."""
    keep_checkpoints: Count = 2
    """How many of the newest checkpoints to keep."""


class LaunchConfig(Section):
    """Where the run's workers are placed."""

    kind: Literal["ray", "local"] = "ray"
    """`ray`: Ray Train workers; `local`: this process, without Ray."""
    num_workers: Count = 1
    """Training workers (ranks); must divide `data.lanes`."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """CPU cores reserved for a worker; it computes with as many threads (at least one)."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    """GPUs reserved for a worker; 0 trains on the CPU."""
    address: str | None = None
    """Ray cluster to join, such as `auto`; empty: the cluster of the submitted job if there is one, else an own one."""
    storage: str | None = None
    """Folder or `s3://` URL that holds the runs' folders, seen by every worker; empty: `runs` in the home folder."""

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


class RunConfig(Section):
    """A training run: the run is a pure function of this tree."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = "run"
    """Name of the run and of its folder; the same name goes on where that run stopped."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Moves initialisation, sample order, augmentation and every pretext draw."""
    data: DataConfig
    """Where the shards are and how they are streamed."""
    augment: AugmentConfig = AugmentConfig()
    """How training pictures are changed."""
    tasks: dict[str, AnyTaskConfig]
    """The tasks by name; a supervised task reads the label of its own name unless it says otherwise."""
    weighting: WeightingConfig = WeightingConfig()
    """How the tasks' losses become one."""
    model: ModelConfig = ModelConfig()
    """The shared backbone."""
    optim: OptimConfig = OptimConfig()
    """Optimizer and learning-rate schedule."""
    engine: EngineConfig = EngineConfig()
    """How a step is computed."""
    train: TrainConfig = TrainConfig()
    """How long, and how often to report, evaluate and save."""
    launch: LaunchConfig = LaunchConfig()
    """Where the workers are placed."""
    tracking: TrackingConfig = TrackingConfig()
    """Where the run is recorded."""

    @field_validator("tasks")
    @classmethod
    def _some_task(cls, tasks: dict[str, AnyTaskConfig]) -> dict[str, AnyTaskConfig]:
        if not tasks:
            raise ValueError("no task given; name at least one, such as tasks.expression.type=classification")
        if "weighting" in tasks:
            raise ValueError("a task may not be named 'weighting'; give it another name")
        return tasks

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        data, workers, accumulation = self.data, self.launch.num_workers, self.engine.accumulation_steps
        if data.batch_size % data.lanes:
            raise ValueError(
                f"data.batch_size: {data.batch_size} is not a multiple of data.lanes={data.lanes}; "
                f"use {max(1, data.batch_size // data.lanes) * data.lanes} or change data.lanes"
            )
        if data.lanes % workers:
            raise ValueError(
                f"launch.num_workers: {workers} does not divide data.lanes={data.lanes}; "
                f"use a divisor of {data.lanes} or change data.lanes"
            )
        if data.batch_size // workers % accumulation:
            raise ValueError(
                f"engine.accumulation_steps: {accumulation} does not divide the {data.batch_size // workers} samples "
                f"that a worker takes a step (data.batch_size / launch.num_workers)"
            )
        micro_batch = data.batch_size // workers // accumulation
        for name, task in self.tasks.items():
            if isinstance(task, PretextConfig) and micro_batch % task.every:
                raise ValueError(
                    f"tasks.{name}.every: {task.every} does not divide the {micro_batch} samples that a worker takes "
                    f"at once; which samples take part would depend on the number of workers"
                )
        return self
