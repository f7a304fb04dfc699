"""Rotation: each tile of the picture is turned by quarters, and the model says by how many.

Shape legend: B samples, N tiles a side, S = N * N tiles, 4 turns.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hmtl_dist import rng
from hmtl_dist.tasks.base import Inputs, LinearHead, LossTerms, Prepared, PretextConfig, Ranks, Surroundings, Task
from hmtl_dist.tasks.reading import at_least_float32
from hmtl_dist.tasks.tiles import turn_tiles

TURNS = 4


class RotationConfig(PretextConfig):
    """Tell by how many quarters each tile of the picture was turned."""

    type: Literal["rotation"] = "rotation"
    """Kind of task."""
    grid: Literal[1, 2, 3] = 2
    """Tiles a side; 1 turns the picture as a whole."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Dropout before the linear layer."""
    reduction: Literal["mean", "sum"] = "mean"
    """Whether a picture's loss is the mean or the sum over its tiles."""

    def build(self, name: str, around: Surroundings) -> "Rotation":
        """Build the task; it needs nothing of the shards but pictures."""
        del around
        return Rotation(name, self)


class Rotation(Task):
    """Each tile has a classifier of its four turns: 0, 90, 180 or 270 degrees counter-clockwise, equally likely.

    Source: Gidaris et al., "Unsupervised representation learning by predicting image rotations", ICLR 2018, applied to
    each tile, a variant that the HMTL authors name (arXiv 2105.06421): the turned picture is encoded whole, once; one
    softmax cross-entropy a tile. Tiles whose sides N does not divide are resized as in puzzling.
    """

    is_pretext = True

    def __init__(self, name: str, config: RotationConfig) -> None:
        super().__init__(name, config)
        self.view = name
        self.supervise = config.supervise
        self.every = config.every
        self.grid = config.grid
        self._tiles = config.grid * config.grid
        self._dropout = config.dropout
        self._factor = 1.0 if config.reduction == "sum" else 1.0 / self._tiles

    def head_spec(self) -> LinearHead:
        """One logit for each turn of each tile: `[B, S * 4]`."""
        return LinearHead(self._tiles * TURNS, self._dropout)

    def prepare(self, inputs: Inputs) -> Prepared:
        """Turn the tiles: the view, and targets `turns`, int64 `[B, S]`, the quarters of each tile."""
        words = rng.draws(inputs.seed, inputs.epoch, inputs.positions, rng.Purpose.TILE_ROTATION, self._tiles)
        turns_BS = words >> 30
        turned_B = 90.0 * turns_BS[:, 0] if self.grid == 1 else None
        return Prepared({self.view: turn_tiles(inputs.images, turns_BS, self.grid)}, {"turns": turns_BS}, turned_B)

    def loss(self, outputs: Mapping[str, Tensor], prepared: Prepared, inputs: Inputs, ranks: Ranks) -> LossTerms:
        """Cross-entropy of all tiles; metric `accuracy` is the share of tiles that are right."""
        del ranks
        turns_BS = prepared.targets["turns"]
        logits_BST = at_least_float32(outputs[self.view]).reshape(-1, self._tiles, TURNS)
        losses_BS = F.cross_entropy(logits_BST.transpose(1, 2), turns_BS, reduction="none")
        right_B = (logits_BST.detach().argmax(2) == turns_BS).sum(1)
        count = inputs.weight.sum()
        return LossTerms(
            sum=(losses_BS.sum(1) * inputs.weight).sum() * self._factor,
            count=count,
            metrics={"accuracy": ((right_B * inputs.weight).sum(), count * self._tiles)},
        )

    def illustrate(self, outputs: Mapping[str, Tensor], prepared: Prepared, inputs: Inputs) -> dict[str, Tensor]:
        """Show the picture, its turned tiles, and these turned back by what the model says."""
        said_BS = outputs[self.view].reshape(-1, self._tiles, TURNS).argmax(2)
        turned = prepared.views[self.view]
        back = turn_tiles(turned, -said_BS % TURNS, self.grid)
        return {"picture": inputs.images, "turned": turned, "turned back": back}
