"""Frozen networks whose features say how alike two pictures look."""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from hmtl_dist.errors import UserError
from hmtl_dist.model.backbone import Backbone
from hmtl_dist.model.hmtl import ModelConfig
from hmtl_dist.tasks.base import FrozenNetwork, TaskConfig

EMA = "ema"
WEIGHTS_FILE = "model.safetensors"
PREFIX = "backbone."

ReadWeights = Callable[[str], Mapping[str, Tensor]]
"""Reads the parameters and buffers of a checkpoint by its folder or URL, compared with their digests."""


class FrozenNet(nn.Module):
    """The first stages of a backbone, never trained; batch normalisation uses its running statistics.

    Args:
        backbone: The network; frozen here, and cut behind the deepest of the layers.
        layers: Feature maps to compare, 0 the finest.
        momentum: Share of the old average that `after_step` keeps, for a network that follows a model.
    """

    def __init__(self, backbone: Backbone, layers: Sequence[int], momentum: float | None = None) -> None:
        super().__init__()
        backbone.keep_maps(max(layers))
        self.backbone = backbone.eval().requires_grad_(requires_grad=False)
        self._layers = tuple(layers)
        self._momentum = momentum
        self._average: Average | None = None

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the compared feature maps of pictures in [0, 1], float `[B, 3, H, W]`; differentiable in them."""
        return self.backbone.early(images, self._layers)

    def follow(self, model: Backbone) -> None:
        """Start as a copy of a model's encoder and be its moving average from now on; nothing for a fixed network.

        Call it when both are on their device.
        """
        if self._momentum is not None:
            self._average = Average(self.backbone, model, self._momentum)

    def after_step(self) -> None:
        """Move a little towards the model, after an optimizer step; nothing for a fixed network."""
        if self._average is not None:
            self._average.move()

    def train(self, mode: bool = True) -> "FrozenNet":
        """Stay in evaluation mode whatever is asked."""
        del mode
        return super().train(mode=False)

    def state(self) -> dict[str, Tensor]:
        """Return the average; nothing for a fixed network, which is read again from where it came."""
        return {} if self._momentum is None else dict(self.backbone.state_dict())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the average."""
        if self._momentum is not None:
            self.backbone.load_state_dict(dict(state))


class Average:
    """An exponential moving average of those tensors of a model that a part of it has too, by name.

    The model's own are equal on every rank after an optimizer step, so the average is too.
    """

    def __init__(self, own: nn.Module, model: nn.Module, momentum: float) -> None:
        self._move: Callable[[list[Tensor], list[Tensor], int], None] = get_ema_multi_avg_fn(momentum)
        sources = dict(model.named_parameters()) | dict(model.named_buffers())
        averages = dict(own.named_parameters()) | dict(own.named_buffers())
        names = [name for name, tensor in averages.items() if tensor.is_floating_point()]
        self._averages = [averages[name] for name in names]
        self._sources = [sources[name] for name in names]
        with torch.no_grad():
            for average, source in zip(self._averages, self._sources, strict=True):
                average.copy_(source)

    def move(self) -> None:
        """Keep `momentum` of the average and take the rest from the model."""
        with torch.no_grad():
            self._move(self._averages, self._sources, 0)


def build_frozen(
    tasks: Mapping[str, TaskConfig], model: ModelConfig, read_weights: ReadWeights
) -> dict[str, FrozenNet]:
    """Build the frozen network of each task that compares features of one, by task name.

    Hand them to `build_tasks`, move them to the device, and let them `follow` the model's backbone once it is built.

    Args:
        tasks: Sections by task name.
        model: The model's own section.
        read_weights: Reads the weights of a checkpoint of ours, where one is named.

    Raises:
        UserError: a name, checkpoint or layer does not exist.
    """
    nets: dict[str, FrozenNet] = {}
    for name, config in tasks.items():
        wanted = config.frozen_network()
        if wanted is not None:
            nets[name] = _build(f"tasks.{name}", wanted, model, read_weights)
    return nets


def _build(path: str, wanted: FrozenNetwork, model: ModelConfig, read_weights: ReadWeights) -> FrozenNet:
    backbone = bare_backbone(path, wanted, model, pretrained=True)
    if wanted.source == EMA:
        return FrozenNet(backbone, wanted.layers, wanted.momentum)
    if is_ours(wanted):
        _load(backbone, wanted.source, read_weights, path=f"{path}.frozen", name=model.backbone)
    return FrozenNet(backbone, wanted.layers)


def bare_backbone(path: str, wanted: FrozenNetwork, model: ModelConfig, *, pretrained: bool) -> Backbone:
    """Build the network of a task, with the weights that timm publishes if it is one of timm's.

    Args:
        path: Dotted path of the task, for errors.
        wanted: What the task compares.
        model: The model's own section.
        pretrained: Fetch these weights.

    Raises:
        UserError: There is no such network, or it has not the feature maps that are to be compared.
    """
    if is_ours(wanted):
        backbone = Backbone(model.backbone, options=model.options)
    else:
        try:
            backbone = Backbone(wanted.source, pretrained=pretrained)
        except UserError as error:
            reason = str(error).removeprefix("model.backbone: ")
            raise UserError(f"{path}.frozen: {reason}; or give 'ema' or a checkpoint folder") from error
    if max(wanted.layers) >= len(backbone.scales):
        raise UserError(
            f"{path}.layers: {max(wanted.layers)} is too deep; the frozen network has feature maps 0 to "
            f"{len(backbone.scales) - 1}"
        )
    return backbone


def is_ours(wanted: FrozenNetwork) -> bool:
    """Whether a frozen network has the model's own backbone: its average, or a checkpoint of ours."""
    return wanted.source == EMA or is_checkpoint(wanted.source)


def is_checkpoint(frozen: str) -> bool:
    """Whether the setting names a folder or URL rather than a timm model: it holds a slash and no hub's prefix."""
    return "/" in frozen and not frozen.startswith(("hf-hub:", "hf_hub:"))


def _load(backbone: Backbone, url: str, read_weights: ReadWeights, *, path: str, name: str) -> None:
    """Load the encoder's weights from a checkpoint of ours (names of `HMTLModel.state_dict`).

    Args:
        backbone: Where to.
        url: The checkpoint's folder or URL, or that of its `model.safetensors`.
        read_weights: Reads them.
        path: Dotted path of the setting, for errors.
        name: timm name of the backbone, for errors.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or it holds another backbone.
    """
    folder = url.removesuffix("/" + WEIGHTS_FILE)
    try:
        tensors = read_weights(folder)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    weights = {key.removeprefix(PREFIX): value for key, value in tensors.items()}
    expected = cast(dict[str, Tensor], backbone.state_dict())
    if any(key not in weights or weights[key].shape != value.shape for key, value in expected.items()):
        raise UserError(f"{path}: checkpoint {folder} holds another backbone than model.backbone={name}")
    backbone.load_state_dict({key: weights[key] for key in expected})
