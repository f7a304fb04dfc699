"""AffectNet in both of its published layouts."""

from pathlib import Path

import pytest

from hmtl_dist.data.catalog.registry import open_data_set
from hmtl_dist.errors import UserError
from tests.data.catalog.fabricate import affectnet_2017, affectnet_2021
from tests.data.catalog.tools import built, drawn, reasons, refs_of, rejected_of, stored


def test_the_tables_of_2017_are_read_with_and_without_a_header_line(tmp_path: Path) -> None:
    refs = refs_of("affectnet", affectnet_2017(tmp_path, 8, 8))
    assert [ref.split for ref in refs.values()] == ["train"] * 8 + ["val"] * 8
    assert [ref.labels["expression"] for ref in refs.values()][:3] == ["neutral", "happy", "sad"]
    assert refs["2/00000001.jpg"].labels == {"expression": "happy", "valence": -0.275, "arousal": 0.375}


def test_the_published_splits_are_kept_and_what_is_broken_is_named(tmp_path: Path) -> None:
    report = built("affectnet", affectnet_2017(tmp_path / "src", 16, 8, broken=True), tmp_path / "out")
    assert {split: header.num_samples for split, header in report.headers.items()} == {"train": 16, "val": 8}
    assert report.headers["val"].label_counts["expression"] == [1] * 8
    found = reasons(report)
    assert set(found) == {
        "../training.csv",
        *(f"9/{name}.jpg" for name in ("missing", "text", "none", "code", "nobox", "outside", "affect", "twice")),
    }
    assert found["9/missing.jpg"] == "no such file"
    assert found["9/text.jpg"] == "no picture that can be decoded"
    assert found["9/none.jpg"] == "the expression is none, none of the 8 that are kept"
    assert found["9/code.jpg"].startswith("expression is '11', not one of 0, 1, ")
    assert found["9/nobox.jpg"] == "the face box is missing"
    assert found["9/outside.jpg"] == "the face box 500, 10, 60 x 60 does not fit the picture of 96 x 96 pixels"
    assert found["9/affect.jpg"] == "valence is '3', not -1 to 1 (or -2 for none)"
    assert found["9/twice.jpg"] == "the same picture as 3/00000010.jpg in val"
    assert found["../training.csv"] == "the path leads out of the folder"


def test_faces_are_cut_out_by_their_boxes(tmp_path: Path) -> None:
    source = affectnet_2017(tmp_path / "src", 8, 8)
    built("affectnet", source, tmp_path / "tight")
    built("affectnet", source, tmp_path / "wide", "margin=0.25")
    built("affectnet", source, tmp_path / "whole", "crop=false")
    width = drawn(0, "neutral").box[2]
    assert stored(tmp_path / "tight", "train")["00000000"].shape == (width, width, 3)
    assert abs(stored(tmp_path / "wide", "train")["00000000"].shape[0] - 1.5 * width) <= 1
    assert stored(tmp_path / "whole", "train")["00000000"].shape == (96, 96, 3)


def test_seven_expressions_leave_contempt_out(tmp_path: Path) -> None:
    adapter = open_data_set("affectnet", affectnet_2017(tmp_path, 8, 0), {"expressions": 7})
    assert "contempt" not in adapter.fields["expression"].classes
    assert rejected_of("affectnet", tmp_path, "expressions=7") == {
        "1/00000007.jpg": "the expression is contempt, none of the 7 that are kept"
    }


def test_the_numpy_files_of_2021_are_read(tmp_path: Path) -> None:
    source = affectnet_2021(tmp_path / "src", 16, 8)
    (source / "train_set/annotations/3_val.npy").unlink()
    (source / "train_set/images/4.jpg").unlink()
    (source / "train_set/annotations/5_exp.npy").write_bytes(b"cut")
    report = built("affectnet", source, tmp_path / "out")
    assert {split: header.num_samples for split, header in report.headers.items()} == {"train": 13, "val": 8}
    assert reasons(report) == {
        "train_set/images/3.jpg": "3_val.npy is missing or holds no single value",
        "train_set/images/4.jpg": "no such file",
        "train_set/images/5.jpg": "5_exp.npy is missing or holds no single value",
    }
    assert refs_of("affectnet", source)["train_set/images/2.jpg"].labels == {
        "expression": "sad",
        "valence": -0.15,
        "arousal": None,
    }


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no AffectNet"):
        open_data_set("affectnet", tmp_path)
