# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false, reportUnknownVariableType=false
"""Writing shards and their index: tars that are the same for the same samples, tables beside them, headers last."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy as np
import xxhash
from numpy.typing import NDArray

from hmtl_dist.data.dataset.index import COUNTS, LABEL
from hmtl_dist.data.dataset.schema import DatasetHeader, Field, IndexHeader, LabelValue
from hmtl_dist.data.dataset.tables import Column, decode_table, encode_table, text_column
from hmtl_dist.data.storage import Storage
from hmtl_dist.data.storage.hashing import HashingWriter

_TAR_BLOCK = 512


@dataclass(frozen=True)
class ShardSample:
    """A sample on its way into a shard."""

    key: str
    """WebDataset key: unique in its split, ASCII, without dots."""
    extension: Literal["jpg", "png"]
    """Format of the picture."""
    picture: bytes
    """The encoded picture."""
    labels: Mapping[str, LabelValue]
    """Readable labels."""
    group: str | None = None
    """Who or what the sample belongs to."""
    source: str = ""
    """Where the picture came from, for people; kept in KEY.json."""


@dataclass(frozen=True)
class SampleRow:
    """A sample that lies in a tar."""

    key: str
    offset: int
    length: int
    digest: int
    labels: Mapping[str, LabelValue]
    group: str | None


@dataclass(frozen=True)
class ShardRecord:
    """A row of the table of shards."""

    name: str
    """Key of the tar, relative to the data set's URL."""
    num_bytes: int
    sha256: bytes
    table_sha256: bytes
    num_samples: int
    label_counts: Mapping[str, NDArray[np.int64]]


def write_tar(path: Path, samples: Iterable[ShardSample], group: str | None) -> tuple[list[SampleRow], int, bytes]:
    """Write a tar through `webdataset.TarWriter`: the same samples always give the same bytes.

    Args:
        path: the tar.
        samples: in the order to write.
        group: what groups are called in KEY.json, None for none.

    Returns:
        Its rows, its bytes and its SHA-256.
    """
    # webdataset imports torch, which takes seconds: who only reads an index need not wait for it.
    from webdataset.writer import TarWriter

    rows: list[SampleRow] = []
    with path.open("wb") as file:
        hashing = HashingWriter(file)
        with TarWriter(cast(BinaryIO, hashing), encoder=False, mtime=0, user="", group="") as writer:
            for sample in samples:
                begin = writer.tarstream.offset
                writer.write(
                    {
                        "__key__": sample.key,
                        sample.extension: sample.picture,
                        "json": _readable(sample, group),
                    }
                )
                # TarWriter sorts by extension: a jpg comes before the json, a png after it.
                length = len(sample.picture)
                last = writer.tarstream.offset - -(-length // _TAR_BLOCK) * _TAR_BLOCK
                offset = begin + _TAR_BLOCK if sample.extension == "jpg" else last
                digest = xxhash.xxh3_64_intdigest(sample.picture)
                rows.append(SampleRow(sample.key, offset, length, digest, sample.labels, sample.group))
    return rows, hashing.size, hashing.sha256.digest()


def _readable(sample: ShardSample, group: str | None) -> bytes:
    entries: dict[str, LabelValue] = {"source": sample.source} if sample.source else {}
    if group is not None:
        entries[group] = sample.group
    return json.dumps(entries | dict(sample.labels), ensure_ascii=False, sort_keys=True).encode()


def sample_columns(rows: Sequence[SampleRow], fields: Mapping[str, Field], group: str | None) -> dict[str, Column]:
    """The side table of a shard: categories by number (-1 for none), numbers with NaN for none."""
    columns: dict[str, Column] = {
        "offset": np.array([row.offset for row in rows], dtype=np.int64),
        "length": np.array([row.length for row in rows], dtype=np.int64),
        "digest": np.array([row.digest for row in rows], dtype=np.uint64),
        "key": text_column([row.key for row in rows]),
    }
    if group is not None:
        columns["group"] = text_column([row.group or "" for row in rows])
    for name, field in fields.items():
        values = [row.labels.get(name) for row in rows]
        if field.kind == "category":
            number = {known: place for place, known in enumerate(field.classes)}
            codes = [-1 if value is None else number[str(value)] for value in values]
            columns[LABEL + name] = np.array(codes, dtype=np.int32)
        else:
            numbers = [np.nan if value is None else float(value) for value in values]
            columns[LABEL + name] = np.array(numbers, dtype=np.float32)
    return columns


def shard_record(name: str, table: bytes, fields: Mapping[str, Field], *, num_bytes: int, sha256: bytes) -> ShardRecord:
    """The row of a shard in the table of shards, from the bytes of its side table."""
    columns = decode_table(table)
    counts = {
        label: np.bincount(codes[codes >= 0], minlength=len(field.classes)).astype(np.int64)
        for label, field in fields.items()
        if field.kind == "category"
        for codes in (columns[LABEL + label],)
    }
    return ShardRecord(name, num_bytes, sha256, hashlib.sha256(table).digest(), len(columns["offset"]), counts)


def write_index(
    storage: Storage,
    dataset: str,
    split: str,
    records: Sequence[ShardRecord],
    *,
    fields: Mapping[str, Field],
    group: str | None,
) -> IndexHeader:
    """Write the index of a split, whose tars and side tables are already there; the header comes last.

    Args:
        storage: the data set's root.
        dataset: name of the data set.
        split: name of the split.
        records: its shards, in order.
        fields: labels of the samples.
        group: what groups are called, None for none.
    """
    columns: dict[str, Column] = {
        "name": text_column([record.name for record in records]),
        "num_samples": np.array([record.num_samples for record in records], dtype=np.int64),
        "num_bytes": np.array([record.num_bytes for record in records], dtype=np.int64),
        "sha256": _digests([record.sha256 for record in records]),
        "table_sha256": _digests([record.table_sha256 for record in records]),
    }
    label_counts: dict[str, list[int]] = {}
    for name, field in fields.items():
        if field.kind == "category":
            counts = np.array([record.label_counts[name] for record in records], dtype=np.int64)
            counts = counts.reshape(len(records), len(field.classes))
            columns[COUNTS + name] = counts.astype(np.int32)
            label_counts[name] = [int(count) for count in counts.sum(axis=0)]
    table = encode_table(columns)
    header = IndexHeader(
        dataset=dataset,
        split=split,
        fields=dict(fields),
        group=group,
        num_samples=int(columns["num_samples"].sum()),
        num_shards=len(records),
        num_bytes=int(columns["num_bytes"].sum()),
        label_counts=label_counts,
    ).sealed(table)
    storage.write(f"{split}/shards.npz", table)
    storage.write(f"{split}/index.json", header.model_dump_json(indent=1).encode() + b"\n")
    return header


def write_dataset(storage: Storage, dataset: str, splits: Sequence[str]) -> None:
    """Name the splits of a data set whose indexes are written: from now on it is complete."""
    header = DatasetHeader(dataset=dataset, splits=tuple(splits))
    storage.write("dataset.json", header.model_dump_json(indent=1).encode() + b"\n")


def _digests(digests: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(digests), 32)
