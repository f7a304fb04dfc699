"""CelebA: attributes, identities and the published partition."""

from pathlib import Path

import pytest

from hmtl_dist.errors import UserError
from tests.data.catalog.fabricate import celeba
from tests.data.catalog.tools import NO_PICTURE, built, drawn, reasons, refs_of, rejected_of, stored, write


def test_lines_are_labels_person_and_split(tmp_path: Path) -> None:
    refs = refs_of("celeba", celeba(tmp_path))
    assert refs["000002.jpg"].labels == {"gender": "male", "smile": "no"}
    assert refs["000001.jpg"].labels["gender"] == "female"
    assert [ref.group for ref in refs.values()] == [f"{2880 + n // 3}" for n in range(12)]
    assert [ref.split for ref in refs.values()] == ["train"] * 3 + ["val"] * 3 + ["test"] * 6


def test_what_is_broken_is_named(tmp_path: Path) -> None:
    source = celeba(tmp_path / "src")
    write(source / "Img/img_align_celeba/000001.jpg", NO_PICTURE)
    (source / "Img/img_align_celeba/000002.jpg").unlink()
    for name, old, new in (
        ("Anno/list_attr_celeba.txt", "000004.jpg -1  1", "000004.jpg -1  2"),
        ("Anno/list_attr_celeba.txt", "000005.jpg -1", "000005.jpg"),
        ("Anno/identity_CelebA.txt", "000006.jpg 2881\n", ""),
        ("Eval/list_eval_partition.txt", "000007.jpg 2", "000007.jpg 3"),
        ("Anno/list_bbox_celeba.txt", "000008.jpg", "000088.jpg"),
    ):
        text = (source / name).read_text()
        assert old in text
        write(source / name, text.replace(old, new))
    found = reasons(built("celeba", source, tmp_path / "out"))
    assert found == {
        "000001.jpg": "no picture that can be decoded",
        "000002.jpg": "no such file",
        "000004.jpg": "Male is '2', not one of 1, -1",
        "000005.jpg": "the line has 3 attributes, not 4",
        "000006.jpg": "the identity is missing",
        "000007.jpg": "the partition is '3', not one of 0, 1, 2",
    }
    assert rejected_of("celeba", source, "pictures=original")["000008.jpg"] == "the face box is missing"


def test_originals_are_cut_by_their_boxes(tmp_path: Path) -> None:
    built("celeba", celeba(tmp_path / "src"), tmp_path / "out", "pictures=original")
    width = drawn(0, side=128).box[2]
    assert stored(tmp_path / "out", "train")["000001"].shape == (width, width, 3)


def test_a_table_without_the_attributes_is_refused(tmp_path: Path) -> None:
    write(celeba(tmp_path) / "Anno/list_attr_celeba.txt", "1\nBald Young\n000001.jpg 1 1\n")
    with pytest.raises(UserError, match="names no attribute 'Male'"):
        refs_of("celeba", tmp_path)
