"""CelebA: celebrities with forty attributes, of which gender and smile are taken (Liu et al. 2015).

    Anno/list_attr_celeba.txt        a line with the count, a line with the names, then `000001.jpg -1  1 ...`
    Anno/identity_CelebA.txt         `000001.jpg 2880`
    Anno/list_bbox_celeba.txt        left, top, width and height in the original pictures
    Eval/list_eval_partition.txt     0 train, 1 val, 2 test; people are not shared between them
    Img/img_align_celeba/*.jpg       178 x 218 pixels; Img/img_celeba/*.jpg are the originals

or all of it in one folder, as torchvision keeps it. Attributes are 1 or -1; `Male` and `Smiling` are taken.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field as Limits
from typing_extensions import override

from hmtl_dist.config.base import Section
from hmtl_dist.data.catalog.originals import GENDER, SMILE, OriginalsAdapter, code, first_of, numbers, read_lines
from hmtl_dist.data.catalog.registry import DataSet
from hmtl_dist.data.dataset.adapter import Box, Rejected, SampleRef
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.errors import UserError

_FOLDERS = {"aligned": "img_align_celeba", "original": "img_celeba"}
_ATTRIBUTES: dict[str, tuple[str, dict[str, str | None]]] = {
    "gender": ("Male", {"1": "male", "-1": "female"}),
    "smile": ("Smiling", {"1": "yes", "-1": "no"}),
}
_SPLITS: dict[str, str | None] = {"0": "train", "1": "val", "2": "test"}


class Options(Section):
    """How CelebA is read."""

    pictures: Literal["aligned", "original"] = "aligned"
    """The authors' aligned faces, or the originals cut by the published boxes."""
    margin: float = Limits(default=0.0, ge=0, le=2)
    """Added on every side of a box of an original, as a share of its longer side."""


class CelebA(OriginalsAdapter):
    """The pictures."""

    def __init__(self, source: Path, options: Options) -> None:
        folder = _FOLDERS[options.pictures]
        places = (f"Img/{folder}", f"{folder}/{folder}", folder)
        super().__init__(first_of(source, *places, what="pictures of CelebA"))
        self._options = options
        self._attributes = _list(source, "Anno", "list_attr_celeba.txt")
        self._identities = _list(source, "Anno", "identity_CelebA.txt")
        self._partition = _list(source, "Eval", "list_eval_partition.txt")
        self._boxes = _list(source, "Anno", "list_bbox_celeba.txt") if options.pictures == "original" else None

    @property
    @override
    def fields(self) -> Mapping[str, Field]:
        return {"gender": GENDER, "smile": SMILE}

    @property
    @override
    def group(self) -> str:
        return "identity"

    @property
    @override
    def splits(self) -> tuple[str, ...]:
        return ("train", "val", "test")

    @override
    def refs(self) -> Iterator[SampleRef | Rejected]:
        people, splits = _table(self._identities), _table(self._partition)
        boxes = _table(self._boxes) if self._boxes is not None else {}
        lines = read_lines(self._attributes)
        columns = lines[1].split() if len(lines) > 1 else []
        for attribute, _ in _ATTRIBUTES.values():
            if attribute not in columns:
                raise UserError(f"{self._attributes} names no attribute {attribute!r} in its second line")
        for line in lines[2:]:
            name, *values = line.split()
            try:
                if len(values) != len(columns):
                    raise ValueError(f"the line has {len(values)} attributes, not {len(columns)}")
                row = dict(zip(columns, values, strict=True))
                labels = {label: code(row[column], codes, column) for label, (column, codes) in _ATTRIBUTES.items()}
                if name not in people:
                    raise ValueError("the identity is missing")
                split = code(splits.get(name, ""), _SPLITS, "the partition")
                yield SampleRef(name, labels, people[name], split, self._box(boxes.get(name)))
            except ValueError as error:
                yield Rejected(name, str(error))

    def _box(self, text: str | None) -> Box | None:
        if self._boxes is None:
            return None
        if text is None:
            raise ValueError("the face box is missing")
        return Box(*numbers(text, 4, "the line of the face box")[:4]).grown(self._options.margin)


def _list(source: Path, folder: str, name: str) -> Path:
    return first_of(source, f"{folder}/{name}", name, what=f"{name} of CelebA")


def _table(file: Path) -> dict[str, str]:
    """What stands behind the name of each picture."""
    parts = (line.partition(" ") for line in read_lines(file))
    return {name: rest.strip() for name, _, rest in parts}


DATASET = DataSet(
    name="celeba",
    title="CelebA (2015)",
    labels=("gender", "smile"),
    licence="non-commercial research only",
    url="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    splits="published",
    group="identity",
    options=Options,
    open=CelebA,
)
