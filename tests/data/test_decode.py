"""Every kind of picture comes out upright, RGB and whole, or as a DecodeError."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hmtl_dist.data.decode import MAX_PIXELS, DecodeError, decode


def scene(height: int = 120, width: int = 160) -> Image.Image:
    """A smooth picture whose four corners differ, so that any turn or mirror shows."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 255 // (height + width - 2)], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}) | options)
    return buffer.getvalue()


def difference(picture: NDArray[np.uint8], image: Image.Image) -> float:
    expected = np.asarray(image.convert("RGB"), dtype=np.int64)
    assert picture.shape == expected.shape
    return float(np.abs(picture.astype(np.int64) - expected).mean())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_formats_are_decoded_to_contiguous_rgb(kind: str) -> None:
    picture = decode(encoded(scene(), kind))
    assert picture.dtype == np.uint8
    assert picture.flags["C_CONTIGUOUS"]
    assert difference(picture, scene()) < 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_aligned_pixels_are_the_same_with_a_fourth_byte(kind: str) -> None:
    data = encoded(scene(), kind)
    aligned = decode(data, aligned=True)
    assert aligned.shape[2] == 4
    assert np.array_equal(aligned[:, :, :3], decode(data))


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "JPEG"), ("CMYK", "JPEG"), ("L", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"), ("1", "PNG")]
)
def test_other_colour_models_become_rgb(mode: str, kind: str) -> None:
    image = scene().convert(mode)
    assert difference(decode(encoded(image, kind)), image) < 2


def test_a_palette_with_transparency_becomes_rgb() -> None:
    image = scene().quantize(32)
    assert difference(decode(encoded(image, "PNG", transparency=b"\x80" * 32)), image) == 0


def test_16_bit_grey_keeps_its_high_byte() -> None:
    image = Image.fromarray((np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16))
    picture = decode(encoded(image, "PNG"))
    assert np.array_equal(picture[:, :, 1], np.asarray(image) >> 8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_come_out_upright(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(scene(), kind, exif=exif)
    assert difference(decode(data), ImageOps.exif_transpose(Image.open(io.BytesIO(data)))) < 4


@pytest.mark.parametrize(("min_side", "height"), [(0, 480), (241, 480), (240, 240), (121, 180), (61, 120), (60, 60)])
def test_jpeg_is_decoded_at_the_smallest_scale_of_a_half_or_less_that_keeps_the_side(
    min_side: int, height: int
) -> None:
    assert decode(encoded(scene(480, 640)), min_side).shape[0] == height


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_picture_cut_short_is_refused(kind: str) -> None:
    whole = encoded(scene(), kind)
    with pytest.raises(DecodeError):
        decode(whole[: len(whole) * 2 // 3])


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"no picture at all", b"%!PS-Adobe-3.0 EPSF-3.0\n" * 9])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data)


def test_junk_between_jpeg_markers_which_browsers_forgive_is_forgiven() -> None:
    whole = encoded(scene())
    assert difference(decode(whole[:20] + b"\x00" * 3 + whole[20:]), scene()) < 2


@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_000, 60_000])
def test_a_picture_that_would_fill_the_memory_is_refused(side: int) -> None:
    assert side**2 > MAX_PIXELS
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    bomb += struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    with pytest.raises(DecodeError, match="pixels"):
        decode(bomb)


@pytest.mark.parametrize("size", [2_000, 60_000])
def test_a_turn_that_stands_behind_other_segments_is_applied(size: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(buffer, "JPEG", exif=exif)
    segment = b"\xff\xed" + (size + 2).to_bytes(2, "big") + b"Photoshop 3.0\0".ljust(size, b"\0")
    encoded = buffer.getvalue()

    assert decode(encoded[:2] + segment + encoded[2:]).shape == (30, 20, 3)
