"""Files of pictures to predictions: found, read and decoded by threads, a batch ahead of the model.

A picture is taken as the face: nothing here looks for one.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hmtl_dist.data.decode import DecodeError
from hmtl_dist.data.storage import ObjectMissingError, Storage, open_storage
from hmtl_dist.errors import UserError
from hmtl_dist.inference.predictor import MAX_BATCH, Predictor

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""What is taken for a picture in a folder; a file that is named is tried whatever its name."""
MAX_BYTES = 64 << 20
"""Larger files are no pictures of faces."""
THREADS = 8


@dataclass(frozen=True)
class PictureFile:
    """A file that may be a picture."""

    name: str
    """As a person would name it."""
    storage: Storage
    key: str
    size: int


@dataclass(frozen=True)
class Answer:
    """What a model says of a picture, or why it says nothing."""

    name: str
    values: dict[str, float]
    """By column; empty where the file could not be read."""
    error: str = ""


def find_pictures(sources: Sequence[str]) -> tuple[list[PictureFile], int]:
    """List the pictures that files, folders and `s3://` URLs stand for, folders with all below them.

    Returns:
        The pictures in the order given, each folder's by name; and how many files of folders are none by their name.

    Raises:
        UserError: One of them is not there, or its storage does not answer.
    """
    found: list[PictureFile] = []
    passed_over = 0
    for source in sources:
        storage = open_storage(source)
        if "://" not in source and not Path(source).is_dir():
            found.append(_named(source))
            continue
        under = source.rstrip("/")
        inside = [PictureFile(f"{under}/{info.key}", storage, info.key, info.size) for info in storage.list()]
        if not inside and "://" in source:
            found.append(_named(source))
            continue
        pictures = [file for file in inside if file.key.lower().endswith(SUFFIXES)]
        passed_over += len(inside) - len(pictures)
        found += pictures
    if not found:
        raise UserError(f"{', '.join(sources)}: no pictures there ({', '.join(SUFFIXES)})")
    return found, passed_over


def _named(source: str) -> PictureFile:
    folder, _, key = source.rstrip("/").rpartition("/")
    if not key or folder.endswith(":/"):
        raise UserError(f"{source}: no picture there; give a file, a folder or s3://BUCKET/PREFIX")
    storage = open_storage(folder or ("/" if source.startswith("/") else "."))
    try:
        return PictureFile(source, storage, key, storage.stat(key).size)
    except ObjectMissingError as error:
        raise UserError(f"{source}: no picture there; give a file, a folder or s3://BUCKET/PREFIX") from error


def predict_files(
    predictor: Predictor,
    files: Sequence[PictureFile],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Answer]:
    """Predict from files in batches; one that cannot be read is answered with the reason, and the rest is done.

    Args:
        predictor: The model.
        files: What to read.
        on_progress: Called with files done and all files, after every batch.
    """
    parts = [files[begin : begin + MAX_BATCH] for begin in range(0, len(files), MAX_BATCH)]
    done = 0
    with ThreadPoolExecutor(THREADS, "pictures") as readers, ThreadPoolExecutor(1, "batches") as ahead:
        reading = ahead.submit(_read, readers, predictor, parts[0]) if parts else None
        for number, part in enumerate(parts):
            pictures, errors = reading.result() if reading else (predictor.empty(0), [])
            if number + 1 < len(parts):
                reading = ahead.submit(_read, readers, predictor, parts[number + 1])
            good = [row for row, error in enumerate(errors) if not error]
            table = predictor.predict(pictures[good])
            columns = list(table)
            values = np.column_stack([table[column] for column in columns]).tolist()
            answered = {row: dict(zip(columns, line, strict=True)) for row, line in zip(good, values, strict=True)}
            for row, file in enumerate(part):
                yield Answer(file.name, answered.get(row, {}), errors[row])
            done += len(part)
            on_progress(done, len(files))


def _read(
    readers: ThreadPoolExecutor, predictor: Predictor, part: Sequence[PictureFile]
) -> tuple[NDArray[np.uint8], list[str]]:
    pictures = predictor.empty(len(part))

    def read(file: PictureFile, row: NDArray[np.uint8]) -> str:
        if file.size > MAX_BYTES:
            return f"{file.size:,} bytes; at most {MAX_BYTES:,} are read"
        try:
            predictor.decode_into(file.storage.read(file.key), row)
        except (DecodeError, UserError) as error:
            return " ".join(str(error).split()) or "cannot be read"
        return ""

    return pictures, list(readers.map(read, part, pictures))
