"""What a value of a label is: one rule book for the cells of tables, the entries of JSON, and numbers of arrays.

- There is no value: JSON's null, a number that is NaN, and the texts "", "na", "n/a", "nan" and "null" in any case.
- A number is finite in float32, as labels are stored; anything else is refused.
- A class is the value's exact text, without white space around it. A whole number has no ".0", however it is written,
  so that 1, 1.0 and "1.0" are one class; true and false are written small.
- A group, such as a person, is written like a class, but only null, NaN and the empty text are none: "NA" may be
  somebody's initials. People taken for one are on one side of a split; people taken for none could be on both.
"""

import math
import re

import numpy as np

MAX_NUMBER = float(np.finfo(np.float32).max)
"""Largest number that a label can be."""
MISSING = frozenset({"", "na", "n/a", "nan", "null"})
"""What tables write, in any case of letters, where there is no value."""

Value = str | float | bool | None
"""What a cell or an entry may hold; an int is a float here."""

_WHOLE = re.compile(r"([+-]?\d+)\.0*")


def is_missing(value: Value) -> bool:
    """Whether there is no value."""
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def class_of(value: str | float | bool) -> str:
    """Return the class that a value names."""
    if isinstance(value, bool):
        return str(value).lower()
    text = value.strip() if isinstance(value, str) else _digits(value)
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def group_of(value: Value) -> str | None:
    """Return whom a value names, None for nobody."""
    if value is None or (is_missing(value) and not isinstance(value, str)):
        return None
    return class_of(value) or None


def number_of(value: str | float | bool) -> float:
    """Return the number that a value is.

    Raises:
        ValueError: It is none, or none that float32 holds; the message is the value.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if math.isnan(number) or abs(number) > MAX_NUMBER:
        raise ValueError(repr(value))
    return number


def _digits(value: float) -> str:
    """Write a number with all its digits: 20170110.0 is no 2.01701e+07."""
    if isinstance(value, int) or (math.isfinite(value) and value.is_integer()):
        return str(int(value))
    return repr(value)
