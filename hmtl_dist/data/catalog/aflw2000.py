"""AFLW2000-3D: the first 2000 faces of AFLW with fitted pose, a test set of head pose (Zhu et al. 2016).

    AFLW2000/image00002.jpg and .mat

Angles and their signs: see posed.py. The usual measure leaves faces with an angle beyond 99 degrees out; they are kept
here, because that is the measure's business. Faces are cut by `pt3d_68` (`pt2d` has 21 points, -1 where one is hidden).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import Field as Limits
from typing_extensions import override

from hmtl_dist.config.base import Section
from hmtl_dist.data.catalog.originals import OriginalsAdapter
from hmtl_dist.data.catalog.posed import POSE_FIELDS, posed_ref
from hmtl_dist.data.catalog.registry import DataSet
from hmtl_dist.data.dataset.adapter import Rejected, SampleRef
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.errors import UserError


class Options(Section):
    """How AFLW2000-3D is read."""

    crop: bool = True
    """Cut faces out by the 68 landmarks."""
    margin: float = Limits(default=0.1, ge=0, le=2)
    """Added on every side of the face, as a share of its longer side."""


class Aflw2000(OriginalsAdapter):
    """The pictures."""

    def __init__(self, source: Path, options: Options) -> None:
        super().__init__(source / "AFLW2000" if (source / "AFLW2000").is_dir() else source)
        self._options = options
        if not any(self._root.glob("image*.mat")):
            raise UserError(f"{self._root} holds no AFLW2000-3D: expected image00002.mat and so on")

    @property
    @override
    def fields(self) -> Mapping[str, Field]:
        return POSE_FIELDS

    @override
    def refs(self) -> Iterator[SampleRef | Rejected]:
        margin = self._options.margin if self._options.crop else None
        files = {path.with_suffix(".jpg") for ending in ("jpg", "mat") for path in self._root.glob(f"image*.{ending}")}
        for file in sorted(files):
            yield posed_ref(self._root, file, "pt3d_68", margin, None)


DATASET = DataSet(
    name="aflw2000",
    title="AFLW2000-3D (2016)",
    labels=("yaw", "pitch", "roll"),
    licence="research only, as AFLW",
    url="http://www.cbsr.ia.ac.cn/users/xiangyuzhu/projects/3DDFA/main.htm",
    splits="test=1",
    options=Options,
    open=Aflw2000,
)
