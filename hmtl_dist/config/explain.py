"""Turns a pydantic error into the one line a person needs: path, what was given, what is allowed, nearest name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hmtl_dist.config.schema import Slot, literals, paths_named
from hmtl_dist.errors import nearest

_LIST = "a list"
_EXPECTED = {
    "bool": "true or false",
    "bytes": "text",
    "date": "a date",
    "dict": "a mapping of keys to values",
    "float": "a number",
    "frozen_set": _LIST,
    "int": "a whole number",
    "list": _LIST,
    "mapping": "a mapping of keys to values",
    "path": "a path",
    "set": _LIST,
    "string": "text (in quotes if it looks like a number)",
    "tuple": _LIST,
}
"""What a field takes, by the first word of pydantic's error type."""

_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
    "multiple_of": ("multiple_of", "a multiple of"),
}
_UNKNOWN, _OTHER, _MISSING = 0, 1, 2


@dataclass
class _Problem:
    path: str
    given: str
    rank: int
    """Order of telling: an unknown key is often the cause of a missing one."""
    text: str
    """The whole message, unless `allowed` holds alternatives."""
    allowed: list[str]


def choices(name: str, allowed: Sequence[str]) -> str:
    """Return `did you mean 'x'?`, or all that is allowed where nothing is close."""
    close = nearest(name, allowed)
    if close is not None:
        return f"did you mean '{close}'?"
    return f"allowed: {', '.join(allowed)}" if allowed else "nothing is allowed here"


def shown(value: Any) -> str:
    """Return a value as it would be quoted in a message, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return one line for a validation error of a tree: the first cause, and how many more there are."""
    problems: dict[str, _Problem] = {}
    for details in error.errors():
        problem = _problem(details, model)
        known = problems.setdefault(problem.path, problem)
        if known is not problem and known.allowed and problem.allowed:
            known.allowed += [one for one in problem.allowed if one not in known.allowed]
    first, *others = sorted(problems.values(), key=lambda problem: problem.rank)
    text = f"given {first.given}, allowed {' or '.join(first.allowed)}" if first.allowed else first.text
    line = " ".join(f"{first.path}: {text}".removeprefix(": ").split())
    return f"{line} (and {len(others)} more)" if others else line


def locate(model: type[BaseModel], location: Sequence[str | int]) -> tuple[list[str], Slot]:
    """Return the dotted parts of a pydantic location, without the union tags in it, and what may stand there."""
    parts: list[str] = []
    slot: Slot = Slot((model,))
    for key in location:
        if len(slot.members) > 1:
            slot = slot.narrowed(key)
            continue
        parts.append(str(key))
        slot = slot.child(key) or Slot((Any,))
    return parts, slot


def _problem(details: ErrorDetails, model: type[BaseModel]) -> _Problem:
    kind, location, given = details["type"], details["loc"], details["input"]
    context: Mapping[str, Any] = details.get("ctx", {})
    parts, slot = locate(model, location)
    path = ".".join(parts)
    if kind == "extra_forbidden":
        return _unknown_key(model, location, parts)
    if kind == "missing":
        return _Problem(path, "", _MISSING, f"required, but not given{_help(model, location)}", [])
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _tag_problem(details, path, slot)
    if kind in ("value_error", "assertion_error"):
        return _Problem(path, "", _OTHER, str(context["error"]).removeprefix(f"{path}: "), [])
    allowed = _allowed(kind, given, context, slot)
    if allowed is not None:
        return _Problem(path, shown(given), _OTHER, "", [allowed])
    message = details["msg"]
    return _Problem(path, "", _OTHER, f"given {shown(given)}; {message[:1].lower()}{message[1:]}", [])


def _allowed(kind: str, given: Any, context: Mapping[str, Any], slot: Slot) -> str | None:
    if kind in ("literal_error", "enum"):
        names = _quoted(str(context["expected"]))
        close = nearest(given, names) if isinstance(given, str) else None
        return ", ".join(names) + (f" (did you mean '{close}'?)" if close else "")
    if kind in ("model_type", "model_attributes_type"):
        return _section(slot)
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"{words} {context[key]}"
    if kind == "string_pattern_mismatch":
        close = re.sub(r"[^A-Za-z0-9._-]+", "-", str(given)).strip("-")
        hint = f", such as '{close}'" if re.search(context["pattern"], close) else ""
        return f"text that matches {context['pattern']}{hint}"
    if kind == "finite_number":
        return "a finite number"
    if kind.endswith(("_too_short", "_too_long")):
        return None
    allowed = next((words for start, words in _EXPECTED.items() if kind.startswith(f"{start}_")), None)
    return _as_list(given) if allowed == _LIST else allowed


def _as_list(given: Any) -> str:
    """Say that a list is wanted, and how one of what was given is written."""
    names = isinstance(given, str) and re.fullmatch(r"\w+( *, *\w+)*", given)
    if names:
        return f"{_LIST}, such as [{given}]"
    return f"{_LIST}, such as [{shown(given)}]" if isinstance(given, (int, float)) else _LIST


def _tag_problem(details: ErrorDetails, path: str, slot: Slot) -> _Problem:
    context: Mapping[str, Any] = details.get("ctx", {})
    key = str(context["discriminator"]).strip("'")
    inner = slot.child(key)
    tags = [str(value) for value in literals(inner)] if inner else []
    if details["type"] == "union_tag_invalid":
        given = str(context["tag"])
        close = nearest(given, tags)
        hint = f" (did you mean '{close}'?)" if close else ""
        return _Problem(f"{path}.{key}", repr(given), _OTHER, "", [", ".join(tags) + hint])
    if isinstance(details["input"], Mapping):
        return _Problem(f"{path}.{key}", "", _MISSING, f"required, but not given; allowed: {', '.join(tags)}", [])
    return _Problem(path, shown(details["input"]), _OTHER, "", [_section(slot)])


def _section(slot: Slot) -> str:
    """Say what section may stand in a slot: one of a kind, or one with certain keys."""
    if slot.discriminator and len(slot.members) > 1 and (kinds := slot.child(slot.discriminator)):
        return f"a section with {slot.discriminator}: {', '.join(map(str, literals(kinds)))}"
    return f"a section with the keys {', '.join(slot.keys)}"


def _unknown_key(model: type[BaseModel], location: Sequence[str | int], parts: Sequence[str]) -> _Problem:
    key = parts[-1]
    _, parent = locate(model, location[:-1])
    if len(parent.members) > 1:
        parent = parent.narrowed(location[-1])
    hint = choices(key, parent.keys)
    if nearest(key, parent.keys) is None and (elsewhere := list(paths_named(model, key))):
        hint = f"did you mean '{' or '.join(elsewhere)}'?"
    return _Problem(".".join(parts), "", _UNKNOWN, f"unknown key '{key}'; {hint}", [])


def _quoted(expected: str) -> list[str]:
    """Read pydantic's enumerations: `'a', 'b'` and `'a', 'b' or 'c'`."""
    return [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(",") if part.strip()]


def _help(model: type[BaseModel], location: Sequence[str | int]) -> str:
    _, parent = locate(model, location[:-1])
    key = str(location[-1])
    for section in parent.sections:
        if key in section.model_fields and (text := section.model_fields[key].description):
            return f": {text.split('; ')[0].rstrip('.')}"
    return ""
