"""What a task is: views and targets out of a batch, the head it needs, and its loss as sums over samples.

Shape legend: B samples of one rank's micro-batch, H x W pixels, C channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, Protocol, Self

from pydantic import Field, model_validator
from torch import Tensor

from hmtl_dist.augment import LabelGeometry
from hmtl_dist.augment.mixing import Mix
from hmtl_dist.config.base import Section
from hmtl_dist.data.dataset.schema import Field as LabelField

CLEAN = "clean"
"""Name of the view that shows the augmented picture itself."""


Supervise = Literal["clean", "corrupted", "both"]
"""Which picture the supervised heads read beside a pretext task: the clean one, its corrupted view, or both."""


class FrozenFeatures(Protocol):
    """A network that is not trained, whose features tell how alike two pictures look."""

    def features(self, images: Tensor) -> Sequence[Tensor]:
        """Return the compared feature maps `[B, C, h, w]` of pictures in [0, 1]; differentiable in the pictures."""
        ...

    def after_step(self) -> None:
        """Follow the model after an optimizer step, where the network is an average of it."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must keep."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        ...


@dataclass(frozen=True)
class FrozenNetwork:
    """Which network a task compares features of."""

    source: str
    """`ema` (moving average of the own encoder), a timm model name, or a checkpoint's folder or URL."""
    layers: tuple[int, ...]
    """Feature maps that are compared, 0 the finest."""
    momentum: float
    """Share of the old average that an optimizer step keeps; for `ema`."""


@dataclass(frozen=True)
class Surroundings:
    """What a task finds around its own section when it is built."""

    fields: Mapping[str, LabelField]
    """Labels that the shards hold, by name."""
    image_size: int
    """Side of the pictures in pixels."""
    label_counts: Mapping[str, Sequence[int]] = field(default_factory=dict[str, Sequence[int]])
    """Samples of each class of each category label, as an epoch draws them."""
    frozen: FrozenFeatures | None = None
    """The network that the section's `frozen_network` names."""


class TaskConfig(Section):
    """What every task's section shares; a task adds its own fields, a `type` literal, and how it is built."""

    learns_from_mixed: ClassVar[bool] = False
    """Whether the loss knows what a picture that is mixed of two (mixup, cutmix) should be answered with."""

    weight: Annotated[float, Field(ge=0)] = 1.0
    """Factor of this task's loss in the total; 0 keeps the head and its metrics but trains nothing by it."""

    @abstractmethod
    def build(self, name: str, around: Surroundings) -> "Task":
        """Build the task of this section.

        Raises:
            UserError: The shards or pictures are not what the task needs; the line begins with a dotted path.
        """

    def label_geometry(self, name: str) -> Mapping[str, LabelGeometry]:
        """Say which labels of a task of this name follow a picture that is mirrored or turned; none by default."""
        del name
        return {}

    def frozen_network(self) -> FrozenNetwork | None:
        """Say which frozen network the task compares features of; none by default."""
        return None

    def without_frozen_network(self) -> Self:
        """Return a section of the same head that needs no frozen network, for inference."""
        return self


class PretextConfig(TaskConfig):
    """What the section of every pretext task shares."""

    supervise: Supervise = "clean"
    """Which picture the supervised heads read: the `corrupted` one of this task, the `clean` one, or `both`."""
    every: Annotated[int, Field(ge=1)] = 1
    """Only every n-th sample of a batch takes part: the task costs 1/n. Above 1 it needs `supervise=clean`."""

    @model_validator(mode="after")
    def _supervised_heads_need_every_sample(self) -> Self:
        if self.every > 1 and self.supervise != "clean":
            raise ValueError(f"every={self.every} needs supervise=clean, given {self.supervise}; or use every=1")
        return self


@dataclass(frozen=True)
class LinearHead:
    """Global pooling, dropout, one linear layer: output `[B, out_features]`."""

    out_features: int
    dropout: float = 0.0


@dataclass(frozen=True)
class DecoderHead:
    """A light U-shaped decoder over the backbone's multi-scale features: output `[B, out_channels, H, W]`."""

    out_channels: int = 3


HeadSpec = LinearHead | DecoderHead


