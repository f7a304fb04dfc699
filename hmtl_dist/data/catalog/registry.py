"""The data sets that can be built: every module of this package that describes one as `DATASET`."""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import hmtl_dist.data.catalog as package
from hmtl_dist.config.base import Section
from hmtl_dist.config.dialect import parse
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
    group: str | None = None
    """Whom pictures belong to that may not be on two sides of a split."""
    options: type[Section] = NoOptions
    """In which ways it can be read."""
    open: Callable[[Path, Any], Adapter] | None = None
    """Makes the adapter from the folder of originals and the options; None for what has a command of its own."""


@lru_cache(maxsize=1)
def data_sets() -> dict[str, DataSet]:
    """All data sets by name, sorted."""
    found: dict[str, DataSet] = {}
    for module in pkgutil.iter_modules(package.__path__):
        described: object = getattr(importlib.import_module(f"{package.__name__}.{module.name}"), "DATASET", None)
        if isinstance(described, DataSet):
            found[described.name] = described
    return dict(sorted(found.items()))


def open_data_set(name: str, source: Path, overrides: Sequence[str] = ()) -> Adapter:
    """The adapter of a data set.

    Args:
        name: one of `data_sets()`.
        source: folder that its originals were unpacked into.
        overrides: options as `key=value`, the value in YAML.

    Raises:
        UserError: when there is no such set, an option is not understood, or the folder does not hold the set.
    """
    data_set = data_sets().get(name)
    if data_set is None or data_set.open is None:
        raise UserError(f"data set {name!r}: no such set; {choices(name, list(data_sets()))}")
    values: dict[str, Any] = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise UserError(f"option {override!r}: write it as key=value; {_allowed(data_set)}")
        values[key] = parse(text, key)
    try:
        options = data_set.options.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, data_set.options)) from error
    return data_set.open(source, options)


def _allowed(data_set: DataSet) -> str:
    names = ", ".join(data_set.options.model_fields)
    return f"{data_set.name} knows {names}" if names else f"{data_set.name} has no options"
