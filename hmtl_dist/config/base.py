"""The base of every configuration section."""

from collections.abc import Iterator
from functools import cache

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen part of the configuration tree: unknown keys are refused, attribute docstrings become its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class MayChange:
    """Marks a field, in its annotation, whose value a run may go on with although it was begun with another one.

    It moves no sample, no step and no weight. Numbers of workers and kinds of devices count as such: another one takes
    the same samples in the same order, but sums in another order and rounds otherwise.
    """


MAY_CHANGE = MayChange()


@cache
def changeable(section: type[Section]) -> tuple[str, ...]:
    """Return the dotted paths of the fields marked with `MAY_CHANGE`; a marked section stands for all that it holds."""
    return tuple(_changeable(section))


def may_change(section: type[Section], key: str) -> bool:
    """Whether a run may go on with another value of this dotted path of its configuration."""
    return any(key == path or key.startswith(f"{path}.") for path in changeable(section))


def _changeable(section: type[Section]) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = field.annotation
        if any(isinstance(mark, MayChange) for mark in field.metadata):
            yield name
        elif isinstance(inner, type) and issubclass(inner, Section):
            yield from (f"{name}.{path}" for path in _changeable(inner))
