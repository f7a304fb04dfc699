"""Folders of classes, with and without folders of splits."""

from pathlib import Path

import pytest

from hmtl_dist.data.catalog.registry import open_data_set
from hmtl_dist.errors import UserError
from tests.data.catalog.fabricate import imagefolder
from tests.data.catalog.tools import NO_PICTURE, drawn, refs_of, write


def test_folders_are_splits_and_classes(tmp_path: Path) -> None:
    adapter = open_data_set("imagefolder", imagefolder(tmp_path), ["label=mood"])
    assert adapter.splits == ("train", "val")
    assert adapter.fields["mood"].classes == ("calm", "glad")
    ref = refs_of("imagefolder", tmp_path, "label=mood")["valid/glad/3.jpg"]
    assert (ref.labels, ref.split) == ({"mood": "glad"}, "val")


def test_without_folders_of_splits_nothing_is_published(tmp_path: Path) -> None:
    adapter = open_data_set("imagefolder", imagefolder(tmp_path, ()))
    assert adapter.splits == ()
    assert {ref.split for ref in refs_of("imagefolder", tmp_path).values()} == {None}


def test_only_pictures_are_taken_also_from_deeper_folders(tmp_path: Path) -> None:
    source = imagefolder(tmp_path, ())
    write(source / "calm/notes.txt", NO_PICTURE)
    write(source / "calm/deep/er/9.PNG", drawn(9).jpeg)
    names = set(refs_of("imagefolder", source))
    assert "calm/deep/er/9.PNG" in names
    assert "calm/notes.txt" not in names


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "people/1.jpg", drawn(1).jpeg)
    with pytest.raises(UserError, match="holds the one class 'people': expected a folder for each of several"):
        open_data_set("imagefolder", tmp_path)
