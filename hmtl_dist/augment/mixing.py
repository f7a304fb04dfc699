"""Mixup and cutmix: pictures blended with a partner of the same step, whose labels count by its share.

A partner is another sample of the same lane and step. The plan gives a lane to one rank whole, so partners do not
depend on the number of ranks or loader workers, and no rank needs another's pictures. The lane's samples of a step are
turned by a drawn number of places, at least one: nobody is its own partner, and all others are equally likely.

Shape legend: B samples of a micro-batch, whole lanes; P samples a lane and step; H x W pixels.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hmtl_dist import rng
from hmtl_dist.augment.config import AugmentConfig

LEVELS = 4096
"""Quantiles that stand for a Beta distribution: a table is read alike on every device, a rejection loop is not."""
ONE = 1 << 16
"""Unit of sides in whole numbers."""


@dataclass(frozen=True)
class Mix:
    """Who is mixed with whom, and how much."""

    partners: Tensor
    """Row of each sample's partner in the micro-batch, int64 `[B]`; its own row where it is not mixed."""
    share: Tensor
    """Share of the sample's own picture, and so of its own label, float32 `[B]`; 1 where it is not mixed."""
    own: Tensor
    """How much each pixel shows of the sample itself, float32 `[B, 1, H, W]` or `[B, 1, 1, 1]`."""

    def pictures(self, images: Tensor) -> Tensor:
        """Blend pictures `[B, 3, H, W]` with those of their partners."""
        # lerp gives back its end to the bit where the weight is 1.
        return torch.lerp(images[self.partners], images, self.own.to(images.dtype))


def mixes(config: AugmentConfig) -> bool:
    """Say whether any picture is mixed."""
    return config.mixup_probability + config.cutmix_probability > 0


def draw_mix(
    config: AugmentConfig,
    seed: int,
    epoch: int,
    positions: Tensor,
    *,
    weight: Tensor,
    per_lane: int,
    size: tuple[int, int],
) -> Mix:
    """Draw partners and shares of a micro-batch from the positions of its samples.

    Mixup: Zhang et al., "mixup: beyond empirical risk minimization", ICLR 2018, the share from Beta(a, a). Cutmix: Yun
    et al., "CutMix: regularization strategy to train strong classifiers with localizable features", ICCV 2019, a box of
    the partner with sides sqrt(1 - Beta(a, a)) of the picture's about a uniform centre, cut off at the edges; the share
    is what the box leaves. Both draw once a batch there and a sample here.

    Args:
        config: How often and how strongly.
        seed: Seed of the run.
        epoch: Epoch of the samples.
        positions: Position of each sample, int64 `[B]`, whole lanes of P neighbours.
        weight: Loss weight of each sample `[B]`; none is mixed with one of weight 0, which shows no picture of its own.
        per_lane: P, the samples of a lane in a step.
        size: H and W.
    """
    words = rng.draws(seed, epoch, positions, rng.Purpose.MIXUP, 4)
    mixup_below = int(config.mixup_probability * 2**32)
    cutmix_below = int(min(1.0, config.mixup_probability + config.cutmix_probability) * 2**32)
    rows, partners = _partners(seed, epoch, positions, per_lane)
    seen = (weight > 0) & (weight[partners] > 0)
    is_mixup = seen & (words[:, 0] < mixup_below)
    is_cutmix = seen & (words[:, 0] >= mixup_below) & (words[:, 0] < cutmix_below)

    level = words[:, 1] >> 20
    one = torch.ones(len(positions), device=positions.device)
    share = torch.where(is_mixup, _shares(config.mixup_alpha, positions.device)[level], one)
    own = share[:, None, None, None]
    if config.cutmix_probability > 0:
        sides = _sides(config.cutmix_alpha, positions.device)[level]
        in_box = _boxes(sides, words[:, 2], words[:, 3], size) & is_cutmix[:, None, None]
        left = 1 - in_box.sum((1, 2)).float() / (size[0] * size[1])
        share = torch.where(is_cutmix, left, share)
        own = torch.where(in_box[:, None], 0.0, own)
    return Mix(torch.where(is_mixup | is_cutmix, partners, rows), share, own)


def _partners(seed: int, epoch: int, positions: Tensor, per_lane: int) -> tuple[Tensor, Tensor]:
    """Return the rows of the samples and of those that may be their partners, int64 `[B]` each."""
    place = positions % per_lane  # a step begins at a multiple of the batch, and a lane at one of P
    word = rng.draws(seed, epoch, positions - place, rng.Purpose.MIX_PARTNER, 1)[:, 0]
    turn = 1 + ((word * (per_lane - 1)) >> 32)
    rows = torch.arange(len(positions), device=positions.device)
    return rows, rows - place + (place + turn) % per_lane


def _boxes(sides: Tensor, down: Tensor, across: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the pixels of boxes with the given sides (in units of 1 / ONE) and centres (32-bit words): `[B, H, W]`."""
    inside: list[Tensor] = []
    for length, word in zip(size, (down, across), strict=True):
        side = (sides * length) // ONE
        start = ((word * length) >> 32) - side // 2
        pixels = torch.arange(length, device=sides.device)[None, :]
        inside.append((pixels >= start[:, None]) & (pixels < (start + side)[:, None]))
    return inside[0][:, :, None] & inside[1][:, None, :]


@functools.cache
def _shares(alpha: float, device: torch.device) -> Tensor:
    """Quantiles of Beta(alpha, alpha), float32 `[LEVELS]`."""
    return torch.tensor(_quantiles(alpha), dtype=torch.float32, device=device)


@functools.cache
def _sides(alpha: float, device: torch.device) -> Tensor:
    """Sides of cutmix's boxes, sqrt(1 - q) for the quantiles q, in units of 1 / ONE: int64 `[LEVELS]`."""
    return torch.tensor(np.rint(np.sqrt(1 - _quantiles(alpha)) * ONE), dtype=torch.int64, device=device)


@functools.cache
def _quantiles(alpha: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    from scipy.special import betaincinv  # a tenth of a second that only those who mix pay

    return betaincinv(alpha, alpha, (np.arange(LEVELS) + 0.5) / LEVELS)
