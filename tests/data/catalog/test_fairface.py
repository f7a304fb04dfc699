"""FairFace: two tables beside two folders."""

import shutil
from pathlib import Path

from tests.data.catalog.fabricate import fairface
from tests.data.catalog.tools import NO_PICTURE, built, reasons, refs_of, write


def test_rows_are_labels(tmp_path: Path) -> None:
    refs = refs_of("fairface", fairface(tmp_path))
    assert refs["train/1.jpg"].labels == {"gender": "male", "race": "East Asian", "age_band": "20-29"}
    assert refs["val/2.jpg"].labels == {"gender": "female", "race": "Latino_Hispanic", "age_band": "more than 70"}


def test_what_is_broken_is_named(tmp_path: Path) -> None:
    source = fairface(tmp_path / "src")
    table = source / "fairface_label_train.csv"
    rows = ["train/90.jpg,20-29,Male,White,True", "train/91.jpg,21,Male,White,True", "train/92.jpg,3-9,Man,White,True"]
    write(table, table.read_text() + "\n".join([*rows, "../x.jpg,3-9,Male,White,False", "train/93.jpg"]))
    write(source / "val/1.jpg", NO_PICTURE)
    shutil.copy(source / "val/2.jpg", source / "train/1.jpg")
    found = reasons(built("fairface", source, tmp_path / "out"))
    assert found.pop("train/91.jpg").startswith("age is '21', not one of 0-2, ")
    assert found.pop("train/93.jpg").startswith("gender is '', not one of Female, Male")
    assert found == {
        "train/90.jpg": "no such file",
        "train/92.jpg": "gender is 'Man', not one of Female, Male",
        "../x.jpg": "the path leads out of the folder",
        "val/1.jpg": "no picture that can be decoded",
        "train/1.jpg": "the same picture as val/2.jpg in val, which has other labels",
    }