@dataclass(frozen=True)
class Inputs:
    """One rank's micro-batch on the device, augmented, before any task has touched it."""

    images: Tensor
    """Pictures in [0, 1], float `[B, 3, H, W]`."""
    labels: Mapping[str, Tensor]
    """Category labels int64 `[B]` (-1 = missing), number labels float32 `[B]` (NaN = missing)."""
    weight: Tensor
    """Loss weight of each sample, float `[B]`: 0 for damaged or padded samples, which must add nothing to any sum."""
    seed: int
    """Seed of the run."""
    epoch: int
    """Epoch the samples belong to."""
    positions: Tensor
    """Position of each sample in the epoch, int64 `[B]`: with seed and epoch the key of every draw."""
    mix: Mix | None = None
    """How the clean view, and its labels, are mixed of two samples; pretext tasks take `images` as they are."""
    labels_by_view: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict[str, Mapping[str, Tensor]])
    """What `labels` are of a view that shows the pictures turned, by its name."""

    def labels_of(self, view: str) -> Mapping[str, Tensor]:
        """Return the labels of what a view shows."""
        return self.labels_by_view.get(view, self.labels)

    def every(self, stride: int) -> "Inputs":
        """Return every `stride`-th sample, from the first on; a part of a batch is not mixed."""
        if stride == 1:
            return self
        return Inputs(
            images=self.images[::stride],
            labels={name: values[::stride] for name, values in self.labels.items()},
            weight=self.weight[::stride],
            seed=self.seed,
            epoch=self.epoch,
            positions=self.positions[::stride],
        )


@dataclass(frozen=True)
class Prepared:
    """What a task adds to a step."""

    views: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """New views by name, float `[B, 3, H, W]` in [0, 1]; the clean view always exists and is not repeated here."""
    targets: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Whatever `loss` needs, by name."""
    turned: Tensor | None = None
    """Degrees by which the own view shows each picture turned as a whole, counter-clockwise, float32 `[B]`."""


@dataclass(frozen=True)
class LossTerms:
    """A loss as a sum over this rank's counted elements and their number, so that its mean is global over ranks."""

    sum: Tensor
    """Differentiable sum, scalar float32."""
    count: Tensor
    """Number (or total weight) of the counted elements, scalar float32, no gradient; may be 0."""
    metrics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict[str, tuple[Tensor, Tensor]])
    """Further figures by name, each as (sum, count), detached scalars."""


class Ranks(Protocol):
    """The process group as a task or weighting sees it."""

    rank: int
    world_size: int

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the element-wise sum over ranks, detached; collective."""
        ...

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return the ranks' equal-shaped tensors joined along axis 0, differentiable in the own part; collective."""
        ...


class SingleRank:
    """The group of one."""

    rank = 0
    world_size = 1

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the tensor, detached."""
        return tensor.detach()

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return the tensor."""
        return tensor


class Task(ABC):
    """One task of a hybrid multi-task model, built from its own section of the configuration."""

    view: str = CLEAN
    """The view this task's head reads; a supervised task's views are set by the objective instead."""
    supervise: Supervise = "clean"
    """What this task asks the supervised heads to read; only pretext tasks change it."""
    is_pretext: bool = False
    """Whether labels come from the picture itself; a pretext task has no part in inference."""
    every: int = 1
    """Take every n-th sample of a batch."""
    hides_pixels: bool = False
    """Whether this task's view has hidden parts already, so that a cut-out is not laid over it."""

    label_geometry: Mapping[str, LabelGeometry]
    """Labels that follow a picture which is mirrored or turned."""

    def __init__(self, name: str, config: TaskConfig) -> None:
        self.name = name
        self.weight = config.weight
        self.label_geometry = config.label_geometry(name)

    @abstractmethod
    def head_spec(self) -> HeadSpec:
        """Say what head the model must build for this task."""

    @abstractmethod
    def prepare(self, inputs: Inputs) -> Prepared:
        """Make the views and targets of one micro-batch; every draw is keyed by (seed, epoch, position)."""

    @abstractmethod
    def loss(self, outputs: Mapping[str, Tensor], prepared: Prepared, inputs: Inputs, ranks: Ranks) -> LossTerms:
        """Compare the head's outputs, by the name of the view each was computed on, with the targets."""

    def metric_names(self) -> tuple[str, ...]:
        """Return what the figures of an evaluation will be called, besides those that come with the loss."""
        return ()

    def illustrate(self, outputs: Mapping[str, Tensor], prepared: Prepared, inputs: Inputs) -> dict[str, Tensor]:
        """Return pictures that show a person how the task is solved, by caption; none by default.

        Each is `[B, 3, H, W]` in [0, 1].
        """
        del outputs, prepared, inputs
        return {}

    def after_step(self) -> None:
        """Do what follows an optimizer step, such as moving an average; nothing by default."""

    def state(self) -> dict[str, Tensor]:
        """Return tensors that a checkpoint must keep for this task; none by default."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
