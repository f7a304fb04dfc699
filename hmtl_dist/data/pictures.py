"""What becomes of an original picture on its way into a shard."""

from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg  # pyright: ignore[reportMissingTypeStubs]  # has none beside its own module

from hmtl_dist.data.catalog.base import RejectedError
from hmtl_dist.data.decode import DecodeError, Picture, decode


@dataclass(frozen=True)
class PictureSettings:
    """How originals are stored."""

    image_size: int | None = None
    """Pixels of the shorter side after shrinking; None keeps the originals' size. Nothing is enlarged."""
    jpeg_quality: int = 95
    """JPEG quality, 1 to 100, of pictures that have to be encoded."""


def store_picture(original: bytes, settings: PictureSettings) -> bytes:
    """The JPEG to store for an original: its own bytes where it is a JPEG that need not be shrunk, else a new one.

    Raises:
        RejectedError: when it is no picture, is damaged, or is too large.
    """
    is_jpeg = original[:3] == b"\xff\xd8\xff"
    try:
        if is_jpeg and settings.image_size is None:
            # At 1/8 of the size libjpeg still reads every bit: damage is found at a fraction of the cost.
            decode(original, min_side=1)
            return original
        picture = decode(original)
    except DecodeError as error:
        raise RejectedError(str(error)) from error
    if is_jpeg and settings.image_size is not None and min(picture.shape[:2]) <= settings.image_size:
        return original
    if settings.image_size is not None:
        picture = _shrink(picture, settings.image_size)
    return encode_jpeg(picture, settings.jpeg_quality)


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
