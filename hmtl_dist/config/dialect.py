"""The YAML that recipes are written in: plain data, YAML 1.2 scalars, no surprises; and JSON read with as much care."""

import json
import re
from pathlib import Path
from typing import Any, cast

import yaml
from yaml.constructor import ConstructorError

from hmtl_dist.config.explain import shown
from hmtl_dist.errors import UserError

_MAX_BYTES = 1 << 20
_MAX_DEPTH = 32

_TOKENS: list[tuple[str, str, str]] = [
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("float", r"[-+]?(?:[0-9][0-9_]*)?\.[0-9_]+(?:[eE][-+]?[0-9]+)?", "-+0123456789."),
    ("float", r"[-+]?[0-9][0-9_]*(?:\.?[eE][-+]?[0-9]+|\.)", "-+0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    ("merge", r"<<", "<"),
    ("null", r"~|null|Null|NULL|", "~nN"),
]
"""Plain scalars as tag, pattern, possible first letters: `1e-3` is a number; `no`, `1:30` and dates are text."""


def _refuse(why: str, mark: Any) -> ConstructorError:
    return ConstructorError(None, None, why, mark)


class _Loader(yaml.SafeLoader):
    """Safe loading that refuses duplicate keys, aliases (and so bombs of them) and bottomless nesting."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  # replaces a class attribute of PyYAML
    _depth = 0

    def compose_node(self, parent: Any, index: int) -> Any:
        mark: Any = cast("Any", self).peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise _refuse("aliases (*name) are not supported: write the value out, or inherit with base:", mark)
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _refuse(f"nested deeper than {_MAX_DEPTH} levels", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = cast("Any", self).construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _refuse(f"the key {shown(key)} is not text; put it in quotes", key_node.start_mark)
            if key in seen:
                raise _refuse(f"the key '{key}' stands twice", key_node.start_mark)
            seen.add(key)
        return cast("dict[Any, Any]", super().construct_mapping(node, deep))


class _Dumper(yaml.SafeDumper):
    """Writes scalars so that `_Loader` reads them back."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  # replaces a class attribute of PyYAML


for _class in (_Loader, _Dumper):
    for _tag, _pattern, _starts in _TOKENS:
        _letters = [*_starts, ""] if _tag == "null" else list(_starts)  # PyYAML looks the empty scalar up under ""
        cast("Any", _class).add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _letters
        )


def parse(text: str, where: str) -> Any:
    """Read a YAML value; `where` is put before the message of an error.

    Raises:
        UserError: the text is not YAML, repeats a key, uses aliases or nests too deeply.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark is not None and "\n" in text else ""
        said = error.problem or error.context or "not YAML"
        if r"'\t'" in said:
            said = "a tab stands where YAML takes spaces only; indent with spaces"
        raise UserError(f"{where}{line}: {said}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split()) or 'nested too deeply'}") from error


def parse_json(data: bytes | str) -> Any:
    """Read JSON that somebody else may have written or damaged.

    Raises:
        ValueError: it is no JSON, no UTF-8, or nested too deeply to be read.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; an empty file is an empty mapping.

    Raises:
        UserError: the file cannot be read, is too large, is not YAML, repeats a key, or holds something else.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        text = content.decode()
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8") from error
    if len(content) > _MAX_BYTES:
        raise UserError(f"{path}: larger than {_MAX_BYTES >> 20} MiB; is it a YAML file?")
    tree = parse(text, str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: given {shown(tree)}, allowed a mapping of keys to values")
    return cast("dict[str, Any]", tree)


def one_line(value: Any) -> str:
    """Write a value as YAML on one line."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=1 << 30, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
