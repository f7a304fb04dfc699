"""The shared encoder: any timm model that publishes features.

Shape legend: B pictures, C channels, H x W pixels.
"""

import logging
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from hmtl_dist.errors import UserError, nearest
from hmtl_dist.torchvision_care import prepare_torchvision

MAX_SCALES = 5
"""Feature maps a decoder uses at most, the deepest ones: more than a convolutional pyramid has."""


class _TimmModel(Protocol):
    """What this package calls of a timm model (timm publishes no types)."""

    feature_info: Any
    head_hidden_size: int
    pretrained_cfg: Mapping[str, Any]

    def forward_features(self, x: Tensor) -> Tensor: ...
    def forward_head(self, x: Tensor, pre_logits: bool) -> Tensor: ...
    def forward_intermediates(self, x: Tensor, **options: Any) -> Any: ...
    def prune_intermediate_layers(self, indices: Sequence[int], prune_head: bool) -> object: ...


class Backbone(nn.Module):
    """A timm model without its classifier; takes pictures in [0, 1] and normalises them itself.

    Args:
        name: timm model name.
        pretrained: Fetch the weights that timm publishes.
        drop_path_rate: Stochastic depth, 0 to 1.
        options: Further arguments of the timm model.
        zero_init_residual: Without pretrained weights, let every residual block begin as the identity.

    Raises:
        UserError: the name is unknown, an option is not taken, weights cannot be fetched, or it has no feature maps.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        drop_path_rate: float = 0.0,
        options: Mapping[str, Any] | None = None,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        net = _create(name, pretrained=pretrained, drop_path_rate=drop_path_rate, options=options or {})
        self.net = cast(nn.Module, net)
        if zero_init_residual and not pretrained:
            _zero_init_residual(self.net)
        info = _info(net)
        self.scales = tuple(range(len(info)))[-MAX_SCALES:]
        """Indices of the feature maps that `pyramid` returns."""
        self.channels = tuple(int(info[i]["num_chs"]) for i in self.scales)
        """Channels of these maps, finest first."""
        self.reductions = tuple(int(info[i]["reduction"]) for i in self.scales)
        """Their strides in pixels."""
        self.num_features = int(net.head_hidden_size)
        """Size of the pooled feature."""
        for buffer in ("mean", "std"):
            values = torch.tensor(net.pretrained_cfg.get(buffer, (0.5, 0.5, 0.5))).view(1, 3, 1, 1)
            self.register_buffer(buffer, values, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the last feature map (or tokens) of pictures in [0, 1], float `[B, 3, H, W]`."""
        return self._timm.forward_features(self._normalise(images))

    def pyramid(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the last feature map, and the maps `[B, C_i, h_i, w_i]` of all scales, finest first."""
        last, maps = self._timm.forward_intermediates(self._normalise(images), indices=list(self.scales))
        return last, maps

    def early(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return only the maps of the given scales, 0 the finest; deeper stages are not computed."""
        indices = sorted(self.scales[layer] for layer in layers)
        options = {"indices": indices, "intermediates_only": True, "stop_early": True}
        return self._timm.forward_intermediates(self._normalise(images), **options)

    def keep_maps(self, deepest: int) -> None:
        """Drop what lies behind the map of scale `deepest`: pooling and `forward` are then no longer possible."""
        self._timm.prune_intermediate_layers(indices=[self.scales[deepest]], prune_head=True)

    def pool(self, features: Tensor) -> Tensor:
        """Pool the last feature map as the model does before its classifier: `[B, num_features]`."""
        return self._timm.forward_head(features, pre_logits=True)

    @property
    def _timm(self) -> _TimmModel:
        return cast(_TimmModel, self.net)

    def _normalise(self, images: Tensor) -> Tensor:
        return (images - cast(Tensor, self.mean)) / cast(Tensor, self.std)


def _zero_init_residual(net: nn.Module) -> None:
    """Set the last BatchNorm scale of each residual block to 0: it begins as the identity, and trains sooner.

    Source: Goyal et al., "Accurate, Large Minibatch SGD" (arXiv 1706.02677), section 5.1. timm does so for its ResNets;
    here it is done for the blocks of its EfficientNet family too, which say by `has_skip` that they are residual.
    """
    for block in net.modules():
        if getattr(block, "has_skip", False):
            last = getattr(block, "bn3", None) or getattr(block, "bn2", None)
            if isinstance(last, nn.BatchNorm2d) and last.affine:
                nn.init.zeros_(last.weight)


def import_timm() -> ModuleType:
    """Import timm, also where torchvision's compiled operators do not fit the installed torch."""
    prepare_torchvision()
    import timm

    return timm


def is_from_hub(name: str) -> bool:
    """Whether a model's name is that of a hub, such as hf-hub:owner/model, which alone knows whether it exists."""
    return ":" in name.split(".", maxsplit=1)[0]


def _create(name: str, *, pretrained: bool, drop_path_rate: float, options: Mapping[str, Any]) -> _TimmModel:
    timm = import_timm()
    if not is_from_hub(name) and not timm.is_model(name):
        names = cast(list[str], timm.list_models())
        close = nearest(name.split(".", maxsplit=1)[0], names)
        hint = f"; did you mean '{close}'?" if close else ""
        raise UserError(f"model.backbone: timm has no model '{name}'{hint}")
    arguments = {"drop_path_rate": drop_path_rate, **options} if drop_path_rate else dict(options)
    logging.getLogger("timm").setLevel(logging.WARNING)
    try:
        net = cast(_TimmModel, timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments))
    except (TypeError, RuntimeError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        what = "cannot fetch its weights" if pretrained else "cannot build it"
        raise UserError(f"model.backbone: timm's '{name}': {what}: {reason}") from error
    if not hasattr(net, "forward_intermediates") or not hasattr(net, "feature_info"):
        raise UserError(f"model.backbone: timm's '{name}' publishes no feature maps; choose one with features_only")
    return net


def _info(net: _TimmModel) -> Sequence[dict[str, Any]]:
    info = net.feature_info  # a list, or timm's FeatureInfo around one
    return cast(Sequence[dict[str, Any]], info if isinstance(info, list) else info.info)
