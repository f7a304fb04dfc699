"""Columns of numbers and short texts as the bytes of an uncompressed ``.npz`` file, read without copying or pickles."""

import io
import math
import struct
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[Any]

_LOCAL_HEADER = 30
"""Bytes of a zip entry's header before its name; the lengths of name and extra field are its last four bytes."""


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
    header = io.BytesIO(data[start : start + min(entry.file_size, 1024)])
    if np.lib.format.read_magic(header) != (1, 0):
        raise ValueError(f"column {entry.filename} has an unknown version")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(header)
    if dtype.hasobject or fortran_order:
        raise ValueError(f"column {entry.filename} is no plain column")
    count = math.prod(shape)
    if header.tell() + count * dtype.itemsize != entry.file_size:
        raise ValueError(f"column {entry.filename} is cut")
    return np.frombuffer(data, dtype, count, start + header.tell()).reshape(shape)


def text_column(texts: Sequence[str]) -> Column:
    """Texts as fixed-width UTF-8 bytes, a quarter of numpy's own text type."""
    encoded = [text.encode() for text in texts]
    return np.array(encoded, dtype=f"S{max((len(text) for text in encoded), default=0) or 1}")


def texts_of(column: Column) -> NDArray[np.str_]:
    """Texts of a `text_column`."""
    return np.char.decode(column, "utf-8") if column.size else np.empty(0, dtype=np.str_)
