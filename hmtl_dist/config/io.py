"""Recipes in, configuration out: YAML files that inherit, dotted overrides, and the resolved tree as text.

Every problem a person can cause is a `UserError` of one line.
"""

import copy
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from pydantic import ValidationError

from hmtl_dist.config.base import Section
from hmtl_dist.config.dialect import one_line, parse, read_yaml
from hmtl_dist.config.explain import choices, explain, shown
from hmtl_dist.config.schema import Slot, literals
from hmtl_dist.errors import UserError, nearest

Kind = Literal["recipes", "tune_spaces"]
Tree = dict[str, Any]
SectionT = TypeVar("SectionT", bound=Section)

_PACKAGE = Path(__file__).resolve().parents[1]
_NOUN: dict[Kind, str] = {"recipes": "recipe", "tune_spaces": "space"}
RECIPE = "recipe"
"""Field that is given the name of the recipe."""
_COMMENT_COLUMN = 36
_WITH_A_MEANING = ",?#%\n"
"""Letters of a path that would be read as something else: SeaweedFS parts folders by commas, the others are URLs'."""


def home() -> Path:
    """Return the absolute folder of services and runs: `HMTL_HOME`, or `~/.hmtl_dist`; it may not exist yet.

    Raises:
        UserError: there is none, or servers could not be told of it.
    """
    try:
        folder = os.path.abspath(Path(os.environ.get("HMTL_HOME") or "~/.hmtl_dist").expanduser())  # noqa: PTH100
    except RuntimeError:
        raise UserError(
            "HMTL_HOME: not set, and this user has no home folder; set it to a folder that you may write to"
        ) from None
    if odd := [letter for letter in _WITH_A_MEANING if letter in folder]:
        raise UserError(
            f"HMTL_HOME: {folder!r} has {odd[0]!r} in it, which means something in the addresses of S3 and MLflow; "
            "use another folder"
        )
    return Path(folder)


# --- what is shipped ---------------------------------------------------------------------------------------------


def _shipped_folder(kind: Kind) -> Path:
    inside = _PACKAGE / kind
    return inside if inside.is_dir() else _PACKAGE.parent / kind  # a checkout keeps tune_spaces beside the package


def list_shipped(kind: Kind) -> list[str]:
    """Return the names of the shipped recipes or tune spaces, sorted."""
    return sorted(path.stem for path in _shipped_folder(kind).glob("*.yaml"))


def find_shipped(kind: Kind, name: str) -> Path:
    """Return the file of a shipped recipe or space.

    Raises:
        UserError: no such name is shipped.
    """
    names = list_shipped(kind)
    if name not in names:
        noun = _NOUN[kind]
        raise UserError(
            f"{noun} '{name}': no {noun} of this name is shipped; {choices(name, names)} "
            f"(a file of your own is named with its .yaml ending)"
        )
    return _shipped_folder(kind) / f"{name}.yaml"


def find_source(kind: Kind, source: str, folder: Path | None = None) -> Path:
    """Return the file that a path or shipped name stands for; a relative path starts at `folder`, or here.

    Raises:
        UserError: there is no such file, or no such shipped name.
    """
    if not (source.endswith((".yaml", ".yml")) or "/" in source):
        return find_shipped(kind, source)
    path = (folder or Path()) / Path(source).expanduser()
    if path.is_file():
        return path
    name = Path(source).stem
    hint = f"; the shipped one is named '{name}', without .yaml" if name in list_shipped(kind) else ""
    what = "is a folder, not a file" if path.is_dir() else "no such file"
    raise UserError(f"{_NOUN[kind]} '{source}': {what}{hint}")


# --- the tree ----------------------------------------------------------------------------------------------------


