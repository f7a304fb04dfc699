"""Results as pictures and tables."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmtl_dist.tracking.jsonl import Journal
from hmtl_dist.tracking.plots import draw_learning_curves, read_curves, write_confusion_matrix

MATRIX = np.array([[8, 2], [1, 9]])


def test_a_confusion_matrix_is_a_table_of_counts_under_class_names(tmp_path: Path) -> None:
    table, _ = write_confusion_matrix(tmp_path / "new", "gender", MATRIX, ("female", "male"))
    with table.open(newline="") as file:
        assert list(csv.reader(file))[1:] == [["female", "8", "2"], ["male", "1", "9"]]


def test_a_confusion_matrix_is_a_picture_that_is_dark_where_classes_are_right(tmp_path: Path) -> None:
    _, path = write_confusion_matrix(tmp_path, "gender", MATRIX, ("female", "male"))
    picture = np.asarray(Image.open(path).convert("RGB"))
    blue = (picture[..., 2].astype(int) - picture[..., 0]) > 60
    rows, columns = np.nonzero(blue)
    assert np.corrcoef(rows, columns)[0, 1] > 0.5  # the diagonal


def test_classes_without_samples_are_drawn(tmp_path: Path) -> None:
    write_confusion_matrix(tmp_path, "gender", np.zeros((2, 2), np.int64), ("female", "male"))
    assert (tmp_path / "confusion_gender.png").exists()


def test_curves_hold_the_last_value_of_a_step_that_was_taken_twice(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for step, loss in ((1, 3.0), (2, 2.0), (3, 1.5), (2, 2.5), (3, 1.0)):
        journal.metrics({"loss": loss}, step)
    journal.close("FINISHED")
    assert read_curves(journal.path) == {"loss": [(1, 3.0), (2, 2.5), (3, 1.0)]}


FRAME = 400
"""Pixels of the width of a frame."""


@pytest.mark.parametrize(
    ("names", "frames"),
    [
        (("train/loss/age", "eval/age/loss"), 1),
        (("train/loss/age", "eval/age/loss", "train/loss/total"), 2),
        (("train/age/mae", "eval/age/mae", "eval/age/loss"), 2),
        (("eval/age/mae", "eval/age/group/gender/male/mae", "train/samples_per_second", "data/skipped"), 1),
    ],
)
def test_a_frame_is_of_what_training_and_evaluation_call_alike(names: tuple[str, ...], frames: int) -> None:
    picture = draw_learning_curves({name: [(1, 2.0), (2, 1.0)] for name in names})
    assert (picture.dtype, picture.shape[1:]) == (np.uint8, (FRAME * frames, 3))
