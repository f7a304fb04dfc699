"""Colours, blur, noise and cut-out of a whole batch on the device, with parameters drawn for each sample.

Shape legend: B samples, H x W pixels.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hmtl_dist import rng
from hmtl_dist.augment.config import AugmentConfig

GREY = 0.5
LUMA = (0.299, 0.587, 0.114)
"""Share of red, green and blue in the grey of a picture (ITU-R BT.601)."""
CACHE_BYTES = 1 << 20
"""A CPU changes about so many bytes of pictures at a time, which stay in its cache from one pass to the next."""


def photometric(images: Tensor, config: AugmentConfig, seed: int, epoch: int, positions: Tensor) -> Tensor:
    """Change contrast, brightness, saturation, hue, sharpness and noise of training pictures.

    Args:
        images: Pictures in [0, 1], float `[B, 3, H, W]`.
        config: How much.
        seed: Seed of the run.
        epoch: Epoch of the samples.
        positions: Position of each sample, int64 `[B]`, on the pictures' device.

    Returns:
        Pictures in [0, 1] of the same shape and memory format; the given ones where nothing is to be changed.
    """
    if not (_blurs(config) or _recolours(config) or config.noise > 0):
        return images
    count = max(1, CACHE_BYTES // (images.shape[1:].numel() * images.element_size()))
    if count >= len(images) or not images.is_cpu:
        return _photometric(images, config, seed, epoch, positions)
    changed = torch.empty_like(images)
    for first in range(0, len(images), count):
        rows = slice(first, first + count)
        changed[rows] = _photometric(images[rows], config, seed, epoch, positions[rows])
    return changed


def _photometric(images: Tensor, config: AugmentConfig, seed: int, epoch: int, positions: Tensor) -> Tensor:
    drawn = rng.uniform(seed, epoch, positions, rng.Purpose.AUGMENT_COLOUR, 9).unbind(1)
    if _blurs(config):
        sigma = drawn[7] * config.blur_sigma * images.shape[2] * (drawn[6] < config.blur_probability)
        images = _blur(images, sigma, config.blur_sigma * images.shape[2])
    if _recolours(config):
        images = _recolour(images, config, drawn)
    if config.noise > 0:
        grains = _grains(seed, epoch, positions, images[0].numel())
        # Grains follow the pictures' memory (channels last), so that both are walked in one order.
        grains = grains.view(-1, *images.shape[2:], images.shape[1]).permute(0, 3, 1, 2)
        images = torch.addcmul(images, grains, (drawn[8] * config.noise)[:, None, None, None])
    return images.clamp(0.0, 1.0)


def _blurs(config: AugmentConfig) -> bool:
    return config.blur_probability * config.blur_sigma > 0


def _recolours(config: AugmentConfig) -> bool:
    jitter = config.jitter_probability * (config.jitter_saturation + config.jitter_hue)
    changed = config.brightness + config.grey_probability + jitter > 0
    return changed or (config.contrast_min, config.contrast_max) != (1.0, 1.0)


def cutout(images: Tensor, config: AugmentConfig, seed: int, epoch: int, positions: Tensor) -> Tensor:
    """Lay a grey square over each picture, wholly inside it, at a place drawn from its position.

    Takes the arguments of `photometric`, and returns pictures of the same shape.
    """
    if config.cutout_probability == 0:
        return images
    height, width = images.shape[2:]
    side = max(1, round(config.cutout_side * min(height, width)))
    words = rng.draws(seed, epoch, positions, rng.Purpose.CUTOUT, 3)
    top, left = (words[:, 0] * (height - side + 1)) >> 32, (words[:, 1] * (width - side + 1)) >> 32
    rows = torch.arange(height, device=images.device)[None, :] - top[:, None]
    columns = torch.arange(width, device=images.device)[None, :] - left[:, None]
    chosen = words[:, 2] < int(config.cutout_probability * 2**32)
    in_rows = (rows >= 0) & (rows < side) & chosen[:, None]
    in_columns = (columns >= 0) & (columns < side)
    hole = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
    return torch.where(hole, GREY, images)  # unlike masked_fill, it keeps channels-last memory


def _grains(seed: int, epoch: int, positions: Tensor, count: int) -> Tensor:
    if positions.is_cpu:  # the same bits; numpy is several times as fast at 64-bit integers there
        grains = rng.normal_like(seed, epoch, positions.numpy(), rng.Purpose.NOISE, count)
        return torch.from_numpy(grains)  # pyright: ignore[reportUnknownMemberType]  # partial in torch
    return rng.normal_like(seed, epoch, positions, rng.Purpose.NOISE, count)


@functools.cache
def _colour_constants(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The luma `[3]` and the cross-product matrix of the grey axis `[3, 3]`; copied to a device once, not each step."""
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], dtype=dtype) / math.sqrt(3)
    return torch.tensor(LUMA, dtype=dtype, device=device), cross.to(device)


