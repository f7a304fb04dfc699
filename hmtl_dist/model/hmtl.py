"""The hybrid multi-task model: one backbone, one head a task, one forward for all views of a step.

Shape legend: B pictures a view, V distinct views, H x W pixels.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Annotated, Any, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from hmtl_dist.config.base import Section
from hmtl_dist.model.backbone import Backbone
from hmtl_dist.model.heads import Decoder, Linear
from hmtl_dist.tasks.base import HeadSpec, LinearHead

WEIGHTING = "weighting"
LOG_VARS = "log_vars"


class ModelConfig(Section):
    """The shared backbone."""

    backbone: str = "efficientnet_b0"
    """Name of a timm model; it should publish features (`timm.list_models`)."""
    pretrained: bool = False
    """Start from the weights timm publishes (fetched over the network); otherwise from scratch."""
    init_from: Annotated[str, Field(min_length=1)] | None = None
    """Start from the backbone of this run or checkpoint of ours (folder or URL), such as SSL pre-training alone."""
    init_heads: bool = False
    """With `init_from`: take over the heads of tasks of the same name and shape too."""
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth: probability at which the last block is skipped in training."""
    zero_init_residual: bool = True
    """From scratch, start every residual block as the identity (its last BatchNorm scale is 0; Goyal et al. 2017)."""
    options: dict[str, bool | int | float | str] = Field(default_factory=dict[str, bool | int | float | str])
    """Further arguments of the timm model, such as `model.options.dynamic_img_size=true` for a vision transformer."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.init_from and self.pretrained:
            raise ValueError("model.init_from and model.pretrained=true are two starts; keep one of them")
        if self.init_heads and not self.init_from:
            raise ValueError("model.init_heads needs model.init_from: the run whose heads are taken over")
        return self


class HMTLModel(nn.Module):
    """Backbone and heads.

    Args:
        config: The backbone.
        heads: Head to build for each task, by task name.
        wiring: Views that each task's head reads, by task name. A pretext task's own view bears its name.
        log_vars: Tasks for which a log-variance is learned; it returns as `outputs["weighting"]["log_vars"]`.
    """

    def __init__(
        self,
        config: ModelConfig,
        heads: Mapping[str, HeadSpec],
        wiring: Mapping[str, Sequence[str]],
        log_vars: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.backbone = Backbone(
            config.backbone,
            pretrained=config.pretrained,
            drop_path_rate=config.drop_path_rate,
            options=config.options,
            zero_init_residual=config.zero_init_residual,
        )
        self._pools = any(isinstance(spec, LinearHead) for spec in heads.values())
        if not self._pools:  # parameters that no output needs would get no gradient
            self.backbone.keep_maps(len(self.backbone.scales) - 1)
        self.heads = nn.ModuleDict({name: self._head(spec) for name, spec in heads.items()})
        self.log_vars = nn.Parameter(torch.zeros(len(log_vars))) if log_vars else None
        self.wiring = {name: tuple(wiring[name]) for name in heads}
        self.inference_tasks = tuple(name for name, views in self.wiring.items() if name not in views)
        """The supervised tasks: those that have no view of their own."""
        self._decoders = {name for name, spec in heads.items() if not isinstance(spec, LinearHead)}

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Run all views that any head reads as one batch of up to V * B pictures.

        Args:
            views: Pictures in [0, 1] by view, each float `[B, 3, H, W]`, of as many samples as its tasks take.

        Returns:
            Head outputs as task -> view -> tensor.
        """
        names = list(dict.fromkeys(view for read in self.wiring.values() for view in read))
        images = torch.cat([views[name] for name in names]) if len(names) > 1 else views[names[0]]
        ends = list(accumulate(len(views[name]) for name in names))
        place = {name: slice(end - len(views[name]), end) for name, end in zip(names, ends, strict=True)}
        last, maps = self.backbone.pyramid(images) if self._decoders else (self.backbone(images), [])
        pooled = self.backbone.pool(last) if self._pools else last
        size = (images.shape[2], images.shape[3])
        outputs: dict[str, dict[str, Tensor]] = {}
        for task, read in self.wiring.items():
            head = self.heads[task]
            if task in self._decoders:
                outputs[task] = {view: head([m[place[view]] for m in maps], size) for view in read}
            else:
                outputs[task] = {view: head(pooled[place[view]]) for view in read}
        if self.log_vars is not None:
            outputs[WEIGHTING] = {LOG_VARS: self.log_vars}
        return outputs

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """Run the supervised heads on clean pictures in [0, 1], float `[B, 3, H, W]`; what inference keeps.

        Returns:
            Output `[B, out_features]` by task.
        """
        pooled = self.backbone.pool(self.backbone(images))
        return {task: cast(Any, self.heads[task])(pooled) for task in self.inference_tasks}

    def _head(self, spec: HeadSpec) -> nn.Module:
        if isinstance(spec, LinearHead):
            return Linear(self.backbone.num_features, spec.out_features, spec.dropout)
        return Decoder(self.backbone.channels, self.backbone.reductions[0], spec.out_channels)
