"""RAF-DB, basic expressions: faces from the web, each labelled by about forty people (Li et al. 2017).

In `basic/`, or the folder itself:

    EmoLabel/list_patition_label.txt                       `train_00001.jpg 5`
    Image/aligned/train_00001_aligned.jpg                  100 x 100 pixels
    Image/original/train_00001.jpg, Annotation/boundingbox/train_00001_boundingbox.txt     left, top, right, bottom
    Annotation/manual/train_00001_manu_attri.txt           five points, then gender, race and age; may be absent

Expressions are 1 surprise, 2 fear, 3 disgust, 4 happy, 5 sad, 6 anger, 7 neutral; gender 0 male, 1 female, 2 unsure;
race 0 Caucasian, 1 African-American, 2 Asian; age 0 to 4 for the bands in `AGE_BANDS`. The published splits are told by
the names.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field as Limits
from typing_extensions import override

from hmtl_dist.config.base import Section
from hmtl_dist.data.catalog.originals import (
    GENDER,
    OriginalsAdapter,
    code,
    expression_field,
    first_of,
    numbers,
    read_lines,
)
from hmtl_dist.data.catalog.registry import DataSet
from hmtl_dist.data.dataset.adapter import Box, Rejected, SampleRef
from hmtl_dist.data.dataset.schema import Field, LabelValue

AGE_BANDS = ("0-3", "4-19", "20-39", "40-69", "70+")
_RACES = ("Caucasian", "African-American", "Asian")
_NAMES = ("surprise", "fear", "disgust", "happy", "sad", "anger", "neutral")
_CODES: dict[str, str | None] = {str(number): name for number, name in enumerate(_NAMES, start=1)}
_ATTRIBUTES: dict[str, dict[str, str | None]] = {
    "gender": {"0": "male", "1": "female", "2": None},
    "race": {str(number): name for number, name in enumerate(_RACES)},
    "age_band": {str(number): name for number, name in enumerate(AGE_BANDS)},
}


class Options(Section):
    """How RAF-DB is read."""

    pictures: Literal["aligned", "original"] = "aligned"
    """The authors' aligned faces, or the originals cut by the published boxes."""
    margin: float = Limits(default=0.0, ge=0, le=2)
    """Added on every side of a box of an original, as a share of its longer side."""


class RafDb(OriginalsAdapter):
    """The basic expressions of RAF-DB."""

    def __init__(self, source: Path, options: Options) -> None:
        lists = ("EmoLabel/list_patition_label.txt", "basic/EmoLabel/list_patition_label.txt")
        self._list = first_of(source, *lists, what="RAF-DB")
        super().__init__(self._list.parents[1])
        self._options = options
        self._manual = self._root / "Annotation/manual"

    @property
    @override
    def fields(self) -> Mapping[str, Field]:
        fields = {"expression": expression_field(_NAMES)}
        if self._manual.is_dir():
            fields["gender"] = GENDER
            fields["race"] = Field(kind="category", classes=_RACES)
            fields["age_band"] = Field(kind="category", classes=AGE_BANDS)
        return fields

    @property
    @override
    def splits(self) -> tuple[str, ...]:
        return ("train", "test")

    @override
    def refs(self) -> Iterator[SampleRef | Rejected]:
        attributes = self._manual.is_dir()
        for line in read_lines(self._list):
            name, _, text = line.partition(" ")
            try:
                labels: dict[str, LabelValue] = {"expression": code(text.strip(), _CODES, "expression")}
                split, stem = name.partition("_")[0], Path(name).stem
                if split not in self.splits:
                    raise ValueError("the name begins with neither train_ nor test_")
                if attributes:
                    labels |= self._attributes(stem)
                if self._options.pictures == "aligned":
                    yield SampleRef(f"Image/aligned/{stem}_aligned.jpg", labels, split=split)
                else:
                    yield SampleRef(f"Image/original/{name}", labels, split=split, box=self._box(stem))
            except ValueError as error:
                yield Rejected(name, str(error))

    def _attributes(self, stem: str) -> dict[str, str | None]:
        """Gender, race and age: the last three lines; none where the file is missing or something else."""
        try:
            lines = (self._manual / f"{stem}_manu_attri.txt").read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError):
            return {}
        if len(lines) != 13:
            return {}
        texts = zip(_ATTRIBUTES.items(), lines[-3:], strict=True)
        return {name: codes.get(text) for (name, codes), text in texts}

    def _box(self, stem: str) -> Box:
        try:
            text = (self._root / f"Annotation/boundingbox/{stem}_boundingbox.txt").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise ValueError("the face box is missing") from None
        left, top, right, bottom = numbers(text, 4, "the file of the face box")[:4]
        return Box(left, top, right - left, bottom - top).grown(self._options.margin)


DATASET = DataSet(
    name="rafdb",
    title="RAF-DB, basic expressions (2017)",
    labels=("expression", "gender", "race", "age_band"),
    licence="non-commercial research only, on request",
    url="http://www.whdeng.cn/RAF/model1.html",
    splits="published",
    options=Options,
    open=RafDb,
)