def load_tree(model: type[SectionT], source: str, overrides: Sequence[str] = ()) -> SectionT:
    """Read a recipe, apply dotted overrides in order, and check the whole.

    A recipe may inherit: `base: <file or shipped name>` is read first, then mappings are merged and everything else
    is replaced. `null` removes an entry of a free mapping, such as a task.

    Args:
        model: Section at the root of the tree.
        source: YAML file, or the name of a shipped recipe.
        overrides: `path.to.key=value`, the value in YAML.

    Raises:
        UserError: anything is wrong with the file, an override, or the tree they make.
    """
    return check_tree(model, read_recipe(model, source), overrides)


def read_recipe(model: type[Section], source: str) -> Tree:
    """Read a recipe with all that it inherits, as plain values that `check_tree` takes.

    A model with a field `recipe` gets the name of the file there, unless the recipe says another one.

    Raises:
        UserError: the file, or one that it inherits from, cannot be read.
    """
    file = find_source("recipes", source)
    tree = _inherit(file, ())
    _remove_nulls(tree, Slot((model,)))
    if RECIPE in model.model_fields:
        tree.setdefault(RECIPE, file.stem)
    return tree


def check_tree(model: type[SectionT], recipe: Tree, overrides: Sequence[str] = ()) -> SectionT:
    """Apply dotted overrides to a tree as a recipe holds it, and check the whole, as `load_tree` does.

    Raises:
        UserError: anything is wrong with an override, or the tree they make.
    """
    tree = copy.deepcopy(recipe)
    for override in overrides:
        _apply(tree, override, model)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise UserError(_mistyped_entry(recipe, tree, overrides, model) or explain(error, model)) from error


def with_overrides(config: SectionT, overrides: Sequence[str]) -> SectionT:
    """Apply dotted overrides to a tree that is resolved already.

    Raises:
        UserError: an override, or the tree with it, is wrong.
    """
    model = type(config)
    tree = to_dict(config)
    before = copy.deepcopy(tree)
    for override in overrides:
        _apply(tree, override, model)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise UserError(_mistyped_entry(before, tree, overrides, model) or explain(error, model)) from error


def _inherit(path: Path, above: tuple[Path, ...]) -> Tree:
    path = path.resolve()
    if path in above:
        raise UserError(f"{above[-1]}: base: {path.name} would inherit from itself; break the circle")
    tree = read_yaml(path)
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise UserError(f"{path}: base: given {shown(base)}, allowed a YAML file or the name of a shipped recipe")
    try:
        source = find_source("recipes", base, path.parent)
    except UserError as error:
        raise UserError(f"{path}: base: {error}") from error
    return _merge(_inherit(source, (*above, path)), tree)


