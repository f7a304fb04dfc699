"""Labels as people write them: `expression`, `expression:category:neutral,happy`, `age:number:years`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hmtl_dist.data.dataset.schema import Field, LabelValue
from hmtl_dist.errors import UserError

MAX_CLASSES = 1000
"""A column of texts with more different values than this is no category (names of files, free text)."""
MAX_NUMBER = float(np.finfo(np.float32).max)
"""Largest number that a label can be, as labels are stored."""
MISSING = frozenset({"", "na", "n/a", "nan", "null"})
"""What tables write, in any case of letters, where there is no value."""


@dataclass(frozen=True)
class LabelSpec:
    """Which label is wanted and what it is; `classes` is empty when they are still to be found in the data."""

    name: str
    kind: str
    classes: tuple[str, ...] = ()
    unit: str = ""


def parse_label(text: str) -> LabelSpec:
    """Read `NAME`, `NAME:category[:CLASS,CLASS,…]` or `NAME:number[:UNIT]`.

    Raises:
        UserError: when it is none of these.
    """
    name, _, rest = text.partition(":")
    kind, _, detail = rest.partition(":")
    kind = kind or "category"
    classes = tuple(part.strip() for part in detail.split(",")) if kind == "category" and detail else ()
    if not name or kind not in ("category", "number") or "" in classes or len(set(classes)) != len(classes):
        raise UserError(
            f"label {text!r} is not understood: give NAME, NAME:category:CLASS,CLASS (each class once) or "
            "NAME:number[:UNIT]"
        )
    return LabelSpec(name, kind, classes, detail if kind == "number" else "")


def parse_labels(texts: Sequence[str]) -> list[LabelSpec]:
    """Read several labels, each named once.

    Raises:
        UserError: when one is not understood or named twice.
    """
    specs = [parse_label(text) for text in texts]
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"label {twice[0]!r} is given twice: name each label once")
    return specs


def read_value(text: str, name: str, field: Field) -> LabelValue:
    """A label from its text; None when the text says that there is none.

    Raises:
        ValueError: when it is no class of the category, or no finite number.
    """
    text = text.strip()
    if field.kind == "category" and text in field.classes:
        return text
    if is_missing(text):
        return None
    if field.kind == "category":
        raise ValueError(f"{name} is {text!r}, not one of {', '.join(field.classes)}")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number) or abs(number) > MAX_NUMBER:
        raise ValueError(f"{name} is {text!r}, not a number")
    return number


def is_missing(text: str) -> bool:
    """Whether a table's text says that there is no value."""
    return text.strip().lower() in MISSING
