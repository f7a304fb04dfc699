# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false, reportUnknownVariableType=false
"""Shards of a data set: plain WebDataset tars, and beside them an index that says where every sample lies.

- `URL/dataset.json`: the splits; written last, a set without it is not complete.
- `URL/<split>/index.json`: small header: fields, counts, digest of the whole.
- `URL/<split>/shards.npz`: a row a shard: name, samples, bytes, digests, label counts.
- `URL/<split>/shard-000000.tar`: KEY.jpg + KEY.json, readable by webdataset alone.
- `URL/<split>/shard-000000.npz`: a row a sample: offset, length, digest, labels, group, key.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from hmtl_dist.data.dataset.schema import FORMAT_VERSION, DatasetHeader, Field, IndexHeader
from hmtl_dist.data.dataset.tables import Column, column_of, decode_table, texts_of
from hmtl_dist.data.storage import Storage, open_storage
from hmtl_dist.data.storage.cache import ShardCache
from hmtl_dist.errors import UserError

DIGEST_RETRIES = 3
"""How often bytes whose digest does not match are read again before it is known that not the way is at fault."""
CACHED_TABLES = 8
"""Side tables a `ShardIndex` keeps in memory."""

LABEL = "label."
"""Before a label's name in the column of a side table."""
COUNTS = "label_counts."
"""Before a label's name in the columns of the table of shards."""
_SHA256_BYTES = 32


@dataclass(frozen=True)
class SampleTable:
    """The samples of one shard, a row each, in the order of the tar."""

    offset: NDArray[np.int64]
    """Where the picture's bytes begin in the tar [n]."""
    length: NDArray[np.int64]
    """Bytes of the picture [n]."""
    digest: NDArray[np.uint64]
    """xxh3_64 of the picture's bytes [n]."""
    labels: Mapping[str, NDArray[Any]]
    """Categories as int64 [n] with -1 for none, numbers as float32 [n] with NaN for none."""
    key_bytes: Column
    """Keys in UTF-8 [n]."""
    group_bytes: Column | None
    """Groups in UTF-8 [n]; empty for none."""

    @cached_property
    def key(self) -> NDArray[np.str_]:
        """WebDataset keys [n]."""
        return texts_of(self.key_bytes)

    @cached_property
    def group(self) -> NDArray[np.str_] | None:
        """Groups [n], empty text for none; None when the data set has no groups."""
        return None if self.group_bytes is None else texts_of(self.group_bytes)

    def __len__(self) -> int:
        return len(self.offset)


class ShardNames(Sequence[str]):
    """Keys of the tars, relative to the data set's URL, made into text when asked for."""

    def __init__(self, column: Column) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [cast(bytes, name).decode() for name in self._column[index]]
        return cast(bytes, self._column[index]).decode()


