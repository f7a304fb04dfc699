"""Results as pictures and tables."""

import csv
from pathlib import Path

import numpy as np
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


def test_curves_become_one_picture() -> None:
    picture = draw_learning_curves({f"loss/{i}": [(1, 2.0), (2, 1.0)] for i in range(4)})
    assert (picture.dtype, picture.ndim, picture.shape[2]) == (np.uint8, 3, 3)
