"""What 300W-LP and AFLW2000-3D share: a `.mat` file beside each picture (Zhu et al. 2016).

`Pose_Para` begins with pitch, yaw and roll in radians. The authors compose R = Rx(pitch) Ry(yaw) Rz(roll), with

    Rx = [1 0 0; 0 c s; 0 -s c],  Ry = [c 0 -s; 0 1 0; s 0 c],  Rz = [c s 0; -s c 0; 0 0 1],

on a face whose x points to the right of the picture, y up, and whose nose points along z to the viewer. So the nose
goes to R (0, 0, 1): its x is -sin(yaw), and its y is sin(pitch) cos(yaw); and with a roll, x turns down. In our
convention (yaw positive to the right edge of the picture, pitch up, roll counter-clockwise) that is

    yaw = -yaw,  pitch = pitch,  roll = -roll,

in degrees. The order of the three turns stays the authors', as all published errors are in these angles.
"""

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl_dist.data.catalog.originals import DEGREES, landmark_box
from hmtl_dist.data.dataset.adapter import Rejected, SampleRef

POSE_FIELDS = {"yaw": DEGREES, "pitch": DEGREES, "roll": DEGREES}


def posed_ref(root: Path, picture: Path, points: str, margin: float | None, group: str | None) -> SampleRef | Rejected:
    """A picture with the pose of the `.mat` file beside it.

    Args:
        root: folder of the set.
        picture: its JPEG.
        points: entry of the `.mat` file that holds the landmarks [2 or 3, 68].
        margin: added on every side of the landmarks' box; None keeps the whole picture.
        group: whom it belongs to.
    """
    name = picture.relative_to(root).as_posix()
    try:
        entries = _read_mat(picture.with_suffix(".mat"))
        box = None if margin is None else landmark_box(_landmarks(entries, points)).grown(margin)
        return SampleRef(name, _angles(entries), group, box=box)
    except ValueError as error:
        return Rejected(name, str(error))


def _read_mat(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"{file.name} is missing")
    try:
        scipy_io: Any = importlib.import_module("scipy.io")  # publishes no types
        return dict(scipy_io.loadmat(str(file)))
    except Exception as error:  # the reader raises nearly anything on damaged bytes
        raise ValueError(f"{file.name} is no MATLAB file that can be read") from error


def _angles(entries: dict[str, Any]) -> dict[str, float]:
    values = np.asarray(entries.get("Pose_Para", ()))
    if values.size < 3 or not np.issubdtype(values.dtype, np.number):
        raise ValueError("Pose_Para is missing")
    pitch, yaw, roll = (math.degrees(float(value)) for value in values.ravel()[:3])
    if not all(map(math.isfinite, (pitch, yaw, roll))):
        raise ValueError("Pose_Para is not finite")
    return {"yaw": round(-yaw, 4), "pitch": round(pitch, 4), "roll": round(-roll, 4)}


def _landmarks(entries: dict[str, Any], points: str) -> NDArray[np.float64]:
    values = np.asarray(entries.get(points, ()))
    if values.ndim != 2 or values.shape[0] < 2 or not np.issubdtype(values.dtype, np.number) or not values.size:
        raise ValueError(f"the landmarks {points} are missing")
    found = values[:2].astype(np.float64).T
    if not np.all(np.isfinite(found)):
        raise ValueError(f"the landmarks {points} are not finite")
    return found
