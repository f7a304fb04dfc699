"""Age as the expectation over bins of a year.

Shape legend: B samples, K bins.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from hmtl_dist.tasks.base import Inputs, LinearHead, LossTerms, Prepared, Ranks, Surroundings, TaskConfig
from hmtl_dist.tasks.numbers import NumberTask
from hmtl_dist.tasks.reading import HeadOutput, at_least_float32, expected_bin
from hmtl_dist.tasks.supervised import label_field


class AgeConfig(TaskConfig):
    """Predict an age, in years."""

    type: Literal["age"] = "age"
    """Kind of task."""
    label: str | None = None
    """Number label of the shards to predict; empty: the label that bears the task's name."""
    youngest: Annotated[int, Field(ge=0)] = 0
    """First bin, years."""
    oldest: int = 100
    """Last bin, years; ages beyond the bins are learned as the nearest one."""
    cross_entropy: Annotated[float, Field(ge=0)] = 1.0
    """Factor of the cross-entropy of the age's bin."""
    l1: Annotated[float, Field(ge=0)] = 0.2
    """Factor of the distance of the expected age, per year."""
    variance: Annotated[float, Field(ge=0)] = 0.005
    """Factor of the variance of the bins, per year^2; large ones make an untrained model settle on a wrong bin."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Dropout before the linear layer."""

    @model_validator(mode="after")
    def _some_bins(self) -> Self:
        if self.oldest <= self.youngest:
            raise ValueError(f"oldest={self.oldest} must be above youngest={self.youngest}")
        return self

    def build(self, name: str, around: Surroundings) -> "Age":
        """Build the task, checked against the labels that the shards hold."""
        label_field(f"tasks.{name}.label", self.label or name, "number", around.fields)
        return Age(name, self)


class Age(NumberTask):
    """Softmax over bins of a year, read as their expectation m = sum_k k p_k.

    Source: Rothe et al., "DEX: Deep EXpectation of apparent age from a single image", ICCV-W 2015, for bins and
    expectation; Pan et al., "Mean-variance loss for deep age estimation from a face", CVPR 2018, for training the
    expectation and the variance v = sum_k p_k (k - m)^2 too: cross-entropy + l1 |m - y| + variance v. Pan et al. take
    (m - y)^2 / 2 where this project takes the absolute distance, the figure that is reported.

    Pictures that are read in several views count once a view.
    """

    def __init__(self, name: str, config: AgeConfig) -> None:
        super().__init__(name, config)
        self.labels = (config.label or name,)
        self._config = config
        self._bins = config.oldest - config.youngest + 1

    def head_spec(self) -> LinearHead:
        """One logit a year."""
        return LinearHead(self._bins, self._config.dropout)

    def loss(self, outputs: Mapping[str, Tensor], prepared: Prepared, inputs: Inputs, ranks: Ranks) -> LossTerms:
        """Sum over samples with an age; metric `mae_LABEL` is the mean absolute error in years."""
        del prepared, ranks
        views = self.views(outputs, inputs, float(self._config.youngest))
        losses = [(self._distance(view.output, view.targets[:, 0]) * view.valid[:, 0]).sum() for view in views]
        return LossTerms(
            sum=torch.stack(losses).sum(),
            count=torch.stack([view.valid.sum() for view in views]).sum(),
            metrics=self.mean_errors(views),
        )

    def predictions(self, output: Tensor) -> Tensor:
        """Expected age in years, float `[B, 1]`."""
        return expected_bin(at_least_float32(output))[:, None] + self._config.youngest

    def reading(self) -> HeadOutput:
        """Years."""
        offset = (float(self._config.youngest),)
        return HeadOutput(type="bins", names=self.labels, offset=offset, scale=(1.0,), bins=self._bins)

    def _distance(self, logits_BK: Tensor, ages_B: Tensor) -> Tensor:
        config = self._config
        place_B = (ages_B.to(logits_BK.dtype) - config.youngest).clamp(0, self._bins - 1)
        entropy_B = F.cross_entropy(logits_BK, place_B.round().long(), reduction="none")
        expected_B = expected_bin(logits_BK)
        bins_K = torch.arange(self._bins, device=logits_BK.device)
        variance_B = (logits_BK.softmax(1) * (bins_K - expected_B[:, None]).square()).sum(1)
        return (
            config.cross_entropy * entropy_B + config.l1 * (expected_B - place_B).abs() + config.variance * variance_B
        )
