"""Columns of numbers and short texts as the bytes of an uncompressed ``.npz`` file, read without copying or pickles."""

import io
import math
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[Any]

_LOCAL_HEADER = 30
"""Bytes of a zip entry's header before its name; the lengths of name and extra field are its last four bytes."""


_PREFIX = 10
"""Bytes of a column before its description: the mark, the version, the description's length."""
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '([<|](?:[iuf][1248]|S[1-9][0-9]{0,5}))', 'fortran_order': False, "
    rb"'shape': \(((?:[0-9]{1,18}(?:, ?)?){0,4})\), \} *\n",
    re.DOTALL,
)
"""What `encode_table` writes. numpy's own reader evaluates the description as Python, which fails at times when several
threads of Python 3.11 do so at once (https://github.com/python/cpython/issues/106905)."""


def encode_table(columns: Mapping[str, Column]) -> bytes:
    """Bytes of a table; the same columns always give the same bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **columns)
    return buffer.getvalue()


def decode_table(data: bytes) -> dict[str, Column]:
    """Columns of a table as read-only views of `data`: nothing is copied, so a table of 10⁶ rows costs its bytes.

    Raises:
        ValueError: when `data` is not a table written by `encode_table`.
    """
    columns: dict[str, Column] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                columns[entry.filename.removesuffix(".npy")] = _view(data, entry)
    except (zipfile.BadZipFile, struct.error, EOFError, SyntaxError) as error:
        raise ValueError(f"not a table: {error}") from error
    return columns


def _view(data: bytes, entry: zipfile.ZipInfo) -> Column:
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"column {entry.filename} is compressed")
    name_length, extra_length = struct.unpack_from("<HH", data, entry.header_offset + _LOCAL_HEADER - 4)
    start = entry.header_offset + _LOCAL_HEADER + name_length + extra_length
    found = _HEADER.match(data, start, min(start + entry.file_size, len(data)))
    if found is None or len(found[0]) != _PREFIX + int.from_bytes(found[1], "little"):
        raise ValueError(f"column {entry.filename} is no plain column, or damaged")
    dtype = np.dtype(found[2].decode())
    shape = tuple(int(length) for length in found[3].replace(b",", b" ").split())
    count = math.prod(shape)
    if len(found[0]) + count * dtype.itemsize != entry.file_size:
        raise ValueError(f"column {entry.filename} is cut")
    return np.frombuffer(data, dtype, count, found.end()).reshape(shape)


def column_of(columns: Mapping[str, Column], name: str, kinds: str, shape: tuple[int | None, ...]) -> Column:
    """A column of a table, if it is what it should be.

    Args:
        columns: the table.
        name: of the column.
        kinds: what numpy's one letter for its type may be, such as `iu` for whole numbers.
        shape: what its shape must be; None where any length will do.

    Raises:
        ValueError: when it is not there, of another type or shape, or its texts are not UTF-8.
    """
    if name not in columns:
        raise ValueError(f"column {name} is missing")
    column = columns[name]
    fits = len(column.shape) == len(shape) and all(
        wanted in (None, found) for wanted, found in zip(shape, column.shape, strict=True)
    )
    if column.dtype.kind not in kinds or not fits:
        wanted = " x ".join("n" if length is None else str(length) for length in shape)
        raise ValueError(f"column {name} holds {column.dtype} {list(column.shape)}, not {kinds} [{wanted}]")
    if kinds == "S" and column.size and column.view(np.uint8).max() > 127:
        np.char.decode(column, "utf-8")
    return column


def text_column(texts: Sequence[str]) -> Column:
    """Texts as fixed-width UTF-8 bytes, a quarter of numpy's own text type."""
    encoded = [text.encode() for text in texts]
    return np.array(encoded, dtype=f"S{max((len(text) for text in encoded), default=0) or 1}")


def texts_of(column: Column) -> NDArray[np.str_]:
    """Texts of a `text_column`."""
    return np.char.decode(column, "utf-8") if column.size else np.empty(0, dtype=np.str_)
