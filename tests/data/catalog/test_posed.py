"""300W-LP and AFLW2000-3D: the sense of their angles, and their two layouts."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hmtl_dist.data.catalog.posed import posed_ref
from hmtl_dist.data.dataset.adapter import SampleRef
from tests.data.catalog.fabricate import aflw2000, w300lp, write_mat
from tests.data.catalog.tools import NO_PICTURE, built, drawn, reasons, refs_of, rejected_of, write


def authors_rotation(pitch: float, yaw: float, roll: float) -> NDArray[np.float64]:
    """R = Rx Ry Rz as the authors compose it (3DDFA, RotationMatrix.m), in radians; x right, y up, z to the viewer."""
    (cx, cy, cz), (sx, sy, sz) = np.cos([pitch, yaw, roll]), np.sin([pitch, yaw, roll])
    turn_x = np.array([[1, 0, 0], [0, cx, sx], [0, -sx, cx]])
    turn_y = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    turn_z = np.array([[cz, sz, 0], [-sz, cz, 0], [0, 0, 1]])
    return turn_x @ turn_y @ turn_z


def labels_of(folder: Path, pose: tuple[float, float, float]) -> dict[str, float]:
    write_mat(folder / "x.mat", {"Pose_Para": np.array([[*pose, 0.0, 0.0, 0.0, 1.0]])})
    ref = posed_ref(folder, folder / "x.jpg", "pt2d", None, None)
    assert isinstance(ref, SampleRef)
    return {name: float(value) for name, value in ref.labels.items() if value is not None}


def test_yaw_is_positive_where_the_nose_goes_right(tmp_path: Path) -> None:
    pose = (0.0, 0.3, 0.0)
    nose = authors_rotation(*pose) @ [0, 0, 1]
    yaw = labels_of(tmp_path, pose)["yaw"]
    assert yaw == pytest.approx(np.degrees(np.arctan2(nose[0], nose[2])), abs=1e-3)
    assert yaw < 0


def test_pitch_is_positive_where_the_nose_goes_up(tmp_path: Path) -> None:
    pose = (0.2, 0.0, 0.0)
    nose = authors_rotation(*pose) @ [0, 0, 1]
    pitch = labels_of(tmp_path, pose)["pitch"]
    assert pitch == pytest.approx(np.degrees(np.arctan2(nose[1], nose[2])), abs=1e-3)
    assert pitch > 0


def test_roll_is_positive_where_the_head_turns_counter_clockwise(tmp_path: Path) -> None:
    pose = (0.0, 0.0, 0.25)
    across = authors_rotation(*pose) @ [1, 0, 0]
    roll = labels_of(tmp_path, pose)["roll"]
    assert roll == pytest.approx(np.degrees(np.arctan2(across[1], across[0])), abs=1e-3)
    assert roll < 0


def test_faces_of_300w_lp_are_grouped_with_their_renderings_and_mirror_images(tmp_path: Path) -> None:
    refs = refs_of("300w-lp", w300lp(tmp_path))
    assert len(refs) == 24
    groups = {ref.group: [name for name in refs if refs[name].group == ref.group] for ref in refs.values()}
    assert groups["AFW/AFW_10_1"] == [f"AFW{flip}/AFW_10_1_{n}.jpg" for flip in ("", "_Flip") for n in (0, 1)]
    assert len(refs_of("300w-lp", tmp_path, "flipped=false")) == 12


def test_angles_come_back_as_drawn(tmp_path: Path) -> None:
    for name, tree, first in (("300w-lp", w300lp, "AFW/AFW_10_1_0.jpg"), ("aflw2000", aflw2000, "image00002.jpg")):
        face = drawn(0).face
        labels = refs_of(name, tree(tmp_path / name))[first].labels
        assert labels == {"yaw": round(face.yaw, 4), "pitch": round(face.pitch, 4), "roll": round(face.roll, 4)}


def test_what_is_broken_is_named(tmp_path: Path) -> None:
    source = aflw2000(tmp_path / "src", 9)
    folder = source / "AFLW2000"
    write(folder / "image00002.jpg", NO_PICTURE)
    (folder / "image00003.jpg").unlink()
    (folder / "image00004.mat").unlink()
    write(folder / "image00005.mat", b"MATLAB 5.0 MAT-file, cut")
    write_mat(folder / "image00006.mat", {"pt3d_68": np.ones((3, 68))})
    write_mat(folder / "image00007.mat", {"Pose_Para": np.full((1, 7), np.nan), "pt3d_68": np.ones((3, 68))})
    write_mat(folder / "image00008.mat", {"Pose_Para": np.zeros((1, 7))})
    assert reasons(built("aflw2000", source, tmp_path / "out")) == {
        "image00002.jpg": "no picture that can be decoded",
        "image00003.jpg": "no such file",
        "image00004.jpg": "image00004.mat is missing",
        "image00005.jpg": "image00005.mat is no MATLAB file that can be read",
        "image00006.jpg": "Pose_Para is missing",
        "image00007.jpg": "Pose_Para is not finite",
        "image00008.jpg": "the landmarks pt3d_68 are missing",
    }
    assert "image00008.jpg" not in rejected_of("aflw2000", source, "crop=false")
