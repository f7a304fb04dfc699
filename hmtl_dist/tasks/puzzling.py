"""Puzzling: the picture's tiles are shuffled, and the model says which tile sits where.

Shape legend: B samples, N tiles a side, S = N * N slots, C channels, H x W pixels.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hmtl_dist import rng
from hmtl_dist.tasks.base import (
    Inputs,
    LinearHead,
    LossTerms,
    Prepared,
    PretextConfig,
    Ranks,
    Supervise,
    Surroundings,
    Task,
)
from hmtl_dist.tasks.reading import at_least_float32
from hmtl_dist.tasks.tiles import shuffle_tiles


class PuzzlingConfig(PretextConfig):
    """Solve a puzzle made of the picture's own tiles."""

    type: Literal["puzzling"] = "puzzling"
    """Kind of task."""
    grid: Literal[2, 3] = 2
    """Tiles a side."""
    supervise: Supervise = "corrupted"
    """Which picture the supervised heads read: the puzzle (`corrupted`, one pass), the `clean` picture, or `both`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Dropout before the linear layer."""
    reduction: Literal["mean", "sum"] = "mean"
    """Whether a puzzle's loss is the mean or the sum over its slots; the authors' main script sums."""

    def build(self, name: str, around: Surroundings) -> "Puzzling":
        """Build the task; it needs nothing of the shards but pictures."""
        del around
        return Puzzling(name, self)


class Puzzling(Task):
    """Slot i of the shuffled picture predicts which original tile, counted row by row, sits in it.

    Source: Pourmirzaei et al., arXiv 2105.06421, and the authors' code: every permutation is equally likely, identity
    included; the shuffled picture is encoded whole, once; one softmax cross-entropy a slot over all S tiles. Pictures
    whose sides N does not divide are resized to the next multiple, shuffled, and resized back.
    """

    is_pretext = True

    def __init__(self, name: str, config: PuzzlingConfig) -> None:
        super().__init__(name, config)
        self.view = name
        self.supervise = config.supervise
        self.every = config.every
        self.grid = config.grid
        self._slots = config.grid * config.grid
        self._dropout = config.dropout
        self._factor = 1.0 if config.reduction == "sum" else 1.0 / self._slots

    def head_spec(self) -> LinearHead:
        """One logit for each tile in each slot: `[B, S * S]`."""
        return LinearHead(self._slots * self._slots, self._dropout)

    def prepare(self, inputs: Inputs) -> Prepared:
        """Shuffle the tiles: the view, and targets `tiles`, int64 `[B, S]`, the original tile in each slot."""
        tiles_BS = rng.permutations(inputs.seed, inputs.epoch, inputs.positions, rng.Purpose.PUZZLE, self._slots)
        return Prepared({self.view: shuffle_tiles(inputs.images, tiles_BS, self.grid)}, {"tiles": tiles_BS})

    def loss(self, outputs: Mapping[str, Tensor], prepared: Prepared, inputs: Inputs, ranks: Ranks) -> LossTerms:
        """Cross-entropy of all slots; metric `accuracy` is the share of slots that are right."""
        del ranks
        tiles_BS = prepared.targets["tiles"]
        logits_BST = at_least_float32(outputs[self.view]).reshape(-1, self._slots, self._slots)
        losses_BS = F.cross_entropy(logits_BST.transpose(1, 2), tiles_BS, reduction="none")
        right_B = (logits_BST.detach().argmax(2) == tiles_BS).sum(1)
        count = inputs.weight.sum()
        return LossTerms(
            sum=(losses_BS.sum(1) * inputs.weight).sum() * self._factor,
            count=count,
            metrics={"accuracy": ((right_B * inputs.weight).sum(), count * self._slots)},
        )

    def illustrate(self, outputs: Mapping[str, Tensor], prepared: Prepared, inputs: Inputs) -> dict[str, Tensor]:
        """Show the picture, the puzzle, and the puzzle put together: each place gets the slot that claims it most."""
        logits_BST = outputs[self.view].reshape(-1, self._slots, self._slots)
        puzzle = prepared.views[self.view]
        solved = shuffle_tiles(puzzle, logits_BST.argmax(1), self.grid)
        return {"picture": inputs.images, "puzzle": puzzle, "put back": solved}
