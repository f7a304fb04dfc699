"""300W-LP: faces of 300W turned to large poses by rendering (Zhu et al. 2016).

    300W_LP/AFW/AFW_134212_1_0.jpg and .mat, likewise HELEN, IBUG, LFPW; AFW_Flip and so on hold the mirrored ones

Angles and their signs: see posed.py. All renderings of a face, and their mirror images, form one group.
"""

import re
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

_PARTS = ("AFW", "HELEN", "IBUG", "LFPW")


class Options(Section):
    """How 300W-LP is read."""

    flipped: bool = True
    """Take the mirrored pictures too, as is usual; not needed where training mirrors pictures itself."""
    crop: bool = True
    """Cut faces out by the 68 landmarks."""
    margin: float = Limits(default=0.1, ge=0, le=2)
    """Added on every side of the face, as a share of its longer side."""


class W300Lp(OriginalsAdapter):
    """The renderings."""

    def __init__(self, source: Path, options: Options) -> None:
        super().__init__(source / "300W_LP" if (source / "300W_LP").is_dir() else source)
        if not any((self._root / part).is_dir() for part in _PARTS):
            raise UserError(f"{source} holds no 300W-LP: expected folders {', '.join(_PARTS)}; see docs/datasets.md")
        self._options = options

    @property
    @override
    def fields(self) -> Mapping[str, Field]:
        return POSE_FIELDS

    @property
    @override
    def group(self) -> str:
        return "face"

    @override
    def refs(self) -> Iterator[SampleRef | Rejected]:
        margin = self._options.margin if self._options.crop else None
        for part in _PARTS:
            for folder in (part, f"{part}_Flip") if self._options.flipped else (part,):
                for file in _stems(self._root / folder):
                    # AFW_134212_1_0 is rendering 0 of face 1 of picture 134212.
                    group = f"{part}/{re.sub(r'_[0-9]+$', '', file.stem)}"
                    yield posed_ref(self._root, file, "pt2d", margin, group)


def _stems(folder: Path) -> list[Path]:
    """The JPEGs of a folder, also those of which only the `.mat` file is there."""
    return sorted({path.with_suffix(".jpg") for ending in ("jpg", "mat") for path in folder.glob(f"[!.]*.{ending}")})


DATASET = DataSet(
    name="300w-lp",
    title="300W-LP (2016)",
    labels=("yaw", "pitch", "roll"),
    licence="research only, as 300W",
    url="http://www.cbsr.ia.ac.cn/users/xiangyuzhu/projects/3DDFA/main.htm",
    splits="train=0.95,val=0.05",
    group="face",
    options=Options,
    open=W300Lp,
)
