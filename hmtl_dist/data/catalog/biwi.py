"""BIWI Kinect Head Pose: people turning their heads before a depth camera (Fanelli et al. 2013).

    hpdb/01/frame_00003_rgb.png
    hpdb/01/frame_00003_pose.txt     3 x 3 rotation R, then the middle of the head in mm, in the depth camera's frame
    hpdb/01/rgb.cal                  intrinsics, distortion, then rotation and translation from depth to colour camera

The camera's x points to the right of the picture, y down and z away from the viewer, and R is close to the identity for
a face that looks into the camera; its nose points along -R (0, 0, 1). The usual angles (Ruiz et al. 2018) count yaw to
the left of the picture and roll clockwise. In our convention (yaw positive to the right edge of the picture, pitch up,
roll counter-clockwise), in degrees:

    yaw = -atan2(R13, sqrt(R23² + R33²)),  pitch = atan2(R23, R33),  roll = atan2(R12, R11).

The 24 sequences show 20 people: four were recorded twice. Faces are cut out as a square of a set size in mm around the
projected middle of the head; the published boxes are none.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field as Limits
from typing_extensions import override

from hmtl_dist.config.base import Section
from hmtl_dist.data.catalog.originals import OriginalsAdapter, first_of, numbers
from hmtl_dist.data.catalog.posed import POSE_FIELDS
from hmtl_dist.data.catalog.registry import DataSet
from hmtl_dist.data.dataset.adapter import Box, Rejected, SampleRef
from hmtl_dist.data.dataset.schema import Field

_TWICE = {"15": "03", "18": "05", "21": "02", "22": "07"}
"""Second recordings, by the first one of the same person."""


class Options(Section):
    """How BIWI is read."""

    crop: bool = True
    """Cut a square around the head."""
    crop_mm: float = Limits(default=220.0, gt=0)
    """Side of that square in mm, at the distance of the head."""


class Biwi(OriginalsAdapter):
    """The colour pictures."""

    def __init__(self, source: Path, options: Options) -> None:
        super().__init__(first_of(source, "hpdb/01", "01", "faces_0/01", what="BIWI").parent)
        self._options = options

    @property
    @override
    def fields(self) -> Mapping[str, Field]:
        return POSE_FIELDS

    @property
    @override
    def group(self) -> str:
        return "subject"

    @override
    def refs(self) -> Iterator[SampleRef | Rejected]:
        for folder in sorted(path for path in self._root.glob("[0-9][0-9]") if path.is_dir()):
            stems = {
                path.name.removesuffix(ending)
                for ending in ("_rgb.png", "_pose.txt")
                for path in folder.glob(f"frame_*{ending}")
            }
            camera = _camera(folder / "rgb.cal") if self._options.crop else None
            for stem in sorted(stems):
                name = f"{folder.name}/{stem}_rgb.png"
                try:
                    pose = _pose(folder / f"{stem}_pose.txt")
                    box = self._box(camera, pose[9:12]) if self._options.crop else None
                    group = _TWICE.get(folder.name, folder.name)
                    yield SampleRef(name, angles(pose[:9].reshape(3, 3)), group, box=box)
                except ValueError as error:
                    yield Rejected(name, str(error))

    def _box(self, camera: NDArray[np.float64] | None, head: NDArray[np.float64]) -> Box:
        if camera is None:
            raise ValueError("rgb.cal is missing or damaged: there is no telling where the head is")
        focal_x, middle_x, focal_y, middle_y = camera[[0, 2, 4, 5]]
        x, y, z = camera[13:22].reshape(3, 3) @ head + camera[22:25]
        if z <= 0:
            raise ValueError("the head is behind the camera")
        width, height = self._options.crop_mm * focal_x / z, self._options.crop_mm * focal_y / z
        left, top = middle_x + focal_x * x / z - width / 2, middle_y + focal_y * y / z - height / 2
        return Box(float(left), float(top), float(width), float(height))


def angles(rotation: NDArray[np.float64]) -> dict[str, float]:
    """Yaw, pitch and roll in degrees, in our convention, of a published rotation [3, 3]."""
    yaw = -math.atan2(rotation[0, 2], math.hypot(rotation[1, 2], rotation[2, 2]))
    pitch = math.atan2(rotation[1, 2], rotation[2, 2])
    roll = math.atan2(rotation[0, 1], rotation[0, 0])
    return {name: round(math.degrees(value), 4) for name, value in (("yaw", yaw), ("pitch", pitch), ("roll", roll))}


def _pose(file: Path) -> NDArray[np.float64]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"{file.name} is missing") from None
    return np.array(numbers(text, 12, file.name)[:12])


def _camera(file: Path) -> NDArray[np.float64] | None:
    """Intrinsics (9 numbers), distortion (4), rotation (9) and translation (3)."""
    try:
        return np.array(numbers(file.read_text(encoding="utf-8"), 25, file.name)[:25])
    except (OSError, UnicodeDecodeError, ValueError):
        return None


DATASET = DataSet(
    name="biwi",
    title="BIWI Kinect Head Pose (2013)",
    labels=("yaw", "pitch", "roll"),
    licence="non-commercial research and education only",
    url="https://icu.ee.ethz.ch/research/datsets.html",
    splits="test=1",
    group="subject",
    options=Options,
    open=Biwi,
)
