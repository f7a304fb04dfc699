"""Valence and arousal, or any other numbers, by their concordance over the global batch.

Shape legend: B samples, R labels, M = 6 moments.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from hmtl_dist.augment import LabelGeometry
from hmtl_dist.data.dataset.schema import Field as LabelField
from hmtl_dist.tasks.base import Inputs, LossTerms, Prepared, Ranks, Surroundings
from hmtl_dist.tasks.concordance import concordance, moments
from hmtl_dist.tasks.numbers import StandardisedConfig, StandardisedTask
from hmtl_dist.tasks.so3 import GEOMETRY, geometry_of
from hmtl_dist.tasks.supervised import check_degrees, label_field


class ValenceArousalConfig(StandardisedConfig):
    """Predict number labels by their concordance with the truth."""

    type: Literal["valence_arousal"] = "valence_arousal"
    """Kind of task."""
    labels: Annotated[tuple[str, ...], Field(min_length=1)] = ("valence", "arousal")
    """Number labels of the shards to predict."""

    def build(self, name: str, around: Surroundings) -> "ValenceArousal":
        """Build the task, checked against the labels that the shards hold."""
        for label in self.labels:
            field = label_field(f"tasks.{name}.labels", label, "number", around.fields)
            if label in GEOMETRY and GEOMETRY[label].turns:
                check_degrees(f"tasks.{name}.labels", label, field)
        return ValenceArousal(name, self, around.fields)

    def label_geometry(self, name: str) -> Mapping[str, LabelGeometry]:
        """Say that `yaw` and `roll`, should they be asked for, follow the picture."""
        del name
        return geometry_of(self.labels)


class ValenceArousal(StandardisedTask):
    """One less the concordance correlation coefficient, the mean over labels.

    Source: Lin, "A concordance correlation coefficient to evaluate reproducibility", Biometrics 45 (1989), eq. 1:
    CCC = 2 cov(p, t) / (var p + var t + (mean p - mean t)^2). As the loss of valence and arousal: Kollias et al.,
    "Deep affect prediction in-the-wild", IJCV 2019.

    The coefficient is of the whole global batch, not the mean of the ranks' own: ranks exchange six moments a label.
    Under accumulation it is of each micro-batch. A label that fewer than two samples of it carry has no loss there.
    Pictures that are read in several views count once a view.
    """

    one_unit = True

    def __init__(self, name: str, config: ValenceArousalConfig, fields: Mapping[str, LabelField]) -> None:
        super().__init__(name, config, config.labels, fields)

    def loss(self, outputs: Mapping[str, Tensor], prepared: Prepared, inputs: Inputs, ranks: Ranks) -> LossTerms:
        """1 - CCC of the global batch, equal on every rank; metrics `mae_LABEL` as in regression; collective."""
        del prepared
        views = self.standardised(outputs, inputs)
        own_RM = torch.stack([moments(view.output, standard_BR, view.valid) for view, standard_BR in views]).sum(0)
        sums_RM = ranks.all_gather(own_RM[None]).sum(0)
        present_R = sums_RM[:, 0] > 1
        loss = ((1 - concordance(sums_RM)) * present_R).sum()
        return LossTerms(
            # Each rank adds the same global value to the sum; its gradient is of its own part, so it counts W times.
            sum=loss.detach() + ranks.world_size * (loss - loss.detach()),
            count=present_R.sum().to(loss),
            metrics=self.mean_errors([view for view, _ in views]),
        )
