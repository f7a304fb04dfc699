"""Head pose: yaw, pitch and roll in degrees, as a rotation or as bins of angles.

Shape legend: B samples, A = 3 angles, K = 66 bins.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hmtl_dist.augment import LabelGeometry
from hmtl_dist.tasks.base import Inputs, LinearHead, LossTerms, Prepared, Ranks, Surroundings, TaskConfig
from hmtl_dist.tasks.numbers import NumberTask
from hmtl_dist.tasks.reading import HeadOutput, at_least_float32, expected_bin
from hmtl_dist.tasks.so3 import angles_from_matrix, geodesic, geometry_of, matrix_from_angles, matrix_from_sixd, wrap
from hmtl_dist.tasks.supervised import check_degrees, label_field

ANGLES = ("yaw", "pitch", "roll")
"""The labels."""
LIMIT = 99.0
"""Samples with an angle beyond this many degrees take no part, as in the usual protocol."""
NUM_BINS = 66
BIN_DEGREES = 3.0
MIDDLE_OF_FIRST = BIN_DEGREES / 2 - LIMIT


class HeadPoseConfig(TaskConfig):
    """Predict the number labels `yaw`, `pitch` and `roll`, in degrees."""

    type: Literal["head_pose"] = "head_pose"
    """Kind of task."""
    method: Literal["sixd", "binned"] = "sixd"
    """`sixd`: a continuous rotation with geodesic loss (Zhou et al. 2019, Hempel et al. 2022); `binned`: 66 bins of 3
    degrees an angle, and their expected value (Ruiz et al. 2018)."""
    alpha: Annotated[float, Field(ge=0)] = 0.001
    """For `binned`: factor of the distance of the expected angle beside the cross-entropy."""
    distance: Literal["l2", "l1"] = "l2"
    """For `binned`: squared (degrees^2) or absolute (degrees) distance of the expected angle."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Dropout before the linear layer."""

    def build(self, name: str, around: Surroundings) -> "HeadPose":
        """Build the task, checked against the labels that the shards hold."""
        for label in ANGLES:
            field = label_field(f"tasks.{name}", label, "number", around.fields)
            check_degrees(f"tasks.{name}", label, field)
        return HeadPose(name, self)

    def label_geometry(self, name: str) -> Mapping[str, LabelGeometry]:
        """Say that yaw and roll follow the picture."""
        del name
        return geometry_of(ANGLES)


class HeadPose(NumberTask):
    """The pose of a head; a sample counts if all three angles are there and within 99 degrees.

    `sixd`: the loss is the geodesic distance in radians of predicted and true rotation, arccos((tr(A^T B) - 1) / 2),
    with six outputs made orthonormal (Zhou et al., CVPR 2019; for heads: Hempel et al., "6D rotation representation for
    unconstrained head pose estimation", ICIP 2022). `hmtl_dist.tasks.so3` says which rotation angles stand for.

    `binned`: the mean over the angles of cross-entropy + alpha * (expected - true angle)^2 (Ruiz et al., "Fine-grained
    head pose estimation without keypoints", CVPR-W 2018; they sum the angles, and take a bin's lower edge for its
    angle, here it is its middle).

    Pictures that are read in several views count once a view.
    """

    labels = ANGLES
    one_unit = True

    def __init__(self, name: str, config: HeadPoseConfig) -> None:
        super().__init__(name, config)
        self._config = config

    def head_spec(self) -> LinearHead:
        """Six numbers of a rotation, or a logit for each bin of each angle, `[B, A * K]`."""
        return LinearHead(self.reading().out_features, self._config.dropout)

    def targets(self, labels: Mapping[str, Tensor]) -> Tensor:
        """Angles in degrees, `[B, A]`; all NaN for samples that take no part."""
        angles_BA = super().targets(labels)
        counts_B1 = (angles_BA.abs() <= LIMIT).all(1, keepdim=True)  # NaN is not
        return angles_BA.masked_fill(~counts_B1, torch.nan)

    def errors(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Differences of angles the short way round, degrees `[B, A]`."""
        return wrap(predictions - targets)

    def loss(self, outputs: Mapping[str, Tensor], prepared: Prepared, inputs: Inputs, ranks: Ranks) -> LossTerms:
        """Sum over samples that take part; metrics `mae_yaw`, `mae_pitch`, `mae_roll` in degrees."""
        del prepared, ranks
        distance = self._rotation if self._config.method == "sixd" else self._binned
        views = self.views(outputs, inputs, 0.0)
        losses = [
            (distance(view.output, view.targets.to(view.output.dtype)) * view.valid[:, 0]).sum() for view in views
        ]
        return LossTerms(
            sum=torch.stack(losses).sum(),
            count=torch.stack([view.valid[:, 0].sum() for view in views]).sum(),
            metrics=self.mean_errors(views),
        )

    def predictions(self, output: Tensor) -> Tensor:
        """Yaw, pitch and roll in degrees, float `[B, A]`."""
        values = at_least_float32(output)
        if self._config.method == "sixd":
            return angles_from_matrix(matrix_from_sixd(values))
        return expected_bin(values.reshape(-1, len(ANGLES), NUM_BINS)) * BIN_DEGREES + MIDDLE_OF_FIRST

    def reading(self) -> HeadOutput:
        """Angles in degrees."""
        if self._config.method == "sixd":
            return HeadOutput(type="rotation", names=ANGLES)
        scale, offset = (BIN_DEGREES,) * len(ANGLES), (MIDDLE_OF_FIRST,) * len(ANGLES)
        return HeadOutput(type="bins", names=ANGLES, offset=offset, scale=scale, bins=NUM_BINS)

    def _rotation(self, output: Tensor, angles_BA: Tensor) -> Tensor:
        return geodesic(matrix_from_sixd(output), matrix_from_angles(angles_BA))

    def _binned(self, output: Tensor, angles_BA: Tensor) -> Tensor:
        logits_BAK = output.reshape(-1, len(ANGLES), NUM_BINS)
        bins_BA = ((angles_BA + LIMIT) / BIN_DEGREES).long().clamp(0, NUM_BINS - 1)
        entropy_BA = F.cross_entropy(logits_BAK.transpose(1, 2), bins_BA, reduction="none")
        away_BA = self.predictions(output) - angles_BA
        away_BA = away_BA.abs() if self._config.distance == "l1" else away_BA.square()
        return (entropy_BA + self._config.alpha * away_BA).mean(1)
