"""BIWI: rotations in the camera's frame to our angles, and heads cut out by the calibration."""

from pathlib import Path

import numpy as np
import pytest

from hmtl_dist.data.catalog.biwi import angles
from tests.data.catalog.fabricate import biwi, biwi_rotation
from tests.data.catalog.tools import NO_PICTURE, built, drawn, reasons, refs_of, rejected_of, stored, write

NOSE, ACROSS = np.array([0, 0, -1.0]), np.array([1.0, 0, 0])


def test_the_nose_goes_where_the_angles_say() -> None:
    """The camera's y points down, so that what goes up in the picture has a negative y."""
    right, up = biwi_rotation(20, 0, 0) @ NOSE, biwi_rotation(0, 15, 0) @ NOSE
    turned = biwi_rotation(0, 0, 10) @ ACROSS
    assert np.degrees(np.arctan2(right[0], -right[2])) == pytest.approx(20)
    assert np.degrees(np.arctan2(-up[1], -up[2])) == pytest.approx(15)
    assert np.degrees(np.arctan2(-turned[1], turned[0])) == pytest.approx(10)


def test_angles_are_taken_apart_as_scipy_composes_them() -> None:
    rng = np.random.default_rng(0)
    for yaw, pitch, roll in rng.uniform(-70, 70, (50, 3)):
        found = angles(biwi_rotation(yaw, pitch, roll))
        assert (found["yaw"], found["pitch"], found["roll"]) == pytest.approx((yaw, pitch, roll), abs=1e-3)


def test_both_recordings_of_a_person_are_one_group(tmp_path: Path) -> None:
    refs = refs_of("biwi", biwi(tmp_path))
    assert {name.partition("/")[0]: ref.group for name, ref in refs.items()} == {"01": "01", "03": "03", "15": "03"}
    face = drawn(0, side=256).face
    assert refs["01/frame_00003_rgb.png"].labels["yaw"] == pytest.approx(face.yaw, abs=1e-3)


def test_heads_are_cut_out_around_their_projected_middle(tmp_path: Path) -> None:
    ref = refs_of("biwi", biwi(tmp_path / "src"))["01/frame_00003_rgb.png"]
    assert ref.box is not None
    # By hand: R·(24.02, -5.9, 900) + t = (8.338, 13.423, 886.507) mm, at a focal length of 517.679 pixels.
    assert ref.box.width == pytest.approx(220 * 517.679 / 886.507, abs=0.1)
    assert ref.box.left + ref.box.width / 2 == pytest.approx(320 + 517.679 * 8.338 / 886.507, abs=0.1)
    assert ref.box.top + ref.box.height / 2 == pytest.approx(240.5 + 517.679 * 13.423 / 886.507, abs=0.1)
    built("biwi", tmp_path / "src", tmp_path / "out")
    assert stored(tmp_path / "out", "test")["frame_00003_rgb"].shape == (128, 128, 3)


def test_what_is_broken_is_named(tmp_path: Path) -> None:
    source = biwi(tmp_path / "src", frames=6)
    write(source / "hpdb/01/frame_00003_rgb.png", NO_PICTURE)
    (source / "hpdb/01/frame_00004_rgb.png").unlink()
    (source / "hpdb/01/frame_00005_pose.txt").unlink()
    write(source / "hpdb/01/frame_00006_pose.txt", "1 0 0\n0 1 0\n")
    write(source / "hpdb/15/rgb.cal", "517")
    found = reasons(built("biwi", source, tmp_path / "out"))
    assert {name: reason for name, reason in found.items() if name.startswith("01")} == {
        "01/frame_00003_rgb.png": "no picture that can be decoded",
        "01/frame_00004_rgb.png": "no such file",
        "01/frame_00005_rgb.png": "frame_00005_pose.txt is missing",
        "01/frame_00006_rgb.png": "frame_00006_pose.txt does not hold 12 numbers",
    }
    assert sum(reason.startswith("rgb.cal is missing or damaged") for reason in found.values()) == 6
    assert len(rejected_of("biwi", source, "crop=false")) == 2
