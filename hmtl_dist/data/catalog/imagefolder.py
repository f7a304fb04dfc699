"""A folder a class, as torchvision's ImageFolder reads it, with or without folders of splits above.

SRC/CLASS/**/*.jpg     or     SRC/train/CLASS/**/*.jpg, SRC/val/..., SRC/test/... (valid and validation are val)
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import Field as Limits
from typing_extensions import override

from hmtl_dist.config.base import Section
from hmtl_dist.data.catalog.originals import OriginalsAdapter, pictures_under
from hmtl_dist.data.catalog.registry import DataSet
from hmtl_dist.data.dataset.adapter import Rejected, SampleRef
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.errors import UserError

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class Options(Section):
    """How the folders are read."""

    label: str = Limits(default="expression", pattern=r"^\w+$")
    """Name of the label that the folders' names are."""


class ImageFolder(OriginalsAdapter):
    """The pictures, with the names of the folders, sorted, as classes."""

    def __init__(self, source: Path, options: Options) -> None:
        super().__init__(source)
        self._label = options.label
        splits = [path for path in _folders(source) if path.name in _SPLITS]
        self._places = splits if any(path.name == "train" for path in splits) else []
        tops = self._places or [source]
        self._classes = tuple(sorted({path.name for top in tops for path in _folders(top)}))
        if not self._classes:
            raise UserError(f"{source} holds no folders: expected one a class, or train/ with one a class in it")
        if len(self._classes) == 1:
            raise UserError(f"{source} holds the one class {self._classes[0]!r}: expected a folder for each of several")

    @property
    @override
    def fields(self) -> Mapping[str, Field]:
        return {self._label: Field(kind="category", classes=self._classes)}

    @property
    @override
    def splits(self) -> tuple[str, ...]:
        there = {_SPLITS[path.name] for path in self._places}
        return tuple(name for name in ("train", "val", "test") if name in there)

    @override
    def refs(self) -> Iterator[SampleRef | Rejected]:
        for top in self._places or [self._root]:
            split = _SPLITS[top.name] if self._places else None
            for folder in _folders(top):
                for file in pictures_under(folder):
                    name = file.relative_to(self._root).as_posix()
                    yield SampleRef(name, {self._label: folder.name}, split=split)


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


DATASET = DataSet(
    name="imagefolder",
    title="a folder a class",
    labels=("expression",),
    licence="yours",
    url="",
    splits="train=0.8,val=0.2",
    options=Options,
    open=ImageFolder,
)