class ShardIndex:
    """Index of one split; columns only, so that 10⁶ shards open in moments. Made by `open_index`; safe in threads.

    Pickled by address: the copy opens the same index again, and raises when it is no longer the same.
    """

    def __init__(
        self, url: str, storage: Storage, header: IndexHeader, shards_table: bytes, cache: ShardCache | None = None
    ) -> None:
        columns = decode_table(shards_table)
        shards = header.num_shards
        self.url = url
        """Address of the data set (without the split)."""
        self.storage = storage
        """The data set's root: `names` are keys in it."""
        self.header = header
        """Fields, counts, digest."""
        self._cache = cache
        self.names: Sequence[str] = ShardNames(column_of(columns, "name", "S", (shards,)))
        """Key of each tar in `storage`."""
        self.num_samples: NDArray[np.int64] = np.array(
            column_of(columns, "num_samples", "i", (shards,)), dtype=np.int64
        )
        """Samples of each shard [S]."""
        self.num_bytes: NDArray[np.int64] = np.array(column_of(columns, "num_bytes", "i", (shards,)), dtype=np.int64)
        """Bytes of each tar [S]."""
        self.sha256: NDArray[np.uint8] = column_of(columns, "sha256", "u", (shards, _SHA256_BYTES))
        """SHA-256 of each tar [S, 32]."""
        self.label_counts: Mapping[str, NDArray[np.int32]] = {
            name: column_of(columns, COUNTS + name, "i", (shards, len(field.classes)))
            for name, field in header.fields.items()
            if field.kind == "category"
        }
        """Samples of each class in each shard [S, C], for the categories."""
        self._table_sha256 = column_of(columns, "table_sha256", "u", (shards, _SHA256_BYTES))
        self._tables: OrderedDict[int, SampleTable] = OrderedDict()
        self._lock = threading.Lock()
        _check_counts(self)

    def __len__(self) -> int:
        return len(self.names)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.url, self.header.split, self.header.digest, self._cache)

    @property
    def parts(self) -> "Sequence[ShardIndex]":
        """This set alone: what a mix of several has more of."""
        return (self,)

    def home(self, shard: int) -> "tuple[ShardIndex, int]":
        """The set that holds a shard, which is this one, and the shard's number in it."""
        return self, shard

    def shard_url(self, shard: int) -> str:
        """URL of a shard's tar."""
        return f"{self.url}/{self.names[shard]}"

    def read(self, shard: int, start: int, length: int, *, again: bool = False) -> bytes:
        """Read `length` bytes of a shard's tar from byte `start` on, through the machine's cache if there is one.

        Args:
            shard: its number.
            start: first byte.
            length: bytes.
            again: what was read before is wrong: ask the storage, and keep nothing of before.
        """
        key = self.names[shard]
        if self._cache is None:
            return self.storage.read(key, start=start, length=length)
        sha256 = self.sha256[shard].tobytes()
        if again:
            self._cache.drop(sha256)
            return self.storage.read(key, start=start, length=length)
        return self._cache.read(self.storage, key, sha256, int(self.num_bytes[shard]), start=start, length=length)

    def samples(self, shard: int) -> SampleTable:
        """The samples of a shard: one read, checked against its digest; the last few are kept.

        Raises:
            UserError: when the side table is missing, damaged, or says what cannot be.
        """
        with self._lock:
            if shard in self._tables:
                self._tables.move_to_end(shard)
                return self._tables[shard]
        table = self._checked(shard, self._read_table(shard))
        with self._lock:
            self._tables[shard] = table
            while len(self._tables) > CACHED_TABLES:
                self._tables.popitem(last=False)
        return table

    def _read_table(self, shard: int) -> bytes:
        key, digest = self.table_key(shard), self._table_sha256[shard].tobytes()
        for attempt in range(DIGEST_RETRIES + 1):
            self.storage.stats.add(retries=min(attempt, 1))
            fetch = partial(self.storage.read, key)
            data = fetch() if self._cache is None else self._cache.whole(digest, fetch)
            if hashlib.sha256(data).digest() == digest:
                return data
            if self._cache is not None:
                self._cache.drop(digest)
        raise UserError(
            f"{self.url}/{key} is damaged or was replaced (its digest differs from the index after "
            f"{DIGEST_RETRIES + 1} reads): build the shard again, or run 'hmtl-dist data index {self.url}'"
        )

    def _checked(self, shard: int, data: bytes) -> SampleTable:
        """The table of a shard, if what it says can be: a wrong number must not reach the model as a wrong label."""
        try:
            table = _sample_table(decode_table(data), self.header.fields, int(self.num_samples[shard]))
            _check_table(table, self.header.fields, int(self.num_bytes[shard]))
        except (ValueError, OverflowError) as error:
            raise UserError(
                f"{self.url}/{self.table_key(shard)} cannot be right ({error}): "
                f"make the index again, with 'hmtl-dist data index {self.url}'"
            ) from error
        return table

    def table_key(self, shard: int) -> str:
        """Key of a shard's side table in `storage`."""
        return table_key(self.header.split, self.names[shard])


def _check_counts(index: ShardIndex) -> None:
    """Compare the header's counts, which decide the plan and the weights of classes, with the table's."""
    header = index.header
    if (index.num_samples < 0).any() or (index.num_bytes < 0).any():
        raise ValueError("a count is negative")
    if int(index.num_samples.sum()) != header.num_samples or int(index.num_bytes.sum()) != header.num_bytes:
        raise ValueError("header and table of shards differ")
    counts = {name: column.sum(axis=0, dtype=np.int64).tolist() for name, column in index.label_counts.items()}
    if counts != header.label_counts:
        raise ValueError("header and table of shards count labels differently")


def table_key(split: str, shard_key: str) -> str:
    """Key of the side table of the tar `shard_key`."""
    return f"{split}/{shard_key.rsplit('/', 1)[-1].removesuffix('.tar')}.npz"


