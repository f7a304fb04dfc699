"""One's own pictures: folders of classes, with and without folders of splits, and a table that names splits."""

from pathlib import Path

import pytest

from hmtl_dist.data.catalog.registry import open_data_set
from hmtl_dist.errors import UserError
from tests.data.catalog.fabricate import class_folders
from tests.data.catalog.tools import NO_PICTURE, built, drawn, opened, reasons, refs_of, rejected_of, write, write_csv


def test_folders_are_splits_and_classes(tmp_path: Path) -> None:
    adapter = opened("folder", class_folders(tmp_path), "label=[mood]")
    assert adapter.splits == ("train", "val")
    assert adapter.fields["mood"].classes == ("calm", "glad")
    ref = refs_of("folder", tmp_path, "label=[mood]")["valid/glad/3.jpg"]
    assert (ref.labels, ref.split) == ({"mood": "glad"}, "val")


def test_without_folders_of_splits_nothing_is_published(tmp_path: Path) -> None:
    adapter = open_data_set("folder", class_folders(tmp_path, ()))
    assert adapter.splits == ()
    assert {ref.split for ref in refs_of("folder", tmp_path).values()} == {None}


def test_only_pictures_are_taken_also_from_deeper_folders(tmp_path: Path) -> None:
    source = class_folders(tmp_path, ())
    write(source / "calm/notes.txt", NO_PICTURE)
    write(source / "calm/deep/er/9.PNG", drawn(9).jpeg)
    names = set(refs_of("folder", source))
    assert "calm/deep/er/9.PNG" in names
    assert "calm/notes.txt" not in names


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "people/1.jpg", drawn(1).jpeg)
    with pytest.raises(UserError, match="holds the one class 'people': expected a folder for each of several"):
        open_data_set("folder", tmp_path)


@pytest.mark.parametrize(("training", "checking"), [("train", "dev"), ("Training", "Validation"), ("TRAIN", "val")])
def test_splits_go_by_several_names(tmp_path: Path, training: str, checking: str) -> None:
    adapter = open_data_set("folder", class_folders(tmp_path, (training, checking)))
    assert adapter.splits == ("train", "val")
    assert {ref.split for ref in refs_of("folder", tmp_path).values()} == {"train", "val"}


def test_a_folder_beside_those_of_splits_is_named(tmp_path: Path) -> None:
    class_folders(tmp_path, ("train", "holdout"))
    with pytest.raises(UserError, match="folders of splits and, beside them, holdout: move what is no split"):
        open_data_set("folder", tmp_path)


@pytest.mark.parametrize(
    ("folders", "cause"),
    [
        (("val", "test"), "holds the splits test, val and none to train on: add train/ "),
        (("train", "val", "dev"), "holds dev and val, which are one split: put their pictures together"),
    ],
)
def test_folders_of_splits_that_make_no_data_set_are_refused(
    tmp_path: Path, folders: tuple[str, ...], cause: str
) -> None:
    with pytest.raises(UserError, match=cause):
        open_data_set("folder", class_folders(tmp_path, folders))


def test_a_loose_picture_with_a_name_that_is_no_text_is_told_too(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src", ("train", "val"))
    write(source / "\udcff.jpg", drawn(50).jpeg)
    assert reasons(built("folder", source, tmp_path / "out")) == {"?.jpg": "it lies in no folder of a class"}


def test_a_row_that_is_cut_short_names_no_split(tmp_path: Path) -> None:
    source = with_table(tmp_path, ["train", "val"])
    with (source / "labels.csv").open("a") as table:
        table.write("2.jpg,calm,a/b,more\n")
    assert opened("folder", source, *TABLE).splits == ("train", "val")


def test_a_picture_in_no_folder_of_a_class_is_told(tmp_path: Path) -> None:
    source = class_folders(tmp_path)
    write(source / "loose.jpg", drawn(50).jpeg)
    write(source / "train/looser.png", drawn(51).jpeg)
    reason = "it lies in no folder of a class"
    assert rejected_of("folder", source) == {"loose.jpg": reason, "train/looser.png": reason}


# --- with a table ---------------------------------------------------------------------------------------------------


def with_table(folder: Path, splits: list[str]) -> Path:
    rows = [["file", "mood", "usage"]]
    for number, split in enumerate(splits):
        write(folder / f"{number}.jpg", drawn(number).jpeg)
        rows.append([f"{number}.jpg", ("calm", "glad")[number % 2], split])
    write_csv(folder / "labels.csv", rows)
    return folder


TABLE = ("labels=labels.csv", "label=[mood]", "split_column=usage")


def test_a_column_tells_the_splits(tmp_path: Path) -> None:
    source = with_table(tmp_path / "src", ["train", "Train", "TRAIN", "valid", "Valid", "test", "hard-ones", "train"])
    adapter = opened("folder", source, *TABLE)
    assert adapter.splits == ("train", "val", "test", "hard-ones")
    found = built("folder", source, tmp_path / "out", *TABLE)
    counts = {name: header.num_samples for name, header in found.headers.items()}
    assert counts == {"train": 4, "val": 2, "test": 1, "hard-ones": 1}


def test_a_row_without_a_split_is_told(tmp_path: Path) -> None:
    source = with_table(tmp_path, ["train", "", "val"])
    assert rejected_of("folder", source, *TABLE) == {"1.jpg": "column usage is empty"}
    assert set(refs_of("folder", source, *TABLE)) == {"0.jpg", "2.jpg"}


@pytest.mark.parametrize(
    ("splits", "cause"),
    [
        (["", ""], "column 'usage' is empty in every row"),
        (["valid", "train", "val"], "column 'usage' has 'valid' and 'val', which are one split: call it val"),
        (["train", "a/b"], "column 'usage' has 'a/b': name splits with letters"),
        ([str(number) for number in range(30)], "column 'usage' has more than 20 different values"),
    ],
)
def test_a_column_that_holds_no_splits_is_refused(tmp_path: Path, splits: list[str], cause: str) -> None:
    with pytest.raises(UserError, match=cause):
        opened("folder", with_table(tmp_path, splits), *TABLE)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (["labels=labels.csv"], "no label is named"),
        (
            ["labels=labels.csv", "label=[mood]", "split_column=useage"],
            "has no column 'useage': its columns are file, mood",
        ),
        (["group=who"], "name columns of a CSV file: give it with --labels"),
        (["file_column=path"], "name columns of a CSV file: give it with --labels"),
        ([], "holds labels.csv: give it with --labels labels.csv, or move it elsewhere"),
        (["label=[mood, age]"], "without a CSV file it is the one name"),
        (["label=['age:number']"], "without a CSV file it is the one name"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path: Path, options: list[str], cause: str) -> None:
    with pytest.raises(UserError, match=cause):
        opened("folder", with_table(tmp_path, ["train"]), *options)
