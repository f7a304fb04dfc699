"""GENKI-4K: line n of the labels belongs to picture n."""

from pathlib import Path

import pytest

from tests.data.catalog.fabricate import genki4k
from tests.data.catalog.tools import NO_PICTURE, built, reasons, refs_of, rejected_of, write


def test_lines_are_labels(tmp_path: Path) -> None:
    refs = refs_of("genki4k", genki4k(tmp_path))
    assert refs["files/file0002.jpg"].labels == {"smile": "yes"}
    assert refs["files/file0003.jpg"].labels == {"smile": "no"}


def test_angles_come_in_degrees_when_asked_for(tmp_path: Path) -> None:
    labels = refs_of("genki4k", genki4k(tmp_path), "pose=true")["files/file0002.jpg"].labels
    assert labels["yaw"] == pytest.approx(5.7296)
    assert labels["pitch"] == pytest.approx(-5.7296)


def test_what_is_broken_is_named(tmp_path: Path) -> None:
    source = genki4k(tmp_path / "src")
    table = source / "labels.txt"
    write(table, table.read_text() + "\n2 0 0 0\n1 0.1 x 0\n")
    write(source / "files/file0001.jpg", NO_PICTURE)
    assert reasons(built("genki4k", source, tmp_path / "out")) == {
        "files/file0011.jpg": "smile is '', not one of 0, 1",
        "files/file0012.jpg": "smile is '2', not one of 0, 1",
        "files/file0001.jpg": "no picture that can be decoded",
        "files/file0013.jpg": "no such file",
    }
    assert rejected_of("genki4k", source, "pose=true")["files/file0013.jpg"] == "the line does not hold 4 numbers"
