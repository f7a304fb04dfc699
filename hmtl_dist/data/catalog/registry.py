"""The data sets that can be built: every module of this package that describes one as `DATASET`."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

import hmtl_dist.data.catalog as package
from hmtl_dist.config.base import Section
from hmtl_dist.config.explain import choices, explain
from hmtl_dist.data.dataset.adapter import Adapter
from hmtl_dist.errors import UserError


class NoOptions(Section):
    """A set that is read in one way only."""


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set before one has it."""

    name: str
    """Its name in commands."""
    title: str
    """Its name in papers, with the year."""
    labels: tuple[str, ...]
    """Labels that its samples may carry."""
    licence: str
    """What one may do with it, in short; the authors' own words decide."""
    url: str
    """The authors' page, where it is asked for or downloaded."""
    splits: str
    """How it is split unless asked otherwise: `published`, or shares like `train=0.8,val=0.2`."""
    open: Callable[[Any, Any], Adapter]
    """Makes the adapter from where the originals are (see `source`) and the options."""
    group: str | None = None
    """Whom pictures belong to that may not be on two sides of a split."""
    options: type[Section] = NoOptions
    """In which ways it can be read."""
    source: Literal["folder", "url", "none"] = "folder"
    """What `open` is given: the `Path` of the folder that archives were unpacked to; a folder's path or URL as text; or
    None, for what is made from nothing."""
    shard_samples: int = 1000
    """Samples a shard, unless asked otherwise."""


@lru_cache(maxsize=1)
def data_sets() -> dict[str, DataSet]:
    """All data sets by name, sorted."""
    found: dict[str, DataSet] = {}
    for module in pkgutil.iter_modules(package.__path__):
        described: object = getattr(importlib.import_module(f"{package.__name__}.{module.name}"), "DATASET", None)
        if isinstance(described, DataSet):
            found[described.name] = described
    return dict(sorted(found.items()))


def open_data_set(name: str, source: str | Path | None, options: Mapping[str, Any] | None = None) -> Adapter:
    """The adapter of a data set.

    Args:
        name: one of `data_sets()`.
        source: folder that its originals were unpacked into; None for a set that is made from nothing.
        options: those of the set's section that are given.

    Raises:
        UserError: when there is no such set, an option is not understood, or the folder does not hold the set.
    """
    data_set = data_sets().get(name)
    if data_set is None:
        raise UserError(f"data set {name!r}: no such set; {choices(name, list(data_sets()))}")
    try:
        section = data_set.options.model_validate(dict(options or {}))
    except ValidationError as error:
        raise UserError(explain(error, data_set.options)) from error
    if source is None or data_set.source == "none":
        return data_set.open(None, section)
    return data_set.open(Path(source) if data_set.source == "folder" else str(source), section)
