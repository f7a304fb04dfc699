"""What sits on the backbone: a linear layer on the pooled feature, or a decoder that paints a picture.

Shape legend: B pictures, C channels, H x W pixels; maps are ordered from the finest to the deepest.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_GROUPS = 8


class Linear(nn.Module):
    """Dropout and one linear layer on the pooled feature."""

    def __init__(self, num_features: int, out_features: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(num_features, out_features)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map `[B, num_features]` to `[B, out_features]`."""
        return self.linear(self.dropout(features))


class _Up(nn.Module):
    """One step towards the finer map."""

    def __init__(self, deeper: int, channels: int, width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(deeper, width, 1, bias=False)
        self.lateral = nn.Conv2d(channels, width, 1)
        self.mix = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(NUM_GROUPS, width)

    def forward(self, x: Tensor, finer: Tensor) -> Tensor:
        """Map `[B, deeper, h, w]` and the finer map `[B, channels, H, W]` to `[B, width, H, W]`."""
        # Projected before it is enlarged: the same linear map at a quarter of the cost.
        enlarged = F.interpolate(self.project(x), size=finer.shape[2:], mode="nearest")
        return F.relu(self.norm(self.mix(enlarged + self.lateral(finer))))


class Decoder(nn.Module):
    """A light U-shaped decoder over the backbone's feature maps.

    From the deepest map on: enlarge to the next finer map, add that map's 1x1 projection, and mix by a 3x3
    convolution (the top-down path of a feature pyramid, Lin et al., CVPR 2017, with Ronneberger et al.'s mixing). The
    finest map is turned into pixels by sub-pixel convolution (Shi et al., CVPR 2016): nothing is computed at full
    resolution. Normalisation is by groups, so that a picture never depends on the others of its batch.
    """

    def __init__(self, channels: Sequence[int], finest_reduction: int, out_channels: int, width: int = 32) -> None:
        super().__init__()
        widths = [min(width * 2**i, 4 * width) for i in range(len(channels))]
        self.deepest = nn.Conv2d(channels[-1], widths[-1], 1)
        self.ups = nn.ModuleList(
            _Up(deeper, channel, width)
            for deeper, channel, width in reversed(list(zip(widths[1:], channels[:-1], widths[:-1], strict=True)))
        )
        self.paint = nn.Conv2d(widths[0], out_channels * finest_reduction**2, 3, padding=1)
        self._reduction = finest_reduction

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Turn maps `[B, C_i, h_i, w_i]` into pictures in [0, 1], float `[B, out_channels, H, W]`, size = (H, W)."""
        x = self.deepest(maps[-1])
        for up, finer in zip(self.ups, reversed(maps[:-1]), strict=True):
            x = up(x, finer)
        painted = torch.sigmoid(F.pixel_shuffle(self.paint(x), self._reduction))[..., : size[0], : size[1]]
        if painted.shape[2:] != size:  # a finest map that is smaller than H / reduction, such as that of VALID padding
            painted = F.interpolate(painted, size=size, mode="bilinear", align_corners=False)
        return painted
