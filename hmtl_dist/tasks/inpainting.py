"""In-painting: parts of the picture are hidden, and a decoder restores them.

Shape legend: B samples, K rectangles, C channels, H x W pixels.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from hmtl_dist import rng
from hmtl_dist.errors import UserError
from hmtl_dist.tasks.base import (
    DecoderHead,
    FrozenFeatures,
    FrozenNetwork,
    Inputs,
    LossTerms,
    Prepared,
    PretextConfig,
    Ranks,
    Surroundings,
    Task,
)
from hmtl_dist.tasks.reading import at_least_float32

MAX_RECTANGLES = 8
"""Rectangles tried for a mask: with sides of 1/6 to 1/2 they fall short once in some thousand masks."""
SIDE_RANGE = (6, 2)
"""A rectangle's sides are 1/6 to 1/2 of the picture's."""
LEAST_SIDE = 16
"""Pixels a side that a mask needs."""
GREY = 0.5
EPSILON = 1e-6
Fraction = Annotated[float, Field(gt=0, lt=1)]


class InpaintingConfig(PretextConfig):
    """Restore hidden parts of the picture."""

    type: Literal["inpainting"] = "inpainting"
    """Kind of task."""
    hidden_min: Fraction = 0.2
    """Least share of the picture's area that is hidden."""
    hidden_max: Fraction = 0.4
    """Greatest share of the picture's area that is hidden."""
    fill: Literal["grey", "mean"] = "grey"
    """What hidden parts show: middle grey, or the mean colour of the picture."""
    perceptual_weight: Annotated[float, Field(ge=0)] = 1.0
    """Factor of the perceptual distance beside the L1 distance; 0 needs no frozen network."""
    frozen: str = "ema"
    """Frozen network of the perceptual distance: `ema` (moving average of the own encoder), a timm model name (its
    pretrained weights are fetched), or the folder or URL of a checkpoint of ours with the same backbone."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Share of the old average that an optimizer step keeps; for `frozen=ema`."""
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (1, 2)
    """Which of the frozen network's feature maps are compared, 0 the finest; what lies deeper is not computed."""

    @model_validator(mode="after")
    def _room_for_a_mask(self) -> Self:
        if self.hidden_max - self.hidden_min < 0.1:
            raise ValueError(
                f"hidden_max={self.hidden_max} must exceed hidden_min={self.hidden_min} by 0.1 or more: "
                "rectangles of whole pixels have to fit between them"
            )
        return self

    def build(self, name: str, around: Surroundings) -> "Inpainting":
        """Build the task, for pictures that have room for a mask."""
        if around.image_size < LEAST_SIDE:
            raise UserError(
                f"data.image_size: {around.image_size} is too small for tasks.{name}; use {LEAST_SIDE} or more"
            )
        return Inpainting(name, self, around.frozen)

    def frozen_network(self) -> FrozenNetwork | None:
        """Name the network of the perceptual distance, where that counts."""
        return FrozenNetwork(self.frozen, self.layers, self.momentum) if self.perceptual_weight > 0 else None

    def without_frozen_network(self) -> Self:
        """Leave the perceptual distance out."""
        return self.model_copy(update={"perceptual_weight": 0.0})


