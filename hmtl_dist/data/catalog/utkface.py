"""UTKFace: faces from the web with age, gender and race in their names (Zhang et al. 2017).

    UTKFace/[age]_[gender]_[race]_[date and time].jpg.chip.jpg     aligned and cut; or .jpg in part1, part2, part3

Age is 0 to 116 years; gender 0 male, 1 female; race 0 White, 1 Black, 2 Asian, 3 Indian, 4 others. A few published
names lack a part; these are left out. Nothing is said of who is in a picture.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from typing_extensions import override

from hmtl_dist.data.catalog.originals import AGE, GENDER, OriginalsAdapter, pictures_under
from hmtl_dist.data.catalog.registry import DataSet, NoOptions
from hmtl_dist.data.dataset.adapter import Rejected, SampleRef
from hmtl_dist.data.dataset.schema import Field

_RACES = ("White", "Black", "Asian", "Indian", "other")
_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_\d+\.", re.ASCII)
_OLDEST = 116


class UtkFace(OriginalsAdapter):
    """All pictures under the folder."""

    def __init__(self, source: Path, _: NoOptions) -> None:
        super().__init__(source / "UTKFace" if (source / "UTKFace").is_dir() else source)

    @property
    @override
    def fields(self) -> Mapping[str, Field]:
        return {"age": AGE, "gender": GENDER, "race": Field(kind="category", classes=_RACES)}

    @override
    def refs(self) -> Iterator[SampleRef | Rejected]:
        for file in pictures_under(self._root):
            name = file.relative_to(self._root).as_posix()
            found = _NAME.match(file.name)
            if found is None:
                yield Rejected(name, "the name does not begin with AGE_GENDER_RACE_DATE")
                continue
            age, gender, race = map(int, found.groups())
            if age > _OLDEST:
                yield Rejected(name, f"age is {age}, not 0 to {_OLDEST}")
                continue
            yield SampleRef(name, {"age": float(age), "gender": ("male", "female")[gender], "race": _RACES[race]})


DATASET = DataSet(
    name="utkface",
    title="UTKFace (2017)",
    labels=("age", "gender", "race"),
    licence="non-commercial research only",
    url="https://susanqq.github.io/UTKFace/",
    splits="train=0.8,val=0.2",
    open=UtkFace,
)
