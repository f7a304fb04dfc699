"""Crop, rotation, flip and resize of one picture as a single resampling, and what they do to its labels.

Shape legend: n samples, P = 5 parameters of a sample: side of the crop (share), its place across and down (0 to 1),
rotation (degrees, counter-clockwise as the viewer sees it), flip (0 or 1).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hmtl_dist import rng
from hmtl_dist.augment.config import AugmentConfig
from hmtl_dist.data.decode import decode

SIDE, ACROSS, DOWN, ANGLE, FLIP = range(5)


@dataclass(frozen=True)
class LabelGeometry:
    """How an angle in degrees that is a label follows its picture; the section of the task that learns it says so."""

    mirrors: bool = False
    """A mirrored picture negates it."""
    turns: bool = False
    """A picture that is turned turns it by as much, about the camera's axis; it stays in [-180, 180)."""


class GeometricTransform:
    """Decodes a picture into its place in a batch: `SampleTransform` of the stream.

    Args:
        config: How much is changed.
        image_size: Side of the output in pixels.
        geometry: The number labels that follow the picture, in degrees.
        seed: Seed of the run.
        train: Whether parameters are drawn; else every picture gets the central crop of `eval_crop`.
    """

    def __init__(
        self, config: AugmentConfig, image_size: int, geometry: Mapping[str, LabelGeometry], seed: int, *, train: bool
    ) -> None:
        self._config = config
        self._image_size = image_size
        self._geometry = dict(geometry)
        self._seed = seed
        self._train = train

    def draw(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Draw the parameters of samples, float32 `[n, P]`, from their positions in the epoch."""
        config = self._config
        if not self._train:
            return np.tile(np.array([config.eval_crop, 0.5, 0.5, 0.0, 0.0], np.float32), (len(positions), 1))
        params = rng.uniform(self._seed, epoch, positions, rng.Purpose.AUGMENT_GEOMETRY, 5)
        params[:, SIDE] = config.crop_min + (config.crop_max - config.crop_min) * params[:, SIDE]
        if config.crop_position == "centre":
            params[:, ACROSS : DOWN + 1] = 0.5
        params[:, ANGLE] = config.rotation * (2 * params[:, ANGLE] - 1)
        params[:, FLIP] = params[:, FLIP] < config.flip
        return params

    def picture(self, encoded: bytes, params: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
        """Decode a picture and resample it into `out`.

        Args:
            encoded: JPEG, PNG or another picture file.
            params: Its parameters, float32 `[P]`.
            out: Where to, contiguous uint8 `[image_size, image_size, 3]`; written whole.

        Raises:
            DecodeError: the bytes are no picture that can be decoded.
        """
        size = self._image_size
        pixels = decode(encoded, min_side=math.ceil(size / float(params[SIDE])), aligned=True)
        shrink = int(float(params[SIDE]) * min(pixels.shape[:2]) / size)
        if shrink >= 2:  # what the decoder did not scale: bilinear sampling would skip pixels
            shrunk = (max(1, pixels.shape[1] // shrink), max(1, pixels.shape[0] // shrink))
            pixels = cv2.resize(pixels, shrunk, interpolation=cv2.INTER_AREA)
        matrix = to_source(params, pixels.shape[0], pixels.shape[1], size)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        turned = cv2.warpAffine(pixels, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
        cv2.cvtColor(turned, cv2.COLOR_RGBA2RGB, dst=out)

    def labels(self, labels: Mapping[str, NDArray[Any]], params: NDArray[np.float32]) -> None:
        """Let labels follow their pictures, in place; missing ones (NaN) stay missing.

        Args:
            labels: Arrays `[n]` by name; those that follow are float32 degrees.
            params: Parameters of the same samples, float32 `[n, P]`.
        """
        mirrored = params[:, FLIP] > 0
        turned = params[:, ANGLE] if self._config.roll_positive == "counterclockwise" else -params[:, ANGLE]
        for name, geometry in self._geometry.items():
            if name not in labels:
                continue
            if geometry.mirrors:
                np.negative(labels[name], out=labels[name], where=mirrored)
            if geometry.turns:
                labels[name][:] = np.mod(labels[name] + turned + 180.0, 360.0) - 180.0


def to_source(params: NDArray[np.float32], height: int, width: int, size: int) -> NDArray[np.float64]:
    """Return the affine map `[2, 3]` from output pixels to picture pixels (both counted from pixel centres).

    The picture is cropped to a square, mirrored if asked, turned, and scaled to `size`.
    """
    share, across, down, angle, flip = (float(value) for value in params)
    side = share * min(height, width)
    centre = np.array([width / 2 + (across - 0.5) * (width - side), height / 2 + (down - 0.5) * (height - side)])
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # With y downwards this turns back what was turned counter-clockwise.
    back = np.array([[cosine, -sine], [sine, cosine]]) * (side / size)
    if flip:
        back[0] *= -1
    # Pixel i covers [i, i + 1): its centre lies at i + 0.5.
    shift = centre - 0.5 - back @ np.array([size / 2 - 0.5, size / 2 - 0.5])
    return np.column_stack([back, shift])
