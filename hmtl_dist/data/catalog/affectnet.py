"""AffectNet: faces from the web with eight expressions, valence and arousal (Mollahosseini et al. 2017).

The release of 2017 has whole pictures in numbered folders and the boxes of the faces in two tables:

    Manually_Annotated_Images/SUBDIRECTORY/NAME.jpg
    training.csv, validation.csv     (or in Manually_Annotated_file_lists/; validation.csv comes without a header line)

That of 2021 has faces already cut out, 224 pixels wide, and a NumPy file a label:

    train_set/images/N.jpg, train_set/annotations/N_exp.npy, N_val.npy, N_aro.npy, N_lnd.npy     (val_set likewise)

Expressions are 0 to 7 in the order of `EXPRESSIONS`; 8 none of them, 9 uncertain and 10 no face are left out. Valence
and arousal are -1 to 1; -2, which stands for no value, becomes a missing label. Landmarks are not used.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field as Limits
from typing_extensions import override

from hmtl_dist.config.base import Section
from hmtl_dist.data.catalog.originals import (
    EXPRESSIONS,
    OriginalsAdapter,
    code,
    expression_field,
    first_of,
    number,
    read_csv,
)
from hmtl_dist.data.catalog.registry import DataSet
from hmtl_dist.data.dataset.adapter import Adapter, Box, Rejected, SampleRef
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.errors import UserError

_COLUMNS = (
    "subDirectory_filePath",
    "face_x",
    "face_y",
    "face_width",
    "face_height",
    "facial_landmarks",
    "expression",
    "valence",
    "arousal",
)
_CODES = {str(number): name for number, name in enumerate((*EXPRESSIONS, "none", "uncertain", "no face"))}
_MISSING = -2.0
_TABLES = {"train": "training.csv", "val": "validation.csv"}
_FOLDERS = {"train": "train_set", "val": "val_set"}


class Options(Section):
    """How AffectNet is read."""

    expressions: Literal[8, 7] = 8
    """Expressions that are kept: 7 leaves contempt out."""
    crop: bool = True
    """Cut faces out by the published boxes; pictures of 2021 are faces already."""
    margin: float = Limits(default=0.0, ge=0, le=2)
    """Added on every side of a box, as a share of its side."""


class _AffectNet(OriginalsAdapter):
    """What both releases have in common."""

    def __init__(self, root: Path, options: Options) -> None:
        super().__init__(root)
        self._options = options
        self._names = EXPRESSIONS[: options.expressions]

    @property
    @override
    def fields(self) -> Mapping[str, Field]:
        return {
            "expression": expression_field(self._names),
            "valence": Field(kind="number"),
            "arousal": Field(kind="number"),
        }

    @property
    @override
    def splits(self) -> tuple[str, ...]:
        return ("train", "val")

    def _labels(self, expression: str, valence: str, arousal: str) -> dict[str, str | float | None]:
        name = code(expression, _CODES, "expression")
        if name not in self._names:
            raise ValueError(f"the expression is {name}, none of the {len(self._names)} that are kept")
        return {"expression": name, "valence": _affect(valence, "valence"), "arousal": _affect(arousal, "arousal")}


class AffectNet2017(_AffectNet):
    """The release with tables and boxes."""

    def __init__(self, source: Path, options: Options) -> None:
        pictures = first_of(
            source,
            "Manually_Annotated_Images",
            "Manually_Annotated/Manually_Annotated_Images",
            what="AffectNet (neither the release of 2017 nor train_set/ and val_set/ of 2021)",
        )
        super().__init__(pictures, options)
        folders = [source, source / "Manually_Annotated_file_lists", pictures.parent / "Manually_Annotated_file_lists"]
        self._tables = {
            split: folder / table
            for split, table in _TABLES.items()
            for folder in folders
            if (folder / table).is_file()
        }
        if not self._tables:
            raise UserError(f"{source} holds neither training.csv nor validation.csv: unpack the lists of AffectNet")

    @override
    def refs(self) -> Iterator[SampleRef | Rejected]:
        for split, table in self._tables.items():
            for row in read_csv(table, _COLUMNS, header=_COLUMNS):
                name = row["subDirectory_filePath"]
                try:
                    labels = self._labels(row["expression"], row["valence"], row["arousal"])
                    box = _box(row).grown(self._options.margin) if self._options.crop else None
                    yield SampleRef(name, labels, split=split, box=box)
                except ValueError as error:
                    yield Rejected(name, str(error))


class AffectNet2021(_AffectNet):
    """The release with faces cut out and NumPy files."""

    def __init__(self, source: Path, options: Options) -> None:
        if options.margin:
            raise UserError("margin: the pictures of AffectNet 2021 are cut out already; leave margin out")
        super().__init__(source, options)

    @override
    def refs(self) -> Iterator[SampleRef | Rejected]:
        for split, folder in _FOLDERS.items():
            images, annotations = self._root / folder / "images", self._root / folder / "annotations"
            for file in sorted(annotations.glob("*_exp.npy"), key=lambda path: (len(path.name), path.name)):
                stem = file.name.removesuffix("_exp.npy")
                name = (images / f"{stem}.jpg").relative_to(self._root).as_posix()
                try:
                    texts = [_scalar(annotations / f"{stem}_{ending}.npy") for ending in ("exp", "val", "aro")]
                    yield SampleRef(name, self._labels(*texts), split=split)
                except ValueError as error:
                    yield Rejected(name, str(error))


def _affect(text: str, name: str) -> float | None:
    value = number(text, name)
    if value == _MISSING:
        return None
    if abs(value) > 1:
        raise ValueError(f"{name} is {text!r}, not -1 to 1 (or -2 for none)")
    return value


def _box(row: Mapping[str, str]) -> Box:
    try:
        left, top, width, height = (float(row[name]) for name in _COLUMNS[1:5])
    except ValueError:
        raise ValueError("the face box is missing") from None
    if not (width > 0 and height > 0):
        raise ValueError(f"the face box of {width:g} x {height:g} pixels is empty")
    return Box(left, top, width, height)


def _scalar(file: Path) -> str:
    """The one value of a NumPy file as text; it is stored as text ('0.25') or as a number."""
    try:
        value: object = np.load(file, allow_pickle=False).item()
    except Exception as error:  # the reader raises nearly anything on damaged bytes
        raise ValueError(f"{file.name} is missing or holds no single value") from error
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _open(source: Path, options: Options) -> Adapter:
    if any((source / folder).is_dir() for folder in _FOLDERS.values()):
        return AffectNet2021(source, options)
    return AffectNet2017(source, options)


DATASET = DataSet(
    name="affectnet",
    title="AffectNet (2017 and 2021)",
    labels=("expression", "valence", "arousal"),
    licence="research only, on signed request",
    url="https://www.mohammadmahoor.com/pages/databases/affectnet/",
    splits="published",
    options=Options,
    open=_open,
)
