"""Seeded damage: the same seed always spoils the same input in the same way."""

import json
import random
import struct
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Damage = Callable[[bytearray, random.Random], bytes]


# --- bytes --------------------------------------------------------------------------------------------------------


def _place(data: bytearray, draw: random.Random) -> int:
    """Somewhere; the first bytes, where headers are, are as likely as all others together."""
    return draw.randrange(min(len(data), 64) if draw.random() < 0.5 else len(data))


def _run(data: bytearray, draw: random.Random) -> slice:
    start = _place(data, draw)
    return slice(start, start + draw.choice((1, 2, 7, 64, 512, len(data) // 3 + 1)))


def _flip_bit(data: bytearray, draw: random.Random) -> bytes:
    data[_place(data, draw)] ^= 1 << draw.randrange(8)
    return bytes(data)


def _flip_bits(data: bytearray, draw: random.Random) -> bytes:
    for _ in range(draw.randint(2, 20)):
        _flip_bit(data, draw)
    return bytes(data)


def _truncate(data: bytearray, draw: random.Random) -> bytes:
    return bytes(data[: draw.choice((0, 1, len(data) // 2, len(data) - 1, _place(data, draw)))])


def _delete(data: bytearray, draw: random.Random) -> bytes:
    del data[_run(data, draw)]
    return bytes(data)


def _duplicate(data: bytearray, draw: random.Random) -> bytes:
    run = _run(data, draw)
    data[run.start : run.start] = data[run]
    return bytes(data)


def _swap(data: bytearray, draw: random.Random) -> bytes:
    size = draw.choice((1, 4, 64, 512))
    one, other = (draw.randrange(len(data) // size + 1) * size for _ in range(2))
    first, second = data[one : one + size], data[other : other + size]
    data[one : one + len(second)] = second
    data[other : other + len(first)] = first
    return bytes(data)


def _overwrite(data: bytearray, draw: random.Random) -> bytes:
    place = _place(data, draw)
    huge = (b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 1 << 62), b"9" * 30, b"-1", b"NaN", b'"', b"\n", b",,")
    data[place : place + draw.choice((0, 1, 8))] = draw.choice(huge)
    return bytes(data)


def _append(data: bytearray, draw: random.Random) -> bytes:
    return bytes(data) + draw.choice((b"\0", b"}", b"\n\n", bytes(data), draw.randbytes(700)))


def _encode(data: bytearray, draw: random.Random) -> bytes:
    """Save text as another program would."""
    text = bytes(data).decode("latin-1")
    return draw.choice((text.encode("utf-16"), text.encode("utf-8-sig"), b"\xe9" + data, text.encode("utf-16-be")))


def _nest(data: bytearray, draw: random.Random) -> bytes:
    """Brackets without end, which readers that call themselves do not survive."""
    return draw.choice((b"[", b'{"a":', b"- ")) * draw.choice((200, 200_000))


BYTE_DAMAGE: tuple[Damage, ...] = (
    *(_flip_bit, _flip_bits, _truncate, _delete, _duplicate, _swap, _overwrite, _append, _encode, _nest),
)


def spoil_bytes(data: bytes, draw: random.Random) -> bytes:
    """Damage bytes in one way, so that they differ; empty ones are left as they are."""
    spoilt = data
    while spoilt == data and data:
        spoilt = draw.choice(BYTE_DAMAGE)(bytearray(data), draw)
    return spoilt


# --- trees --------------------------------------------------------------------------------------------------------

_DEEP: Any = json.loads("[" * 90 + "]" * 90)
STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1 << 62, 10**40, 1e308, -0.5, float("nan"), float("inf")),
    *("", "text", "1", "nan", "x" * 5000, "../../outside", "/etc/passwd", "\ud800", "\0", "s3://", "{}"),
    *([], {}, [[]], {"": {}}, [None], _DEEP),
)
"""What stands where something else is expected."""


def spoil_tree(tree: Any, draw: random.Random) -> Any:
    """Damage a copy of a JSON tree at one node: another value, a missing, renamed or doubled entry."""
    copy: Any = json.loads(json.dumps(tree))
    nodes: list[tuple[Any, Any]] = []
    _collect(copy, nodes)
    parent, key = draw.choice(nodes)
    action = draw.choice(("replace", "replace", "replace", "remove", "rename", "double"))
    if action == "replace":
        parent[key] = draw.choice(STRANGE)
    elif action == "remove":
        del parent[key]
    elif isinstance(parent, dict):
        parent[f"{key}x"] = parent[key] if action == "double" else cast("dict[str, Any]", parent).pop(key)
    else:
        parent.insert(key, parent[key])
    return copy


def _collect(node: Any, nodes: list[tuple[Any, Any]]) -> None:
    for key in list(cast("dict[str, Any]", node)) if isinstance(node, dict) else range(len(node)):
        nodes.append((cast("Any", node), key))
        if isinstance(node[key], (dict, list)):
            _collect(node[key], nodes)


# --- tables -------------------------------------------------------------------------------------------------------

Columns = dict[str, NDArray[Any]]


def spoil_columns(columns: Columns, draw: random.Random) -> Columns:
    """Damage a table at one column: values, type, length or name."""
    spoilt: Columns = {name: column.copy() for name, column in columns.items()}
    name = draw.choice(sorted(spoilt))
    column = spoilt[name]
    others: list[Callable[[], NDArray[Any]]] = [
        lambda: column[:-1],
        lambda: np.concatenate([column, column]),
        lambda: column[..., None],
        lambda: np.flip(column, 0),
        lambda: np.zeros(0, column.dtype),
        lambda: np.array(7),
        lambda: column.astype("S3"),
        lambda: np.full(len(column), np.nan),
        lambda: np.full(len(column), -1),
        lambda: np.full(len(column), 1 << 62),
        lambda: np.full(len(column), np.iinfo(np.uint64).max, np.uint64),
        lambda: np.full(len(column), b"../../outside"),
        lambda: np.full(len(column), b"\xff\xfe"),
        lambda: np.full(len(column), 1j),
        lambda: np.full(len(column), np.datetime64("2020-01-01")),
    ]
    action = draw.randrange(len(others) + 2)
    if action < len(others):
        spoilt[name] = others[action]()
    elif action == len(others):
        spoilt[draw.choice(("x", "../x", "label.x", "", "label_counts.x"))] = spoilt.pop(name)
    else:
        flat = column.reshape(-1).view(np.uint8)
        flat[draw.randrange(len(flat))] ^= 1 << draw.randrange(8)
    return spoilt