def _merge(below: Tree, above: Tree) -> Tree:
    """Put one tree over another: mappings merge, except where their `type` changes, and all else replaces."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            old, new = cast("Tree", old), cast("Tree", value)
            retyped = "type" in new and "type" in old and new["type"] != old["type"]
            merged[key] = new if retyped else _merge(old, new)
        else:
            merged[key] = value
    return merged


def _remove_nulls(tree: Tree, slot: Slot) -> None:
    for key in list(tree):
        value = tree[key]
        if value is None and slot.is_mapping:
            del tree[key]
        elif isinstance(value, dict) and (child := slot.child(key)) is not None:
            _remove_nulls(cast("Tree", value), child)


def _apply(tree: Tree, override: str, model: type[Section]) -> None:
    path, separator, text = override.partition("=")
    path = path.strip()
    parts = path.split(".")
    if not separator or not all(parts):
        raise UserError(f"override '{override}': write it as path.to.key=value")
    value = parse(text, path)
    node, slot = tree, Slot((model,))
    for depth, part in enumerate(parts[:-1]):
        inner = slot.child(part) or Slot((Any,))
        child = node.get(part)
        if child is None:
            child = {}
        elif not isinstance(child, dict):
            child = _written_out(child, inner)
            if child is None:
                at = ".".join(parts[: depth + 1])
                raise UserError(f"{path}: '{at}' has no keys, it is {shown(node[part])}")
        node[part] = child
        node, slot = cast("Tree", child), inner
    key = parts[-1]
    if value is None and slot.is_mapping:
        if key not in node:
            raise UserError(f"{path}: no {_entry(parts)} '{key}' to remove; {choices(key, list(node))}")
        del node[key]
    else:
        node[key] = value


def _written_out(short: Any, slot: Slot) -> Tree | None:
    """Return the mapping a short form stands for, such as `{kind: local}` for `local`, if a section here takes it."""
    for section in slot.sections:
        try:
            return section.model_validate(short).model_dump(mode="json", exclude_unset=True)
        except ValidationError:
            continue
    return None


def _entry(parts: Sequence[str]) -> str:
    """Name an entry of a free mapping after it: `task` for one of `tasks`."""
    return parts[-2].removesuffix("s") if len(parts) > 1 else "entry"


def _mistyped_entry(recipe: Tree, tree: Tree, overrides: Sequence[str], model: type[Section]) -> str | None:
    """Explain an override that reached into an entry of a free mapping that is not there, such as a misspelt task."""
    for override in overrides:
        path = override.partition("=")[0].strip()
        parts = path.split(".")
        slot = Slot((model,))
        before: Any = recipe
        after: Any = tree
        for depth, part in enumerate(parts[:-1]):
            before = cast("Tree", before).get(part) if isinstance(before, dict) else None
            after = cast("Tree", after).get(part) if isinstance(after, dict) else None
            inner = slot.child(part)
            if inner is None or not isinstance(after, dict):
                break
            if slot.is_mapping and before is None and (key := inner.discriminator) and key not in after:
                types = literals(inner.child(key) or Slot(()))
                parent = cast("Tree", _at(recipe, parts[:depth]) or {})
                close = nearest(part, parent)
                hint = f"did you mean '{close}'?" if close else f"there are: {', '.join(parent)}"
                new = f"a new one needs {'.'.join(parts[: depth + 1])}.{key}=" + "|".join(map(str, types))
                return f"{path}: no {_entry(parts[: depth + 1])} '{part}'; " + (hint if close else f"{hint}; {new}")
            slot = inner
    return None


def _at(tree: Tree, parts: Sequence[str]) -> Any:
    node: Any = tree
    for part in parts:
        node = cast("Tree", node).get(part) if isinstance(node, dict) else None
    return node


# --- the tree as text --------------------------------------------------------------------------------------------


def to_dict(config: Section) -> Tree:
    """Return the tree as plain JSON values."""
    return config.model_dump(mode="json")


def flatten(config: Section) -> dict[str, str]:
    """Return the tree as dotted path -> text, as parameters of a tracked run; text stays bare, the rest is JSON."""
    flat: dict[str, str] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in cast("Tree", value).items():
                add(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[prefix] = value if isinstance(value, str) else json.dumps(value)

    add("", to_dict(config))
    return flat


def describe(config: Section) -> str:
    """Return the resolved tree as YAML with each field's help as a trailing comment; it can be read back."""
    lines: list[str] = []
    _describe(config, "", lines)
    return "\n".join(lines) + "\n"


def _describe(value: Section | Mapping[str, Any], indent: str, lines: list[str]) -> None:
    fields = type(value).model_fields if isinstance(value, Section) else {}
    plain = cast("Tree", value.model_dump(mode="json") if isinstance(value, Section) else value)
    for key in plain:
        inner: Any = getattr(value, key) if isinstance(value, Section) else plain[key]
        help_text = " ".join((fields[key].description or "").split()) if key in fields else ""
        if isinstance(inner, (Section, dict)) and plain[key]:
            _append(lines, f"{indent}{one_line(key)}:", help_text)
            _describe(cast("Section | Tree", inner), indent + "  ", lines)
        else:
            _append(lines, f"{indent}{one_line(key)}: {one_line(plain[key])}", help_text)


def _append(lines: list[str], text: str, help_text: str) -> None:
    lines.append(f"{text:<{_COMMENT_COLUMN}}  # {help_text}" if help_text else text)
