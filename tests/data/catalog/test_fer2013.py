"""FER2013 as a table and as folders."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmtl_dist.data.catalog.registry import open_data_set
from hmtl_dist.data.decode import decode
from hmtl_dist.errors import UserError
from tests.data.catalog.fabricate import FER_NAMES, fer2013, fer2013_folders
from tests.data.catalog.tools import NO_PICTURE, built, drawn, reasons, refs_of, rejected_of, write


def test_a_row_is_its_picture_label_and_split(tmp_path: Path) -> None:
    adapter = open_data_set("fer2013", fer2013(tmp_path))
    refs = refs_of("fer2013", tmp_path)
    assert [ref.labels["expression"] for ref in refs.values()] == list(FER_NAMES) * 3
    assert {ref.split for ref in refs.values()} == {"train", "val", "test"}
    grey = np.array(Image.open(io.BytesIO(drawn(4, side=48).jpeg)).convert("L"))
    np.testing.assert_array_equal(decode(adapter.load(refs["fer2013.csv:6"]))[..., 0], grey)


def test_broken_rows_are_named(tmp_path: Path) -> None:
    table = fer2013(tmp_path / "src") / "fer2013.csv"
    pixels = " ".join(["7"] * 2304)
    broken = [f"7,{pixels},Training", "3,1 2 3,Training", f"3,{pixels},Private", f"3,{pixels[:-1]}256,Training"]
    write(table, table.read_text() + "\n".join(broken) + "\n")
    found = reasons(built("fer2013", tmp_path / "src", tmp_path / "out"))
    assert found == {
        "fer2013.csv:23": "emotion is '7', not one of 0, 1, 2, 3, 4, 5, 6",
        "fer2013.csv:24": "the row does not hold 2304 grey levels from 0 to 255",
        "fer2013.csv:25": "Usage is 'Private', not one of Training, PublicTest, PrivateTest",
        "fer2013.csv:26": "the row does not hold 2304 grey levels from 0 to 255",
    }


def test_the_other_table_of_the_competition_is_read(tmp_path: Path) -> None:
    pixels = " ".join(["7"] * 2304)
    write(tmp_path / "icml_face_data.csv", f"emotion, Usage, pixels\r\n3,PublicTest,{pixels}\r\n")
    adapter = open_data_set("fer2013", tmp_path)
    ref = refs_of("fer2013", tmp_path)["icml_face_data.csv:2"]
    assert (ref.labels["expression"], ref.split) == ("happy", "val")
    assert decode(adapter.load(ref)).max() == 7


def test_folders_are_read(tmp_path: Path) -> None:
    source = fer2013_folders(tmp_path / "src")
    write(source / "train/bored/im0.jpg", NO_PICTURE)
    write(source / "train/happy/bad.jpg", NO_PICTURE)
    report = built("fer2013", source, tmp_path / "out")
    assert {split: header.num_samples for split, header in report.headers.items()} == {"train": 14, "test": 14}
    assert list(reasons(report)) == ["train/bored/im0.jpg", "train/happy/bad.jpg"]
    assert rejected_of("fer2013", source)["train/bored/im0.jpg"].startswith("the folder is 'bored', not one of ")


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "fer2013.csv", "emotion,Usage\n1,Training\n")
    with pytest.raises(UserError, match="has no column 'pixels': its columns are emotion, Usage"):
        refs_of("fer2013", tmp_path)
