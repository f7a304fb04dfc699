"""Regression: number labels, such as an age or the angles of a head.

Shape legend: B samples, R labels.
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hmtl_dist.augment import LabelGeometry
from hmtl_dist.data.dataset.schema import Field as LabelField
from hmtl_dist.tasks.base import Inputs, LossTerms, Prepared, Ranks, Surroundings
from hmtl_dist.tasks.numbers import StandardisedConfig, StandardisedTask
from hmtl_dist.tasks.so3 import GEOMETRY, geometry_of
from hmtl_dist.tasks.supervised import check_degrees, label_field

HUBER_DELTA = 1.0
"""Where the Huber loss turns linear, in standardised units."""


class RegressionConfig(StandardisedConfig):
    """Predict number labels, such as age or head pose."""

    type: Literal["regression"] = "regression"
    """Kind of task."""
    labels: tuple[str, ...] | None = None
    """Number labels of the shards to predict; empty: the one label that bears the task's name."""
    loss: Literal["l1", "l2", "huber"] = "huber"
    """Loss of the standardised labels; `huber` turns linear at one `scale`."""

    def build(self, name: str, around: Surroundings) -> "Regression":
        """Build the task, checked against the labels that the shards hold."""
        for label in self.labels or (name,):
            field = label_field(f"tasks.{name}.labels", label, "number", around.fields)
            if label in GEOMETRY and GEOMETRY[label].turns:
                check_degrees(f"tasks.{name}.labels", label, field)
        return Regression(name, self, around.fields)

    def label_geometry(self, name: str) -> Mapping[str, LabelGeometry]:
        """Say that `yaw` and `roll` follow the picture, which must be in degrees."""
        return geometry_of(self.labels or (name,))


class Regression(StandardisedTask):
    """L1, L2 or Huber (1964) loss of standardised numbers; a missing number (NaN) counts nowhere.

    The loss is the mean over all labels that are there, of all samples; pictures that are read in several views count
    once a view.
    """

    def __init__(self, name: str, config: RegressionConfig, fields: Mapping[str, LabelField]) -> None:
        super().__init__(name, config, config.labels or (name,), fields)
        self._loss = config.loss

    def loss(self, outputs: Mapping[str, Tensor], prepared: Prepared, inputs: Inputs, ranks: Ranks) -> LossTerms:
        """Sum over labels that are there; metrics `mae_LABEL` are mean absolute errors in the label's unit."""
        del prepared, ranks
        views = self.standardised(outputs, inputs)
        losses = [
            (self._distance(view.output, standard_BR.to(view.output.dtype)) * view.valid).sum()
            for view, standard_BR in views
        ]
        return LossTerms(
            sum=torch.stack(losses).sum(),
            count=torch.stack([view.valid.sum() for view, _ in views]).sum(),
            metrics=self.mean_errors([view for view, _ in views]),
        )

    def _distance(self, values: Tensor, targets: Tensor) -> Tensor:
        if self._loss == "l1":
            return F.l1_loss(values, targets, reduction="none")
        if self._loss == "l2":
            return F.mse_loss(values, targets, reduction="none")
        return F.huber_loss(values, targets, reduction="none", delta=HUBER_DELTA)
