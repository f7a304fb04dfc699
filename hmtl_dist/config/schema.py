"""What a configuration tree may hold, read off its sections: the walk behind good errors and typed overrides."""

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Slot:
    """What may stand at one place of the tree."""

    members: tuple[Any, ...]
    """The types of a union without `None` and wrappers; a single type for anything else."""
    discriminator: str | None = None
    """Key that tells the members of a union apart, if one does."""

    @property
    def sections(self) -> tuple[type[BaseModel], ...]:
        """The members that are sections."""
        return tuple(member for member in self.members if isinstance(member, type) and issubclass(member, BaseModel))

    @property
    def is_mapping(self) -> bool:
        """Whether free keys are allowed here, as in `tasks`."""
        return any(get_origin(member) is dict for member in self.members)

    @property
    def keys(self) -> list[str]:
        """Keys that the sections here know."""
        return list(dict.fromkeys(key for section in self.sections for key in section.model_fields))

    def child(self, key: str | int) -> "Slot | None":
        """Return what may stand under a key or list index, or None where the schema does not say."""
        found: list[Slot] = []
        for member in self.members:
            if isinstance(member, type) and issubclass(member, BaseModel):
                if key in member.model_fields:
                    found.append(_field_slot(member.model_fields[key]))
            elif get_origin(member) in (dict, list, tuple, set, frozenset):
                arguments = [argument for argument in get_args(member) if argument is not Ellipsis]
                if arguments:
                    found.append(slot_of(arguments[-1]))
        if not found:
            return None
        discriminator = next((slot.discriminator for slot in found if slot.discriminator), None)
        return Slot(tuple(dict.fromkeys(member for slot in found for member in slot.members)), discriminator)

    def narrowed(self, label: str | int) -> "Slot":
        """Return the member that pydantic names in a location: a union's tag, or a type's own label."""
        for section in self.sections:
            field = section.model_fields.get(self.discriminator) if self.discriminator else None
            if field is not None and label in literals(_field_slot(field)):
                return Slot((section,))
        for section in self.sections:
            if section.__name__ in str(label):
                return Slot((section,))
        return Slot(self.members[:1])


def slot_of(annotation: Any, discriminator: str | None = None) -> Slot:
    """Read a type annotation."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *metadata = get_args(annotation)
        for item in metadata:
            if isinstance(item, FieldInfo) and isinstance(item.discriminator, str):
                discriminator = item.discriminator
        return slot_of(inner, discriminator)
    if origin in (Union, types.UnionType):
        parts = [slot_of(part, discriminator) for part in get_args(annotation) if part is not types.NoneType]
        for part in parts:
            discriminator = discriminator or part.discriminator
        return Slot(tuple(member for part in parts for member in part.members), discriminator)
    return Slot((annotation,), discriminator)


def _field_slot(field: FieldInfo) -> Slot:
    discriminator = field.discriminator if isinstance(field.discriminator, str) else None
    for item in field.metadata:
        if isinstance(item, FieldInfo) and isinstance(item.discriminator, str):
            discriminator = item.discriminator
    return slot_of(field.annotation, discriminator)


def literals(slot: Slot) -> list[Any]:
    """Return the values of the `Literal` types in a slot."""
    return [value for member in slot.members if get_origin(member) is Literal for value in get_args(member)]


def paths_named(section: type[BaseModel], key: str, prefix: str = "") -> Iterator[str]:
    """Yield the dotted paths under a section that end in a key; free mappings are not entered."""
    for name, field in section.model_fields.items():
        if name == key:
            yield prefix + name
        for inner in _field_slot(field).sections:
            yield from paths_named(inner, key, f"{prefix}{name}.")
