"""FER+: ten people's votes on the pictures of FER2013 (Barsoum et al. 2016).

    fer2013.csv        the pictures, see fer2013.py
    fer2013new.csv     Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF

Row n of one belongs to row n of the other. As in the authors' code (mode `majority`), single votes are dropped, and a
picture is kept when more than half of the votes that remain are for one of the eight expressions; the others (unknown,
no face, no majority) are left out.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from typing_extensions import override

from hmtl_dist.data.catalog.fer2013 import USAGES, FerTable
from hmtl_dist.data.catalog.originals import EXPRESSIONS, code, expression_field, first_of, number, read_csv
from hmtl_dist.data.catalog.registry import DataSet, NoOptions
from hmtl_dist.data.dataset.adapter import Rejected, SampleRef
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.errors import UserError

_COLUMNS = {
    "neutral": "neutral",
    "happiness": "happy",
    "surprise": "surprise",
    "sadness": "sad",
    "anger": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "contempt": "contempt",
    "unknown": None,
    "NF": None,
}


class FerPlus(FerTable):
    """FER2013 with the expression most people saw."""

    def __init__(self, source: Path, _: NoOptions) -> None:
        super().__init__(first_of(source, "fer2013.csv", "fer2013/fer2013.csv", "data/fer2013.csv", what="FER2013"))
        self._votes = first_of(source, "fer2013new.csv", "FERPlus/fer2013new.csv", what="votes of FER+")

    @property
    @override
    def fields(self) -> Mapping[str, Field]:
        return {"expression": expression_field(EXPRESSIONS)}

    @override
    def refs(self) -> Iterator[SampleRef | Rejected]:
        votes = list(read_csv(self._votes, ["Usage", *_COLUMNS]))
        pictures = list(self.rows())
        if len(votes) != len(pictures):
            raise UserError(
                f"{self._votes} has {len(votes):,} rows and {self._table} {len(pictures):,}: the votes are for the "
                "pictures of fer2013.csv as Kaggle handed it out, row by row"
            )
        for (name, picture), row in zip(pictures, votes, strict=True):
            try:
                if row["Usage"] != picture["Usage"]:
                    raise ValueError(f"Usage is {row['Usage']!r} in the votes and {picture['Usage']!r} in the pictures")
                split = code(row["Usage"], USAGES, "Usage")
                yield SampleRef(name, {"expression": _majority(row)}, split=split)
            except ValueError as error:
                yield Rejected(name, str(error))


def _majority(row: Mapping[str, str]) -> str:
    votes = {column: number(row[column], f"votes for {column}") for column in _COLUMNS}
    votes = {column: count for column, count in votes.items() if count > 1}
    best = max(votes, key=votes.__getitem__, default="unknown")
    if votes.get(best, 0) <= sum(votes.values()) / 2:
        raise ValueError("no expression has most of the votes")
    name = _COLUMNS[best]
    if name is None:
        raise ValueError(f"most votes are for {best}")
    return name


DATASET = DataSet(
    name="ferplus",
    title="FER+ (2016)",
    labels=("expression",),
    licence="MIT for the votes; the pictures are those of FER2013",
    url="https://github.com/microsoft/FERPlus",
    splits="published",
    open=FerPlus,
)
