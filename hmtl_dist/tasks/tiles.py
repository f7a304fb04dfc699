"""Pictures as a grid of tiles: shuffled for puzzles, turned for the rotation task.

Sides that the grid does not divide are resized to the next multiple first and back afterwards, as the authors of HMTL
do for 3 x 3 tiles of 224 pixels (225 and back).

Shape legend: B samples, N tiles a side, S = N * N slots, C channels, H x W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def shuffle_tiles(images: Tensor, tiles: Tensor, grid: int) -> Tensor:
    """Put tile `tiles[b, i]` of picture b into its slot i.

    Args:
        images: Pictures, float `[B, C, H, W]`.
        tiles: Original tile (row-major) for each slot, int64 `[B, grid * grid]`.
        grid: Tiles a side.

    Returns:
        Shuffled pictures of the same shape, in channels-last memory.
    """
    size = (images.shape[2], images.shape[3])
    images = _to_multiple(images, grid)
    tiled = images.shape[2:]
    # Channels last, so that a row of a tile is one run of memory: all rows of all tiles are taken in their new order.
    batch, channels = images.shape[:2]
    height_of_tile, width_of_tile = tiled[0] // grid, tiled[1] // grid
    rows = images.permute(0, 2, 3, 1).reshape(-1, width_of_tile * channels)  # [B * N * h * N, w * C]
    tile = tiles.reshape(batch, grid, 1, grid)
    picture = torch.arange(batch, device=images.device).reshape(batch, 1, 1, 1)
    row = torch.arange(height_of_tile, device=images.device)[:, None]
    source = ((picture * grid + tile // grid) * height_of_tile + row) * grid + tile % grid  # [B, N, h, N]
    shuffled = rows.index_select(0, source.flatten()).reshape(batch, *tiled, channels).permute(0, 3, 1, 2)
    return _resized(shuffled, size)


def turn_tiles(images: Tensor, turns: Tensor, grid: int) -> Tensor:
    """Turn tile i of picture b counter-clockwise by `turns[b, i]` quarters.

    Args:
        images: Square pictures, float `[B, C, H, H]`.
        turns: Quarter turns of each tile (row-major), int64 `[B, grid * grid]`, 0 to 3.
        grid: Tiles a side.

    Returns:
        Pictures of the same shape, in channels-last memory.
    """
    size = (images.shape[2], images.shape[3])
    images = _to_multiple(images, grid)
    batch, channels, side = images.shape[:3]
    tiles = images.permute(0, 2, 3, 1).reshape(batch, grid, side // grid, grid, side // grid, channels).transpose(2, 3)
    turned = tiles  # [B, N, N, h, w, C]
    turns = turns.reshape(batch, grid, grid, 1, 1, 1)
    for quarters in (1, 2, 3):
        turned = torch.where(turns == quarters, tiles.rot90(quarters, (3, 4)), turned)
    joined = turned.transpose(2, 3).reshape(batch, side, side, channels).permute(0, 3, 1, 2)
    return _resized(joined, size)


def _to_multiple(images: Tensor, grid: int) -> Tensor:
    height, width = images.shape[2:]
    return _resized(images, (-(-height // grid) * grid, -(-width // grid) * grid))


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)
