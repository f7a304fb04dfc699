"""Encoded pictures to pixels: JPEG through libjpeg-turbo, everything else through Pillow.

A picture comes out as people see it: upright (EXIF orientation applied), RGB (grey is repeated, CMYK converted,
transparency dropped), 8 bits a channel.
"""

import io
from typing import Final

import numpy as np
import simplejpeg  # pyright: ignore[reportMissingTypeStubs]  # has none beside its own module
from numpy.typing import NDArray
from PIL import Image, ImageOps

MAX_PIXELS: Final = 50_000_000
"""Largest picture that is decoded: one that claims more is a mistake or an attack on the memory."""
FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""What Pillow may try; others of its formats start programs or are no pictures of faces."""
EXIF_ORIENTATION: Final = 0x0112
_AFTER_SEGMENTS: Final = (b"\xda", b"\xd9", b"")
"""Markers of a JPEG behind which there are no more segments: start of scan, end of image, end of the file."""

Picture = NDArray[np.uint8]


class DecodeError(Exception):
    """The bytes are not a picture that can be decoded whole."""


class TooManyPixelsError(DecodeError):
    """The picture claims more than `MAX_PIXELS`; it was not decoded."""


def decode(encoded: bytes, min_side: int = 0, *, aligned: bool = False) -> Picture:
    """Decode a picture.

    Args:
        encoded: a whole JPEG, PNG, WebP, BMP, TIFF or GIF file.
        min_side: pixels that height and width of the result must keep, 0 for the full size. A JPEG is then decoded at
            the smallest DCT scale of 1/2 or less that keeps them; scales between 1/2 and 1 cost more than they save.
        aligned: give every pixel a fourth byte that means nothing: OpenCV turns such a picture at twice the speed.

    Returns:
        RGB pixels, contiguous uint8 `[H, W, 3]`, or `[H, W, 4]` if aligned.

    Raises:
        DecodeError: the bytes are damaged, cut short, no picture, or (`TooManyPixelsError`) a picture of more than
            `MAX_PIXELS`.
    """
    if encoded[:3] == b"\xff\xd8\xff":
        picture = _decode_jpeg(encoded, min_side, "RGBA" if aligned else "RGB")
        if picture is not None:
            return picture
    picture = _decode_any(encoded)
    return np.pad(picture, ((0, 0), (0, 0), (0, 1)), constant_values=255) if aligned else picture


def _decode_jpeg(encoded: bytes, min_side: int, layout: str) -> Picture | None:
    """Return the pixels, or None where Pillow must decide: CMYK, and what libjpeg-turbo has warnings about."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        _refuse_too_large(int(height), int(width))
        if colours in ("CMYK", "YCCK"):
            return None
        factor = 2.0 if min_side else 1.0
        pixels = simplejpeg.decode_jpeg(encoded, layout, min_height=min_side, min_width=min_side, min_factor=factor)
    except ValueError:
        return None
    # Reading EXIF costs as much as decoding a small picture: only where there is some.
    if _has_exif(encoded):
        return _upright(pixels, encoded)
    return pixels


def _has_exif(encoded: bytes) -> bool:
    """Whether there is an EXIF segment before the pixels, behind whatever other segments (ITU-T T.81, annex B)."""
    place = 2
    while encoded[place : place + 1] == b"\xff" and (marker := encoded[place + 1 : place + 2]) not in _AFTER_SEGMENTS:
        if marker == b"\xff":  # a fill byte
            place += 1
            continue
        if marker == b"\xe1" and encoded.startswith(b"Exif\0\0", place + 4):
            return True
        place += 2 + int.from_bytes(encoded[place + 2 : place + 4])
    return False


def _upright(pixels: Picture, encoded: bytes) -> Picture:
    """Apply the EXIF orientation (EXIF 2.32, tag 0x0112): turns and mirrors, no resampling."""
    try:
        orientation: object = Image.open(io.BytesIO(encoded), formats=FORMATS).getexif().get(EXIF_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError):
        return pixels
    if orientation in (2, 4, 5, 7):
        pixels = pixels[:, ::-1]
    turns = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0) if isinstance(orientation, int) else 0
    return np.ascontiguousarray(np.rot90(pixels, turns))


def _decode_any(encoded: bytes) -> Picture:
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            _refuse_too_large(image.height, image.width)
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                grey = np.clip(np.asarray(upright).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            if upright.mode in ("P", "PA", "LA", "La"):
                upright = upright.convert("RGBA")
            return np.array(upright.convert("RGB"), dtype=np.uint8)
    except DecodeError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # Pillow looks before we can
        raise TooManyPixelsError(f"a picture of far more than the {MAX_PIXELS:,} pixels that are decoded") from None
    except Exception as error:  # noqa: BLE001  # Pillow's decoders raise nearly anything on hostile bytes
        reason = " ".join(str(error).split())
        # Pillow names the address of the buffer, which differs from run to run.
        raise DecodeError("no picture that can be decoded" if "BytesIO" in reason else reason) from None


def _refuse_too_large(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise TooManyPixelsError(f"a picture of {width} x {height} pixels; at most {MAX_PIXELS:,} pixels are decoded")
