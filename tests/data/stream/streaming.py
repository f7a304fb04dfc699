"""A small data set and a plain transform for the tests of the stream; workers import this module."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hmtl_dist import rng
from hmtl_dist.data.dataset.index import ShardIndex, open_index
from hmtl_dist.data.dataset.schema import Field, LabelValue
from hmtl_dist.data.dataset.tables import encode_table
from hmtl_dist.data.dataset.writing import (
    ShardRecord,
    ShardSample,
    sample_columns,
    shard_record,
    write_index,
    write_tar,
)
from hmtl_dist.data.decode import decode
from hmtl_dist.data.storage import open_storage
from hmtl_dist.data.stream.plan import Plan

FIELDS = {"mood": Field(kind="category", classes=("calm", "glad", "cross")), "yaw": Field(kind="number", unit="deg")}
MOODS = FIELDS["mood"].classes


def jpeg(number: int, side: int = 48, quality: int = 90) -> bytes:
    """A picture that shows its number: one grey level and some texture."""
    generator = np.random.default_rng(number)
    pixels = np.clip(generator.normal(number * 37 % 256, 20, (side, side, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def labels_of(n: int) -> dict[str, LabelValue]:
    """Sample n has mood n % 3 (none if n % 5 == 4) and yaw n / 2 (none if n % 7 == 6)."""
    return {"mood": None if n % 5 == 4 else MOODS[n % 3], "yaw": None if n % 7 == 6 else n / 2}


def make_set(
    url: str,
    folder: Path,
    sizes: Sequence[int],
    *,
    broken: Sequence[int] = (),
    side: int = 48,
    pictures: Mapping[int, bytes] | None = None,
    fields: Mapping[str, Field] = FIELDS,
    labels: Callable[[int], dict[str, LabelValue]] = labels_of,
    group: Callable[[int], str] | None = None,
) -> ShardIndex:
    """Write a data set with one split `train` of shards of the given sizes; `broken` samples are no pictures."""
    storage = open_storage(url)
    records: list[ShardRecord] = []
    first = 0
    for shard, size in enumerate(sizes):
        samples = [
            ShardSample(
                key=f"{n:06d}",
                extension="jpg",
                picture=f"broken {n}".encode() * 40 if n in broken else (pictures or {}).get(n) or jpeg(n, side),
                labels=labels(n),
                group=group(n) if group else None,
            )
            for n in range(first, first + size)
        ]
        tar = folder / "shard.tar"
        who = "who" if group else None
        rows, num_bytes, sha256 = write_tar(tar, samples, who)
        table = encode_table(sample_columns(rows, fields, who))
        name = f"train/shard-{shard:06d}"
        storage.upload(f"{name}.tar", tar)
        storage.write(f"{name}.npz", table)
        records.append(shard_record(f"{name}.tar", table, fields, num_bytes=num_bytes, sha256=sha256))
        first += size
    write_index(storage, "test", "train", records, fields=fields, group="who" if group else None)
    return open_index(url, "train")


def make_plan(
    index: ShardIndex, *, batch_size: int = 24, lanes: int = 6, shuffle: bool = True, block: int = 16
) -> Plan:
    return Plan(index.num_samples, batch_size=batch_size, lanes=lanes, seed=7, shuffle=shuffle, block=block)


class Resize:
    """Decode, resize, add a drawn brightness; add the same to the number labels, as geometry would."""

    def draw(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.floor(rng.uniform(7, epoch, positions, rng.Purpose.AUGMENT_GEOMETRY, 1) * 8)

    def picture(self, encoded: bytes, params: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
        small = cv2.resize(decode(encoded), (out.shape[1], out.shape[0]), interpolation=cv2.INTER_AREA)
        np.add(small // 2, np.uint8(params[0]), out=out)

    def labels(self, labels: dict[str, NDArray[Any]], params: NDArray[np.float32]) -> None:
        for column in labels.values():
            if column.dtype == np.float32:
                np.add(column, params[:, 0], out=column)


class Ignore(Resize):
    """A transform that does not look at the bytes."""

    def picture(self, encoded: bytes, params: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
        out[:] = len(encoded) % 256


class Crash(Resize):
    """A transform with a fault of the program."""

    def picture(self, encoded: bytes, params: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
        raise ZeroDivisionError("a fault of the program")
