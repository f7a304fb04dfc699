"""Every kind of task there is: adding one is a file beside this one, and a line here."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from hmtl_dist.data.schema import Field as LabelField
from hmtl_dist.errors import UserError
from hmtl_dist.tasks.age import AgeConfig, build_age
from hmtl_dist.tasks.base import Task
from hmtl_dist.tasks.head_pose import HeadPoseConfig, build_head_pose
from hmtl_dist.tasks.inpainting import FrozenFeatures, Inpainting, InpaintingConfig
from hmtl_dist.tasks.puzzling import Puzzling, PuzzlingConfig
from hmtl_dist.tasks.rotation import Rotation, RotationConfig
from hmtl_dist.tasks.supervised import (
    ClassificationConfig,
    RegressionConfig,
    build_classification,
    build_regression,
)
from hmtl_dist.tasks.valence_arousal import ValenceArousalConfig, build_valence_arousal

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
        if name in RESERVED_NAMES or "/" in name:
            raise UserError(
                f"tasks.{name}: the name may not be {' or '.join(RESERVED_NAMES)} or hold a slash; give it another name"
            )
        match config:
            case ClassificationConfig():
                tasks.append(build_classification(name, config, fields, label_counts))
            case RegressionConfig():
                tasks.append(build_regression(name, config, fields))
            case ValenceArousalConfig():
                tasks.append(build_valence_arousal(name, config, fields))
            case HeadPoseConfig():
                tasks.append(build_head_pose(name, config, fields))
            case AgeConfig():
                tasks.append(build_age(name, config, fields))
            case PuzzlingConfig():
                tasks.append(Puzzling(name, config))
            case RotationConfig():
                tasks.append(Rotation(name, config))
            case InpaintingConfig():
                if image_size < 16:
                    raise UserError(f"data.image_size: {image_size} is too small for tasks.{name}; use 16 or more")
                tasks.append(Inpainting(name, config, frozen.get(name)))
    return tasks
