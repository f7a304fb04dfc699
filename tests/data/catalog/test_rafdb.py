"""RAF-DB: aligned faces or cut originals, with attributes where they are there."""

from pathlib import Path

from hmtl_dist.data.catalog.registry import open_data_set
from tests.data.catalog.fabricate import rafdb
from tests.data.catalog.tools import NO_PICTURE, built, drawn, reasons, refs_of, rejected_of, stored, write


def test_labels_and_attributes_are_read(tmp_path: Path) -> None:
    refs = list(refs_of("rafdb", rafdb(tmp_path)).values())
    assert refs[1].labels == {"expression": "fear", "gender": "female", "race": "African-American", "age_band": "4-19"}
    assert refs[2].labels["gender"] is None
    assert [ref.split for ref in refs] == ["train"] * 14 + ["test"] * 7


def test_without_attributes_there_are_no_such_labels(tmp_path: Path) -> None:
    assert list(open_data_set("rafdb", rafdb(tmp_path, attributes=False)).fields) == ["expression"]


def test_what_is_broken_is_named(tmp_path: Path) -> None:
    source = rafdb(tmp_path / "src")
    table = source / "basic/EmoLabel/list_patition_label.txt"
    write(table, table.read_text() + "train_00099.jpg 1\ntrain_00098.jpg 8\nother_1.jpg 1\n")
    write(source / "basic/Image/aligned/train_00001_aligned.jpg", NO_PICTURE)
    write(source / "basic/Annotation/boundingbox/train_00002_boundingbox.txt", "1 2\n")
    assert reasons(built("rafdb", source, tmp_path / "out")) == {
        "train_00098.jpg": "expression is '8', not one of 1, 2, 3, 4, 5, 6, 7",
        "other_1.jpg": "the name begins with neither train_ nor test_",
        "Image/aligned/train_00001_aligned.jpg": "no picture that can be decoded",
        "Image/aligned/train_00099_aligned.jpg": "no such file",
    }
    assert rejected_of("rafdb", source, "pictures=original") == {
        "train_00002.jpg": "the file of the face box does not hold 4 numbers",
        "train_00098.jpg": "expression is '8', not one of 1, 2, 3, 4, 5, 6, 7",
        "train_00099.jpg": "the face box is missing",
        "other_1.jpg": "the name begins with neither train_ nor test_",
    }


def test_originals_are_cut_by_their_boxes(tmp_path: Path) -> None:
    built("rafdb", rafdb(tmp_path / "src"), tmp_path / "out", "pictures=original")
    width = drawn(0, side=128).box[2]
    assert stored(tmp_path / "out", "train")["train_00001"].shape == (width, width, 3)