def _sample_table(columns: Mapping[str, Column], fields: Mapping[str, Field], num_samples: int) -> SampleTable:
    shape = (num_samples,)
    labels: dict[str, NDArray[Any]] = {}
    for name, field in fields.items():
        kind, dtype = ("i", np.int64) if field.kind == "category" else ("f", np.float32)
        labels[name] = np.array(column_of(columns, LABEL + name, kind, shape), dtype=dtype)
    return SampleTable(
        offset=np.array(column_of(columns, "offset", "i", shape), dtype=np.int64),
        length=np.array(column_of(columns, "length", "i", shape), dtype=np.int64),
        digest=np.array(column_of(columns, "digest", "u", shape), dtype=np.uint64),
        labels=labels,
        key_bytes=column_of(columns, "key", "S", shape),
        group_bytes=column_of(columns, "group", "S", shape) if "group" in columns else None,
    )


def _check_table(table: SampleTable, fields: Mapping[str, Field], num_bytes: int) -> None:
    if len(table) and (
        table.offset.min() < 0 or table.length.min() < 1 or (table.length > num_bytes - table.offset).any()
    ):
        raise ValueError(f"a picture lies outside the {num_bytes} bytes of its shard")
    for name, field in fields.items():
        column = table.labels[name]
        wrong = (column < -1) | (column >= len(field.classes)) if field.kind == "category" else np.isinf(column)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            allowed = f"one of {len(field.classes)} classes" if field.kind == "category" else "a finite number"
            raise ValueError(f"sample {table.key[row]} has {name} {column[row]}, which is not {allowed}")


def _reopen(url: str, split: str, digest: str, cache: ShardCache | None = None) -> ShardIndex:
    index = open_index(url, split, cache)
    if index.header.digest != digest:
        raise UserError(f"the data set {url} ({split}) was replaced while it was in use: start again")
    return index


def open_index(url: str, split: str, cache: ShardCache | None = None) -> ShardIndex:
    """Open the index of a split.

    Args:
        url: the data set.
        split: the split.
        cache: where this machine keeps shards; those of a local folder are not kept.

    Raises:
        NoDataError: when there is no such index.
        UserError: when it is damaged, another version wrote it, or the storage refuses.
    """
    url = url.rstrip("/")
    storage = open_storage(url)
    if not storage.exists(f"{split}/index.json"):
        splits = open_dataset(url).splits
        if split in splits:
            raise NoDataError(f"{url}/{split}/index.json is missing: run 'hmtl-dist data index {url}'")
        raise NoDataError(f"{url} has no split {split!r}: its splits are {', '.join(splits)}")
    cache = cache if url.startswith("s3://") else None
    if cache is not None:
        cache.prepare()
    for _ in range(DIGEST_RETRIES):
        with suppress(_DamagedIndexError):
            return _read_index(url, storage, split, cache)
        storage.stats.add(retries=1)
    return _read_index(url, storage, split, cache)


class NoDataError(UserError):
    """The storage answers, and holds no such data set or split."""


class _DamagedIndexError(UserError):
    """What was read of an index does not fit together; the way may be at fault, and another read better."""


def _read_index(url: str, storage: Storage, split: str, cache: ShardCache | None) -> ShardIndex:
    header_key, table = f"{split}/index.json", f"{split}/shards.npz"
    try:
        header = IndexHeader.model_validate_json(storage.read(header_key))
    except ValidationError as error:
        raise _DamagedIndexError(_unreadable(f"{url}/{header_key}", url, error)) from error
    shards_table = storage.read(table)
    if header.sealed(shards_table).digest != header.digest:
        raise _DamagedIndexError(
            f"{url}/{table} does not fit {header_key} (digests differ; half-written or damaged): build the set again, "
            f"or run 'hmtl-dist data index {url}'"
        )
    try:
        return ShardIndex(url, storage, header, shards_table, cache)
    except (ValueError, KeyError) as error:
        raise UserError(f"{url}/{table} is damaged ({error}): run 'hmtl-dist data index {url}'") from error


def open_dataset(url: str) -> DatasetHeader:
    """The name and the splits of a data set.

    Raises:
        NoDataError: when there is no complete data set at `url`.
        UserError: when another version wrote it, or the storage refuses.
    """
    url = url.rstrip("/")
    storage = open_storage(url)
    if not storage.exists("dataset.json"):
        raise NoDataError(
            f"no data set at {url} (dataset.json is missing): build it with 'hmtl-dist data build', or index shards "
            f"made elsewhere with 'hmtl-dist data index {url}'"
        )
    try:
        return DatasetHeader.model_validate_json(storage.read("dataset.json"))
    except ValidationError as error:
        raise UserError(_unreadable(f"{url}/dataset.json", url, error)) from error


def _unreadable(what: str, url: str, error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "file"
    return (
        f"{what} cannot be read by this version (format {FORMAT_VERSION}; {where}: {first['msg']}): update hmtl_dist, "
        f"or run 'hmtl-dist data index {url}'"
    )
