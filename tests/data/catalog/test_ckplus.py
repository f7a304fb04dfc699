"""CK+: the last frames of labelled sequences, kept together by subject."""

import shutil
from pathlib import Path

import pytest

from hmtl_dist.data.catalog.registry import open_data_set
from hmtl_dist.data.dataset.index import open_index
from hmtl_dist.errors import UserError
from tests.data.catalog.fabricate import ckplus
from tests.data.catalog.tools import NO_PICTURE, built, reasons, refs_of, rejected_of, write


def test_the_last_three_frames_of_labelled_sequences_are_taken(tmp_path: Path) -> None:
    refs = refs_of("ckplus", ckplus(tmp_path, subjects=2, sequences=1))
    assert list(refs) == [
        f"S01{person}/001/S01{person}_001_0000000{frame}.png" for person in (0, 1) for frame in (3, 4, 5)
    ]
    assert [ref.labels["expression"] for ref in refs.values()] == ["anger"] * 3 + ["contempt"] * 3
    assert [ref.group for ref in refs.values()] == ["S010"] * 3 + ["S011"] * 3


def test_the_first_frame_may_serve_as_neutral(tmp_path: Path) -> None:
    source = ckplus(tmp_path, subjects=1, sequences=1)
    refs = refs_of("ckplus", source, "neutral=true", "frames=1")
    assert [ref.labels["expression"] for ref in refs.values()] == ["neutral", "anger"]
    assert "neutral" in open_data_set("ckplus", source, {"neutral": True}).fields["expression"].classes
    assert "neutral" not in open_data_set("ckplus", source).fields["expression"].classes


def test_a_subject_is_on_one_side_and_what_is_broken_is_named(tmp_path: Path) -> None:
    source = ckplus(tmp_path / "src", subjects=8, sequences=1)
    write(source / "cohn-kanade-images/S010/001/S010_001_00000005.png", NO_PICTURE)
    (source / "Landmarks/S011/001/S011_001_00000004_landmarks.txt").unlink()
    write(source / "Landmarks/S012/001/S012_001_00000004_landmarks.txt", "1 2\n")
    write(source / "Emotion/S013/001/S013_001_00000005_emotion.txt", "   9.0000000e+00\n")
    shutil.rmtree(source / "cohn-kanade-images/S014/001")
    report = built("ckplus", source, tmp_path / "out")
    assert reasons(report) == {
        "S010/001/S010_001_00000005.png": "no picture that can be decoded",
        "S011/001/S011_001_00000004.png": "the landmarks are missing",
        "S012/001/S012_001_00000004.png": "the file of landmarks does not hold 136 numbers",
        "S013/001": "emotion is '9.0000000e+00', not 1 to 7",
        "S014/001": "the sequence has a label and no pictures",
    }
    sides = [set(open_index(str(tmp_path / "out"), split).samples(0).group) for split in ("train", "val")]  # type: ignore[arg-type]
    assert not sides[0] & sides[1]


def test_without_landmarks_the_whole_frame_has_to_be_asked_for(tmp_path: Path) -> None:
    source = ckplus(tmp_path, subjects=1)
    shutil.rmtree(source / "Landmarks")
    with pytest.raises(UserError, match="give --no-crop"):
        open_data_set("ckplus", source)
    assert rejected_of("ckplus", source, "crop=false") == {}
