"""FER+: the expression that most of ten people saw."""

import csv
from pathlib import Path

import pytest

from hmtl_dist.errors import UserError
from tests.data.catalog.fabricate import ferplus
from tests.data.catalog.tools import refs_of, rejected_of, write_csv


def change(table: Path, row: int, *cells: object) -> None:
    with table.open(newline="") as file:
        rows = list(csv.reader(file))
    rows[row][-len(cells) :] = map(str, cells)
    write_csv(table, rows)


def test_the_majority_is_the_label(tmp_path: Path) -> None:
    refs = list(refs_of("ferplus", ferplus(tmp_path)).values())
    assert [ref.labels["expression"] for ref in refs][:8] == [
        *("neutral", "happy", "surprise", "sad", "anger", "disgust", "fear", "contempt")
    ]
    assert {ref.split for ref in refs} == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("votes", "reason"),
    [
        ((5, 5, 0, 0, 0, 0, 0, 0, 0, 0), "no expression has most of the votes"),
        ((1, 0, 0, 0, 0, 0, 0, 0, 0, 9), "most votes are for NF"),
        ((0, 0, 0, 0, 0, 0, 0, 2, 8, 0), "most votes are for unknown"),
        ((1, 1, 1, 1, 1, 1, 1, 1, 1, 1), "no expression has most of the votes"),
        (("x", 0, 0, 0, 0, 0, 0, 0, 0, 9), "votes for neutral is 'x', not a number"),
    ],
)
def test_without_a_majority_a_picture_is_left_out(tmp_path: Path, votes: tuple[object, ...], reason: str) -> None:
    change(ferplus(tmp_path) / "fer2013new.csv", 3, *votes)
    assert rejected_of("ferplus", tmp_path) == {"fer2013.csv:4": reason}


def test_single_votes_do_not_count(tmp_path: Path) -> None:
    change(ferplus(tmp_path) / "fer2013new.csv", 3, 0, 5, 1, 1, 1, 1, 1, 0, 0, 0)
    assert refs_of("ferplus", tmp_path)["fer2013.csv:4"].labels == {"expression": "happy"}


def test_votes_of_other_pictures_are_refused(tmp_path: Path) -> None:
    table = ferplus(tmp_path) / "fer2013new.csv"
    table.write_text(table.read_text().rpartition("PrivateTest")[0])
    with pytest.raises(UserError, match="row by row"):
        refs_of("ferplus", tmp_path)
