"""Labels as people write them: `expression`, `expression:category:neutral,happy`, `age:number:years`."""

from collections.abc import Sequence
from dataclasses import dataclass

from hmtl_dist.data.dataset.schema import Field, LabelValue
from hmtl_dist.data.dataset.values import Value, class_of, is_missing, number_of
from hmtl_dist.errors import UserError

MAX_CLASSES = 1000
"""A column of texts with more different values than this is no category (names of files, free text)."""


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


def read_value(value: Value, name: str, field: Field) -> LabelValue:
    """A label from a cell of a table or an entry of JSON, by the rules of `values`; None where there is none.

    Raises:
        ValueError: when it is no class of the category, or no finite number.
    """
    if field.kind == "category":
        for one in () if value is None else (str(value).strip(), class_of(value)):
            if one in field.classes:  # also one that would mean "missing" elsewhere, where it was asked for by name
                return one
    if value is None or is_missing(value):
        return None
    if field.kind == "category":
        raise ValueError(f"{name} is {value!r}, not one of {', '.join(field.classes)}")
    try:
        return number_of(value)
    except ValueError:
        raise ValueError(f"{name} is {value!r}, not a number") from None
