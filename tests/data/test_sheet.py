"""A contact sheet shows pictures with their labels, those of a class side by side."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmtl_dist.data import sheet
from hmtl_dist.data.catalog.folder import FolderAdapter
from hmtl_dist.data.dataset.build import BuildSettings, build
from hmtl_dist.data.dataset.labels import parse_labels
from hmtl_dist.data.decode import Picture
from hmtl_dist.data.sheet import MARGIN, PICTURE, contact_sheet
from hmtl_dist.errors import UserError

COLOURS = {"calm": (200, 30, 30), "glad": (30, 30, 200)}
TILE = PICTURE + 2 * MARGIN


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve pictures, calm ones red and glad ones blue, in turn, over three shards."""
    source = tmp_path_factory.mktemp("source")
    rows = [("file", "mood", "age")]
    for number in range(12):
        mood = ("calm", "glad")[number % 2]
        Image.new("RGB", (64, 48), COLOURS[mood]).save(source / f"{number}.png")
        rows.append((f"{number}.png", mood, str(20 + number)))
    with (source / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    specs = parse_labels(["mood:category:calm,glad", "age:number:years"])
    adapter = FolderAdapter(str(source), Path("labels.csv"), file_column="file", specs=specs)
    out = str(tmp_path_factory.mktemp("set") / "people")
    build(adapter, out, BuildSettings(dataset="people", splits={"train": 1.0}, shard_samples=5))
    return out


def mood_of(colour: Picture) -> str:
    red, green, blue = (int(part) for part in colour)
    return "nothing" if green > 200 else "calm" if red > blue else "glad"


def moods(picture: Picture, count: int) -> list[str]:
    """What the middle of each tile's picture shows."""
    height = picture.shape[0] // -(-count // sheet.COLUMNS)
    places = [divmod(number, sheet.COLUMNS) for number in range(count)]
    middle = MARGIN + PICTURE // 2
    return [mood_of(picture[row * height + middle, column * TILE + middle]) for row, column in places]


def test_every_picture_is_on_it_and_those_of_a_class_are_side_by_side(url: str) -> None:
    picture = contact_sheet(url, "train", samples=100)
    assert picture.shape == (2 * (TILE + 3 * sheet.LINE), 8 * TILE, 3)
    assert moods(picture, 12) == ["calm"] * 6 + ["glad"] * 6


def test_a_label_is_written_below_its_picture(url: str) -> None:
    picture = contact_sheet(url, "train", samples=100)
    line = MARGIN + PICTURE + sheet.LINE  # the second: the class
    calm, glad = (picture[line : line + sheet.LINE, column * TILE : (column + 1) * TILE] for column in (0, 7))
    assert calm.min() < 60
    assert not np.array_equal(calm, glad)


def test_the_seed_decides_which_are_drawn(url: str) -> None:
    one, again, other = (contact_sheet(url, "train", samples=5, seed=seed) for seed in (1, 1, 2))
    assert one.shape[1] == 5 * TILE
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_picture_that_cannot_be_decoded_is_a_frame_and_no_end(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(data: bytes, min_side: int) -> Picture:
        picture = np.asarray(Image.open(io.BytesIO(data)))
        if mood_of(picture[0, 0]) == "glad":
            raise sheet.DecodeError("cut short")
        return picture

    monkeypatch.setattr(sheet, "decode", decode)
    assert moods(contact_sheet(url, "train", samples=12), 12) == ["calm"] * 6 + ["nothing"] * 6


def test_a_long_key_keeps_its_ends() -> None:
    font = sheet.ImageFont.load_default(sheet.FONT_SIZE)
    fitted = sheet._fitting("a" * 100 + "b" * 100, font)  # pyright: ignore[reportPrivateUsage]
    assert (fitted[0], fitted[-1], "…" in fitted) == ("a", "b", True)
    assert font.getlength(fitted) <= PICTURE


def test_a_split_that_is_not_there_is_one_line(url: str) -> None:
    with pytest.raises(UserError, match="val"):
        contact_sheet(url, "val", samples=5)
