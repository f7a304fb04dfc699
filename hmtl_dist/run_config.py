"""The whole configuration tree of a run, assembled from each component's own section."""

from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from hmtl_dist.augment import AugmentConfig
from hmtl_dist.augment.mixing import mixes
from hmtl_dist.config.base import MAY_CHANGE, Section
from hmtl_dist.data.config import DataConfig
from hmtl_dist.data.storage.config import StorageConfig
from hmtl_dist.engine.optim import EngineConfig, OptimConfig
from hmtl_dist.errors import UserError
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
    report_every_steps: Annotated[Count, MAY_CHANGE] = 10
    """Optimizer steps in a report window: progress, metrics and tracking are written once a window."""
    evaluate_every_epochs: Annotated[Count, MAY_CHANGE] = 1
    """Evaluate on `data.eval_split` after every so many epochs; the last epoch is always evaluated."""
    checkpoint_every_epochs: Annotated[Count, MAY_CHANGE] = 1
    """Save after every so many epochs; the end of the run is always saved."""
    checkpoint_every_steps: Annotated[Count | None, MAY_CHANGE] = None
    """Save after every so many optimizer steps too."""
    checkpoint_every_minutes: Annotated[Annotated[float, Field(gt=0)] | None, MAY_CHANGE] = 10.0
    """Save too when so many minutes have passed since the last checkpoint; null: never by the clock."""
    keep_checkpoints: Annotated[Count, MAY_CHANGE] = 2
    """How many of the newest checkpoints to keep."""
    on_nonfinite: Annotated[Literal["stop", "skip"], MAY_CHANGE] = "stop"
    """What becomes of a step whose loss or gradient is not finite: the run ends, or the step is left out."""
    hang_minutes: Annotated[float, Field(gt=0), MAY_CHANGE] = 20.0
    """A rank that takes no step for so long writes its stacks to `stacks.txt` and ends; Ray starts the run again."""
    max_skipped: Annotated[int, Field(ge=0), MAY_CHANGE] = 10
    """Most steps that `on_nonfinite=skip` leaves out in the whole run, before it ends."""
    monitor: Annotated[str, Field(pattern=r"^eval/[^/]+/.+$")] | None = None
    """Figure that decides which evaluation was best, such as `eval/expression/accuracy`; its checkpoint is kept and
    its figures are told apart as `best/...`. Empty: none is."""
    monitor_mode: Literal["max", "min"] = "max"
    """Whether more (`max`) or less (`min`) of the monitored figure is better."""
    groups: Annotated[tuple[str, ...], MAY_CHANGE] = ()
    """Labels whose groups are told apart when evaluating, such as `[gender, age]`: figures of each group, and the gap
    of the best and the worst one, `eval/TASK/gap/LABEL/METRIC`. A number label needs `bands`."""
    bands: Annotated[dict[str, Annotated[tuple[float, ...], Field(min_length=1)]], MAY_CHANGE] = Field(
        default_factory=lambda: {"age": (20.0, 40.0, 60.0)}
    )
    """Where the groups of a number label end, in its unit: [20, 40] parts under 20, 20 to under 40, and 40 and over."""
    gap_metrics: Annotated[tuple[Annotated[str, Field(pattern=r"^[^/]+/.+$")], ...], MAY_CHANGE] = ()
    """Figures that are told by group, such as `expression/accuracy`; empty: all of every supervised task."""

    @field_validator("bands")
    @classmethod
    def _ascending(cls, bands: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        for label, edges in bands.items():
            if any(low >= high for low, high in pairwise(edges)):
                raise ValueError(f"the ends of the groups of {label} must ascend, given {list(edges)}")
        return bands


class LaunchConfig(Section):
    """Where the run's workers are placed."""

    kind: Literal["ray", "local"] = "ray"
    """`ray`: Ray Train workers; `local`: this process, without Ray."""
    num_workers: Count | Literal["auto"] = 1
    """Training workers (ranks); must divide `data.lanes`. `auto`: as many as the machines have room for that are there
    when the run starts."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """CPU cores reserved for a worker; it computes with as many threads (at least one)."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    """GPUs reserved for a worker; 0 trains on the CPU."""
    accelerator_type: str | None = None
    """Type of GPU to train on, as Ray names it, such as `H100` or `L4`; empty: any."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often Ray starts workers again that died or lost one another, from the last checkpoint."""
    address: str | None = None
    """Ray cluster to join, such as `auto`; empty: the cluster of the submitted job if there is one, else an own one."""
    node_hour_price: Annotated[float, Field(gt=0)] | None = None
    """Price of one machine for an hour, in any currency: the end of a run then tells what it and a million pictures
    cost, in MLflow too; trials of a sweep that share a machine share its price. Empty: nothing is counted."""
    storage: str | None = None
    """Folder or `s3://` URL that holds the runs' folders, seen by every worker; empty: `runs` in the home folder."""

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @property
    def world_size(self) -> int:
        """The number of workers, once it is known.

        Raises:
            UserError: It is `auto`, where there is no cluster to ask yet.
        """
        if self.num_workers == "auto":
            raise UserError("launch.num_workers: auto is for a run of its own; give a number here")
        return self.num_workers


class RunConfig(Section):
    """A training run: the run is a pure function of this tree."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"), MAY_CHANGE] = "run"
    """Name of the run and of its folder; the same name goes on where that run stopped."""
    recipe: Annotated[str | None, MAY_CHANGE] = None
    """Name of the recipe that it was made of, by which runs are told apart; empty: that of the file that is read."""
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
    storage: Annotated[StorageConfig, MAY_CHANGE] = StorageConfig()
    """How the storages of data, runs and checkpoints are treated."""
    launch: Annotated[LaunchConfig, MAY_CHANGE] = LaunchConfig()
    """Where the workers are placed."""
    tracking: Annotated[TrackingConfig, MAY_CHANGE] = TrackingConfig()
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
        data, accumulation = self.data, self.engine.accumulation_steps
        workers = _known_workers(self.launch)
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
        monitored = self.train.monitor.split("/")[1] if self.train.monitor else None
        if monitored is not None and monitored not in self.tasks:
            raise ValueError(f"train.monitor: there is no task '{monitored}'; the tasks are {', '.join(self.tasks)}")
        micro_batch = data.batch_size // workers // accumulation
        for name, task in self.tasks.items():
            if isinstance(task, PretextConfig) and micro_batch % task.every:
                raise ValueError(
                    f"tasks.{name}.every: {task.every} does not divide the {micro_batch} samples that a worker takes "
                    f"at once; which samples take part would depend on the number of workers"
                )
        return self

    @model_validator(mode="after")
    def _type_of_gpus(self) -> Self:
        if self.launch.accelerator_type is not None and self.launch.gpus_per_worker == 0:
            raise ValueError(
                f"launch.accelerator_type: given '{self.launch.accelerator_type}', but launch.gpus_per_worker is 0; "
                "use launch.gpus_per_worker=1"
            )
        return self

    @model_validator(mode="after")
    def _mixable(self) -> Self:
        if mixes(self.augment):
            _check_mixing(self)
        return self


def _known_workers(launch: LaunchConfig) -> int:
    """Return the number of workers; 1, which fits always, until `auto` is decided."""
    return 1 if launch.num_workers == "auto" else launch.num_workers


def _check_mixing(config: RunConfig) -> None:
    """Refuse mixup and cutmix where they would teach something wrong, or where a rank has no partners to mix.

    Raises:
        ValueError: A line that begins with a dotted path.
    """
    path = "augment.mixup_probability" if config.augment.mixup_probability else "augment.cutmix_probability"
    for name, task in config.tasks.items():
        if isinstance(task, PretextConfig):
            if task.supervise != "clean":
                raise ValueError(
                    f"{path}: tasks.{name}.supervise={task.supervise} shows supervised heads a picture that is not "
                    f"mixed; set tasks.{name}.supervise=clean, or do not mix"
                )
        elif not task.learns_from_mixed:
            raise ValueError(
                f"{path}: a picture mixed of two has no answer for tasks.{name} of type {task.type}; only "
                "classification may be mixed"
            )
    if not any(task.learns_from_mixed for task in config.tasks.values()):
        raise ValueError(f"{path}: no task reads mixed pictures; add a classification, or do not mix")
    data, accumulation = config.data, config.engine.accumulation_steps
    per_lane, lanes = data.batch_size // data.lanes, data.lanes // _known_workers(config.launch)
    if per_lane < 2:
        raise ValueError(
            f"{path}: partners are of one lane, and data.batch_size={data.batch_size} with data.lanes={data.lanes} "
            f"gives a lane one sample a step; use data.batch_size={2 * data.lanes} or more, or fewer data.lanes"
        )
    if lanes % accumulation:
        raise ValueError(
            f"engine.accumulation_steps: {accumulation} would part the partners that {path} mixes, which are of one "
            f"lane; use a divisor of {lanes} (data.lanes / launch.num_workers)"
        )
