"""A folder a class, as torchvision's ImageFolder reads it, with or without folders of splits above.

SRC/CLASS/**/*.jpg     or     SRC/train/CLASS/**/*.jpg, SRC/val/..., SRC/test/... (see `SPLITS` for other names)
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from typing_extensions import override

from hmtl_dist.data.catalog.originals import PICTURE_ENDINGS, OriginalsAdapter, pictures_under
from hmtl_dist.data.dataset.adapter import Rejected, SampleRef
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.data.dataset.split import ORDER, SPLITS
from hmtl_dist.errors import UserError


class ClassFolders(OriginalsAdapter):
    """The pictures, with the names of the folders, sorted, as classes.

    Args:
        source: the folder that holds those of the classes, or those of splits with them.
        label: name of the label that the folders' names are.

    Raises:
        UserError: when there are no folders of several classes.
    """

    def __init__(self, source: Path, label: str) -> None:
        super().__init__(source)
        self._label = label
        self._places = _folders_of_splits(source)
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
        there = {SPLITS[path.name.lower()] for path in self._places}
        return tuple(name for name in ORDER if name in there)

    @override
    def refs(self) -> Iterator[SampleRef | Rejected]:
        for top in (self._root, *self._places):
            for file in sorted(top.iterdir()):
                if file.suffix.lower() in PICTURE_ENDINGS and not file.name.startswith("."):
                    yield Rejected(file.relative_to(self._root).as_posix(), "it lies in no folder of a class")
        for top in self._places or [self._root]:
            split = SPLITS[top.name.lower()] if self._places else None
            for folder in _folders(top):
                for file in pictures_under(folder):
                    name = file.relative_to(self._root).as_posix()
                    yield SampleRef(name, {self._label: folder.name}, split=split)


def _folders_of_splits(source: Path) -> list[Path]:
    """The folders that are splits, none where there is no folder for training.

    Raises:
        UserError: when two are the same split, or there are others beside them.
    """
    folders = _folders(source)
    splits = [path for path in folders if path.name.lower() in SPLITS]
    names = [SPLITS[path.name.lower()] for path in splits]
    if "train" not in names:
        if splits and len(splits) == len(folders):
            raise UserError(
                f"{source} holds the splits {', '.join(path.name for path in splits)} and none to train on: add train/ "
                "or give the folder of one of them"
            )
        return []
    if twice := [path.name for path, name in zip(splits, names, strict=True) if names.count(name) > 1]:
        raise UserError(f"{source} holds {' and '.join(twice)}, which are one split: put their pictures together")
    if aside := [path.name for path in folders if path not in splits]:
        raise UserError(
            f"{source} holds folders of splits and, beside them, {', '.join(aside)}: move what is no split elsewhere, "
            "or call it train, val or test"
        )
    return splits


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
