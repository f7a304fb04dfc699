"""What becomes of an original picture on its way into a shard."""

from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg  # pyright: ignore[reportMissingTypeStubs]  # has none beside its own module

from hmtl_dist.data.dataset.adapter import Box, RejectedError
from hmtl_dist.data.decode import MAX_PIXELS, DecodeError, Picture, decode

_MAX_CROP = 4
"""A box whose side is more than this many times the picture's longer one is a mistake."""


@dataclass(frozen=True)
class PictureSettings:
    """How originals are stored."""

    image_size: int | None = None
    """Pixels of the shorter side after shrinking; None keeps the originals' size. Nothing is enlarged."""
    jpeg_quality: int = 95
    """JPEG quality, 1 to 100, of pictures that have to be encoded."""


def store_picture(original: bytes, settings: PictureSettings, box: Box | None = None) -> bytes:
    """The JPEG to store for an original: its own bytes where it is a JPEG that is kept whole and large, else a new one.

    A box is cut out of the decoded pixels and shrunk before the one encoding. (JPEG can be cut without loss only at
    multiples of 8 or 16 pixels, which would move the face.)

    Raises:
        RejectedError: when it is no picture, is damaged, or is too large, or the box does not fit it.
    """
    is_jpeg = original[:3] == b"\xff\xd8\xff" and box is None
    try:
        if is_jpeg and settings.image_size is None:
            # At 1/8 of the size libjpeg still reads every bit: damage is found at a fraction of the cost.
            decode(original, min_side=1)
            return original
        picture = decode(original)
    except DecodeError as error:
        raise RejectedError(str(error)) from error
    if box is not None:
        picture = cut_square(picture, box)
    if is_jpeg and settings.image_size is not None and min(picture.shape[:2]) <= settings.image_size:
        return original
    if settings.image_size is not None:
        picture = _shrink(picture, settings.image_size)
    return encode_jpeg(picture, settings.jpeg_quality)


def cut_square(picture: Picture, box: Box) -> Picture:
    """The square around the middle of a box, as wide as its longer side; beyond the edges the border is repeated.

    Raises:
        RejectedError: when the box is empty, far larger than the picture, or has its middle outside.
    """
    height, width = picture.shape[:2]
    side = round(max(box.width, box.height))
    middle_x, middle_y = box.left + box.width / 2, box.top + box.height / 2
    if min(box.width, box.height) <= 0 or side < 1:
        raise RejectedError(f"the face box of {box.width:g} x {box.height:g} pixels is empty")
    inside = 0 <= middle_x <= width and 0 <= middle_y <= height
    if not inside or side > _MAX_CROP * max(height, width) or side * side > MAX_PIXELS:
        raise RejectedError(
            f"the face box {box.left:g}, {box.top:g}, {box.width:g} x {box.height:g} does not fit the picture of "
            f"{width} x {height} pixels"
        )
    left, top = round(middle_x - side / 2), round(middle_y - side / 2)
    rows = np.clip(np.arange(top, top + side), 0, height - 1)
    columns = np.clip(np.arange(left, left + side), 0, width - 1)
    return picture[rows[:, None], columns]


def encode_jpeg(picture: Picture, quality: int) -> bytes:
    """A JPEG without colour subsampling from an RGB picture [H, W, 3]."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality, "RGB", "444")


def _shrink(picture: Picture, image_size: int) -> Picture:
    height, width = picture.shape[:2]
    scale = image_size / min(height, width)
    if scale >= 1:
        return picture
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
