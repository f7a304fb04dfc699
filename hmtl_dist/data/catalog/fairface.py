"""FairFace: faces balanced by race, with gender and age band (Karkkainen and Joo 2021).

    fairface_label_train.csv, fairface_label_val.csv      file,age,gender,race,service_test; file is `train/1.jpg`
    train/*.jpg, val/*.jpg                                also in fairface-img-margin025-trainval/ (or margin125)

Pictures are faces already, with the margin that was downloaded. Nothing is said of who is in a picture.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from typing_extensions import override

from hmtl_dist.data.catalog.originals import GENDER, OriginalsAdapter, code, first_of, read_csv
from hmtl_dist.data.catalog.registry import DataSet, NoOptions
from hmtl_dist.data.dataset.adapter import Rejected, SampleRef
from hmtl_dist.data.dataset.schema import Field

_BANDS = ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70")
_RACES = ("Black", "East Asian", "Indian", "Latino_Hispanic", "Middle Eastern", "Southeast Asian", "White")
_GENDERS: dict[str, str | None] = {"Female": "female", "Male": "male"}


class FairFace(OriginalsAdapter):
    """The pictures of both tables."""

    def __init__(self, source: Path, _: NoOptions) -> None:
        self._tables = {
            split: first_of(source, f"fairface_label_{split}.csv", what="FairFace") for split in ("train", "val")
        }
        places = ("train", "fairface-img-margin025-trainval/train", "fairface-img-margin125-trainval/train")
        super().__init__(first_of(source, *places, what="pictures of FairFace").parent)

    @property
    @override
    def fields(self) -> Mapping[str, Field]:
        return {
            "gender": GENDER,
            "race": Field(kind="category", classes=_RACES),
            "age_band": Field(kind="category", classes=_BANDS),
        }

    @property
    @override
    def splits(self) -> tuple[str, ...]:
        return ("train", "val")

    @override
    def refs(self) -> Iterator[SampleRef | Rejected]:
        for split, table in self._tables.items():
            for row in read_csv(table, ("file", "age", "gender", "race")):
                try:
                    labels = {
                        "gender": code(row["gender"], _GENDERS, "gender"),
                        "race": code(row["race"], {name: name for name in _RACES}, "race"),
                        "age_band": code(row["age"], {name: name for name in _BANDS}, "age"),
                    }
                    yield SampleRef(row["file"], labels, split=split)
                except ValueError as error:
                    yield Rejected(row["file"], str(error))


DATASET = DataSet(
    name="fairface",
    title="FairFace (2021)",
    labels=("gender", "race", "age_band"),
    licence="CC BY 4.0",
    url="https://github.com/joojs/fairface",
    splits="published",
    open=FairFace,
)