def _recolour(images: Tensor, config: AugmentConfig, drawn: tuple[Tensor, ...]) -> Tensor:
    """Apply contrast, brightness, saturation, hue and grey as one affine map of colours a picture.

    All five are affine in (red, green, blue), so their product is one 3 x 3 matrix and one shift for each picture.
    """
    luma, cross = _colour_constants(images.device, images.dtype)
    contrast = config.contrast_min + (config.contrast_max - config.contrast_min) * drawn[0]
    brightness = config.brightness * (2 * drawn[1] - 1)
    jittered = drawn[2] < config.jitter_probability
    saturation = 1 + config.jitter_saturation * (2 * drawn[3] - 1) * jittered
    saturation = saturation * (drawn[5] >= config.grey_probability)
    hue = 2 * math.pi * config.jitter_hue * (2 * drawn[4] - 1) * jittered

    matrix = _colour_matrix(saturation, hue, luma, cross) * contrast[:, None, None]
    # Grey values stay where saturation and hue are changed, so the shift is the same for the three colours.
    mean_grey = (images.mean((2, 3)) * luma).sum(1)
    shift = (1 - contrast) * mean_grey + brightness
    pixels = images.permute(0, 2, 3, 1)
    changed = torch.baddbmm(shift[:, None, None], pixels.flatten(1, 2), matrix.transpose(1, 2))
    return changed.reshape(pixels.shape).permute(0, 3, 1, 2)


def _colour_matrix(saturation: Tensor, hue: Tensor, luma: Tensor, cross: Tensor) -> Tensor:
    """Return `[B, 3, 3]`: colour differences from grey are turned by `hue` (radians) and scaled by `saturation`.

    The turn is Rodrigues' rotation about the grey axis (1, 1, 1); the grey of BT.601 is put back afterwards.
    """
    identity = torch.eye(3, device=luma.device, dtype=luma.dtype)
    to_grey = luma.expand(3, 3)
    third = torch.full_like(identity, 1 / 3)
    cosine, sine = hue.cos()[:, None, None], hue.sin()[:, None, None]
    turn = cosine * identity + sine * cross + (1 - cosine) * third
    return to_grey + saturation[:, None, None] * ((identity - to_grey) @ turn @ (identity - to_grey))


def _blur(images: Tensor, sigma: Tensor, greatest: float) -> Tensor:
    """Blur each picture by its own Gaussian, sigma `[B]` in pixels; a sigma of 0 leaves it as it is."""
    radius = max(1, math.ceil(2.5 * greatest))
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.exp(-0.5 * (offsets / sigma.clamp_min(1e-3)[:, None]) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).to(images.dtype)
    for axis in (2, 3):
        padding = (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0)
        padded = F.pad(images, padding, mode="replicate")
        length = images.shape[axis]
        terms = (padded.narrow(axis, k, length) * weights[:, k, None, None, None] for k in range(2 * radius + 1))
        images = next(terms)
        for term in terms:
            images = images + term
    return images
