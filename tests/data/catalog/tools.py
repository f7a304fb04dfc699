"""Drawn faces in files, and what is read of trees of them."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hmtl_dist.config.dialect import parse
from hmtl_dist.data.catalog.registry import data_sets, open_data_set
from hmtl_dist.data.dataset.adapter import Adapter, Rejected, SampleRef
from hmtl_dist.data.dataset.build import BuildReport, BuildSettings, build
from hmtl_dist.data.dataset.index import open_index
from hmtl_dist.data.dataset.split import parse_split
from hmtl_dist.data.decode import Picture, decode
from hmtl_dist.data.drawn.face import Face
from hmtl_dist.data.drawn.faces import face_at, face_jpeg

NO_PICTURE = b"this is no picture"


@dataclass(frozen=True)
class Drawn:
    """A drawn face with what is known of it."""

    face: Face
    jpeg: bytes
    side: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height of the head, in pixels."""
        half = self.face.scene.scale * self.side
        x, y = (place * self.side for place in self.face.scene.centre)
        return round(x - half), round(y - half), round(2 * half), round(2 * half)

    @property
    def landmarks(self) -> NDArray[np.float64]:
        """68 points [68, 2] that reach from the brows to the chin, as landmarks do."""
        left, top, width, height = self.box
        turn = np.linspace(0, 2 * np.pi, 68, endpoint=False)
        return np.stack([left + width * (0.5 + 0.4 * np.cos(turn)), top + height * (0.6 + 0.4 * np.sin(turn))], axis=1)


def drawn(index: int, expression: str | None = None, people: int = 100_000, side: int = 96, seed: int = 5) -> Drawn:
    """Face `index`; the one after it with the wanted expression, where one is wanted."""
    while expression is not None and face_at(seed, index, people).expression != expression:
        index += people
    return Drawn(face_at(seed, index, people), face_jpeg(seed, index, people, side), side)


def png(jpeg: bytes, *, grey: bool = False) -> bytes:
    picture = Image.fromarray(decode(jpeg))
    buffer = io.BytesIO()
    (picture.convert("L") if grey else picture).save(buffer, "PNG")
    return buffer.getvalue()


def write(file: Path, data: bytes | str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data if isinstance(data, bytes) else data.encode())


def write_csv(file: Path, rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write(file, text.getvalue())


# --- what is read of a tree ----------------------------------------------------------------------------------------


def opened(name: str, source: Path, *options: str) -> Adapter:
    """The adapter with options as `key=value`, the value in YAML."""
    return open_data_set(
        name, source, {key: parse(text, key) for key, _, text in (one.partition("=") for one in options)}
    )


def refs_of(name: str, source: Path, *options: str) -> dict[str, SampleRef]:
    """The samples by name."""
    return {ref.name: ref for ref in opened(name, source, *options).refs() if isinstance(ref, SampleRef)}


def rejected_of(name: str, source: Path, *options: str) -> dict[str, str]:
    """The reasons by name, of what is left out before pictures are loaded."""
    return {ref.name: ref.reason for ref in opened(name, source, *options).refs() if isinstance(ref, Rejected)}


def built(name: str, source: Path, out: Path, *options: str) -> BuildReport:
    """The set as `hmtl-dist data build` makes it."""
    adapter = opened(name, source, *options)
    shares = {} if adapter.splits else parse_split(data_sets()[name].splits)
    settings = BuildSettings(dataset=name, splits=shares, shard_samples=16, drop_duplicates=True)
    return build(adapter, str(out), settings)


def reasons(report: BuildReport) -> dict[str, str]:
    return {row.name: row.reason for row in report.rejected}


def stored(out: Path, split: str) -> dict[str, Picture]:
    """The pictures of a split by the stem of their names."""
    index = open_index(str(out), split)
    found: dict[str, Picture] = {}
    for shard in range(len(index)):
        table = index.samples(shard)
        data = index.storage.read(index.names[shard])
        for key, start, length in zip(table.key, table.offset, table.length, strict=True):
            found[str(key).partition("-")[2]] = decode(data[start : start + length])
    return found
