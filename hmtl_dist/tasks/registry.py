"""Every kind of task there is: adding one is a file beside this one, and a line here."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field
from torch import nn

from hmtl_dist.augment import LabelGeometry
from hmtl_dist.data.dataset.schema import Field as LabelField
from hmtl_dist.errors import UserError
from hmtl_dist.tasks.age import AgeConfig
from hmtl_dist.tasks.base import FrozenFeatures, Surroundings, Task
from hmtl_dist.tasks.classification import ClassificationConfig
from hmtl_dist.tasks.head_pose import HeadPoseConfig
from hmtl_dist.tasks.inpainting import InpaintingConfig
from hmtl_dist.tasks.puzzling import PuzzlingConfig
from hmtl_dist.tasks.regression import RegressionConfig
from hmtl_dist.tasks.rotation import RotationConfig
from hmtl_dist.tasks.valence_arousal import ValenceArousalConfig

AnyTaskConfig = Annotated[
    ClassificationConfig
    | RegressionConfig
    | ValenceArousalConfig
    | HeadPoseConfig
    | AgeConfig
    | PuzzlingConfig
    | RotationConfig
    | InpaintingConfig,
    Field(discriminator="type"),
]
"""A task's section of the configuration; `type` says which."""

RESERVED_NAMES = ("clean", "weighting")
"""Names that views and outputs use themselves."""


def label_geometry(configs: Mapping[str, AnyTaskConfig]) -> dict[str, LabelGeometry]:
    """Say how the labels of all tasks follow a picture, by label.

    Raises:
        UserError: Two tasks say it otherwise of one label.
    """
    found: dict[str, LabelGeometry] = {}
    for name, config in configs.items():
        for label, geometry in config.label_geometry(name).items():
            if found.setdefault(label, geometry) != geometry:
                raise UserError(f"tasks.{name}: label '{label}' follows the picture otherwise than in another task")
    return found


def build_tasks(
    configs: Mapping[str, AnyTaskConfig],
    fields: Mapping[str, LabelField],
    label_counts: Mapping[str, Sequence[int]],
    frozen: Mapping[str, FrozenFeatures],
    image_size: int,
) -> list[Task]:
    """Build the tasks of a run in the order of their configuration.

    Args:
        configs: Sections by task name.
        fields: Labels that the shards hold.
        label_counts: Samples of each class of each category label, from the training index.
        frozen: Frozen networks by task name, from `hmtl_dist.model.frozen.build_frozen`.
        image_size: Side of the pictures in pixels.

    Raises:
        UserError: a label is unknown or of the wrong kind, a name is reserved, or pictures are too small.
    """
    tasks: list[Task] = []
    for name, config in configs.items():
        if name in RESERVED_NAMES or "/" in name or "." in name or hasattr(nn.ModuleDict(), name):
            raise UserError(
                f"tasks.{name}: the name may not be {' or '.join(RESERVED_NAMES)}, a word of torch's, "
                "such as 'type', or hold a slash or a dot; give it another name"
            )
        tasks.append(config.build(name, Surroundings(fields, image_size, label_counts, frozen.get(name))))
    return tasks