class Inpainting(Task):
    """Mean absolute error on hidden pixels plus a perceptual distance of the completed picture.

    The completed picture is the original with its hidden part replaced by the decoder's. The L1 part is the mean over a
    picture's hidden pixels and channels. The perceptual part follows Johnson et al. (ECCV 2016) in the unit-normalised
    form of LPIPS (Zhang et al., CVPR 2018, eq. 1, without learned weights): features are divided by their length over
    channels, and the squared distance is averaged over positions and layers, so that its scale (0 to 4) depends on no
    network. Both are averaged over pictures. Masks and decoder are this project's own: the paper gives no details.
    """

    is_pretext = True
    hides_pixels = True

    def __init__(self, name: str, config: InpaintingConfig, frozen: FrozenFeatures | None) -> None:
        super().__init__(name, config)
        self.view = name
        self.supervise = config.supervise
        self.every = config.every
        self._config = config
        self._frozen = frozen if config.perceptual_weight > 0 else None

    def head_spec(self) -> DecoderHead:
        """A decoder to the three colours."""
        return DecoderHead(3)

    def prepare(self, inputs: Inputs) -> Prepared:
        """Hide parts: the view, and targets `original` `[B, 3, H, W]` and `hidden`, bool `[B, 1, H, W]`."""
        images = inputs.images
        height, width = images.shape[2:]
        shares = (self._config.hidden_min, self._config.hidden_max)
        hidden = draw_masks(inputs.seed, inputs.epoch, inputs.positions, height, width, shares)[:, None]
        if self._config.fill == "mean":
            view = torch.where(hidden, images.mean((2, 3), keepdim=True), images)
        else:
            view = images.masked_fill(hidden, GREY)
        return Prepared({self.view: view}, {"original": images, "hidden": hidden})

    def loss(self, outputs: Mapping[str, Tensor], prepared: Prepared, inputs: Inputs, ranks: Ranks) -> LossTerms:
        """Distance of the restored to the original picture; metrics `l1` and `perceptual` are its two parts."""
        del ranks
        original, hidden = prepared.targets["original"], prepared.targets["hidden"]
        restored = at_least_float32(outputs[self.view])
        weight, count = inputs.weight, inputs.weight.sum()
        difference = ((restored - original).abs() * hidden).sum((1, 2, 3))
        l1_B = difference / (hidden.sum((1, 2, 3)) * original.shape[1])
        total = l1 = (l1_B * weight).sum()
        metrics = {"l1": (l1.detach(), count)}
        if self._frozen is not None:
            completed = torch.where(hidden, restored, original.to(restored.dtype))
            with torch.no_grad():
                features_of_original = self._frozen.features(original)
            perceptual_B = perceptual_distance(self._frozen.features(completed), features_of_original)
            perceptual = (perceptual_B * weight).sum()
            total = l1 + self._config.perceptual_weight * perceptual
            metrics["perceptual"] = (perceptual.detach(), count)
        return LossTerms(sum=total, count=count, metrics=metrics)

    def illustrate(self, outputs: Mapping[str, Tensor], prepared: Prepared, inputs: Inputs) -> dict[str, Tensor]:
        """Show the picture, what was hidden, and the picture with its hidden parts restored."""
        original, hidden = prepared.targets["original"], prepared.targets["hidden"]
        restored = torch.where(hidden, outputs[self.view].to(original.dtype), original)
        return {"picture": inputs.images, "hidden": prepared.views[self.view], "restored": restored}

    def after_step(self) -> None:
        """Let the frozen network follow the model."""
        if self._frozen is not None:
            self._frozen.after_step()

    def state(self) -> dict[str, Tensor]:
        """Return the frozen network's own state."""
        return self._frozen.state() if self._frozen is not None else {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the frozen network's own state."""
        if self._frozen is not None:
            self._frozen.load_state(state)


def perceptual_distance(features: Iterable[Tensor], others: Iterable[Tensor]) -> Tensor:
    """Return the mean over layers and positions of the squared distance of unit feature vectors, float `[B]`."""
    layers = [(_unit(a) - _unit(b)).square().sum(1).mean((1, 2)) for a, b in zip(features, others, strict=True)]
    return torch.stack(layers).mean(0)


def draw_masks(
    seed: int, epoch: int, positions: Tensor, height: int, width: int, shares: tuple[float, float]
) -> Tensor:
    """Draw masks of a few rectangles that hide between the two shares of a picture's area.

    Rectangles are laid until a drawn share is hidden; one that would hide more than the upper share is narrowed.
    Whatever is still missing after the last one is hidden by full rows from the top or the bottom. All arithmetic is
    on integers, so every device draws the same mask.

    Args:
        seed: Seed of the run.
        epoch: Epoch of the samples.
        positions: Position of each sample, int64 `[B]`.
        height: Rows of the mask.
        width: Columns of the mask.
        shares: Least and greatest hidden share of the area.

    Returns:
        Whether a pixel is hidden, bool `[B, H, W]`.
    """
    area = height * width
    least, most = -int(-shares[0] * area // 1), int(shares[1] * area)
    words = rng.draws(seed, epoch, positions, rng.Purpose.MASK, 2 + 4 * MAX_RECTANGLES)
    wanted = _integer(words[:, 0], least, (least + most) // 2)
    rows = torch.arange(height, device=positions.device)[None, :]
    columns = torch.arange(width, device=positions.device)[None, :]
    hidden = torch.zeros((positions.shape[0], height, width), dtype=torch.bool, device=positions.device)
    covered = torch.zeros_like(positions)
    for k in range(MAX_RECTANGLES):
        row_word, column_word, height_word, width_word = words[:, 2 + 4 * k : 6 + 4 * k].unbind(1)
        tall = _integer(height_word, *_sides(height))
        wide = torch.minimum(_integer(width_word, *_sides(width)), (most - covered) // tall)
        wide = wide * (covered < wanted)
        top = _start(row_word, tall, height)
        left = _start(column_word, wide, width)
        in_rows = (rows >= top[:, None]) & (rows < (top + tall)[:, None])
        in_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
        hidden |= in_rows[:, :, None] & in_columns[:, None, :]
        covered = hidden.sum((1, 2))
    return hidden | _missing_rows(hidden, least, from_bottom=words[:, 1] & 1 == 1)


def _missing_rows(hidden: Tensor, least: int, *, from_bottom: Tensor) -> Tensor:
    """Full rows from one edge, as few as bring each mask to `least` hidden pixels: bool `[B, H, 1]`."""
    open_BH = (~hidden).sum(2)
    open_BH = torch.where(from_bottom[:, None], open_BH.flip(1), open_BH)
    before_BH = open_BH.cumsum(1) - open_BH  # what the rows nearer to the edge would add
    needed_BH = hidden.sum((1, 2))[:, None] + before_BH < least
    return torch.where(from_bottom[:, None], needed_BH.flip(1), needed_BH)[:, :, None]


def _sides(length: int) -> tuple[int, int]:
    return max(1, length // SIDE_RANGE[0]), max(1, length // SIDE_RANGE[1])


def _start(words: Tensor, side: Tensor, length: int) -> Tensor:
    # Up to half of a rectangle may lie outside: else corners would hardly ever be hidden.
    return ((words * (length - side + 2 * (side // 2) + 1)) >> 32) - side // 2


def _integer(words: Tensor, low: int, high: int) -> Tensor:
    return low + ((words * (high - low + 1)) >> 32)


def _unit(features: Tensor) -> Tensor:
    lifted = at_least_float32(features)
    return lifted * (lifted.square().sum(1, keepdim=True) + EPSILON).rsqrt()
