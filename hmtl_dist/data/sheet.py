"""A contact sheet of a data set: pictures with their labels, so that a wrong label or a sideways face is seen."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hmtl_dist.data.dataset.index import SampleTable, ShardIndex, open_index
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.data.decode import DecodeError, Picture, decode

COLUMNS = 8
PICTURE = 160
"""Pixels of the side of a picture on the sheet."""
MARGIN = 6
LINE = 14
"""Pixels from one line of text to the next."""
FONT_SIZE = 12
GROUND = (255, 255, 255)
INK = (20, 20, 20)
FAULT = (170, 20, 20)


def contact_sheet(url: str, split: str, *, samples: int, seed: int = 0) -> Picture:
    """Draw some pictures of a split with their keys and labels, those of one class side by side.

    Args:
        url: the data set.
        split: which split.
        samples: how many pictures; all of a smaller split.
        seed: decides which.

    Returns:
        RGB pixels, uint8 `[H, W, 3]`.

    Raises:
        UserError: when there is no such split, or its storage refuses.
    """
    index = open_index(url, split)
    fields = index.header.fields
    count = min(samples, int(index.num_samples.sum()))
    ids = np.sort(np.random.default_rng(seed).choice(int(index.num_samples.sum()), count, replace=False))
    ends = np.cumsum(index.num_samples)
    shards = np.searchsorted(ends, ids, side="right")
    rows = ids - (ends - index.num_samples)[shards]
    tiles = [_read(index, shard, row, fields) for shard, row in zip(shards.tolist(), rows.tolist(), strict=True)]
    tiles.sort(key=lambda tile: tile[0])
    return _draw([(picture, lines) for _, picture, lines in tiles], len(fields) + 1)


def _read(
    index: ShardIndex, shard: int, row: int, fields: Mapping[str, Field]
) -> tuple[Any, Picture | None, list[str]]:
    """Read a sample: what it is sorted by, its pixels if it can be decoded, and its lines of text."""
    table: SampleTable = index.samples(shard)
    values = {name: table.labels[name][row] for name in fields}
    first = [int(values[name]) for name, field in fields.items() if field.kind == "category"]
    lines = [str(table.key[row]), *(_say(name, field, values[name]) for name, field in fields.items())]
    data = index.read(shard, int(table.offset[row]), int(table.length[row]))
    try:
        picture = decode(data, PICTURE)
    except DecodeError:
        return (first, lines), None, lines
    height, width = picture.shape[:2]
    scale = PICTURE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return (first, lines), np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8), lines


def _say(name: str, field: Field, value: Any) -> str:
    if field.kind == "category":
        return f"{name}: {field.classes[int(value)] if value >= 0 else '-'}"
    return f"{name}: {'-' if np.isnan(value) else f'{value:.4g} {field.unit}'.strip()}"


def _draw(tiles: list[tuple[Picture | None, list[str]]], num_lines: int) -> NDArray[np.uint8]:
    columns = min(COLUMNS, max(1, len(tiles)))
    width, height = PICTURE + 2 * MARGIN, PICTURE + 2 * MARGIN + num_lines * LINE
    sheet = Image.new("RGB", (columns * width, max(1, -(-len(tiles) // columns)) * height), GROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for number, (picture, lines) in enumerate(tiles):
        left, top = number % columns * width + MARGIN, number // columns * height + MARGIN
        if picture is None:
            draw.rectangle((left, top, left + PICTURE - 1, top + PICTURE - 1), outline=FAULT)
            draw.multiline_text((left + 4, top + 4), "cannot be\ndecoded", FAULT, font)
        else:
            sheet.paste(Image.fromarray(picture), (left, top + PICTURE - picture.shape[0]))
        for line, text in enumerate(lines):
            draw.text((left, top + PICTURE + line * LINE), _fitting(text, font), INK, font)
    return np.asarray(sheet)


def _fitting(text: str, font: Any) -> str:
    """Leave out the middle of a text that is wider than a picture."""
    if font.getlength(text) <= PICTURE:
        return text
    for kept in range(len(text) - 1, 1, -1):
        shorter = f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
        if font.getlength(shorter) <= PICTURE:
            return shorter
    return "…"
