"""Several data sets as one: shards and samples numbered on, labels united by name."""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hmtl_dist.data.dataset.index import SampleTable, ShardIndex
from hmtl_dist.data.dataset.schema import Field, IndexHeader
from hmtl_dist.errors import UserError


class SampleIndex(Protocol):
    """The samples of a data set, or of several, as a stream reads them."""

    @property
    def url(self) -> str:
        """Address of the set, for people; with ` + ` between those of several."""
        ...

    @property
    def header(self) -> IndexHeader:
        """Fields, counts, digest."""
        ...

    @property
    def num_samples(self) -> NDArray[np.int64]:
        """Samples of each shard [S]."""
        ...

    @property
    def num_bytes(self) -> NDArray[np.int64]:
        """Bytes of each shard [S]."""
        ...

    @property
    def parts(self) -> Sequence[ShardIndex]:
        """The sets, in the order of their samples' numbers."""
        ...

    def home(self, shard: int) -> tuple[ShardIndex, int]:
        """Return the set that holds a shard, and the shard's number in it."""
        ...

    def shard_url(self, shard: int) -> str:
        """Return the URL of a shard's tar."""
        ...

    def samples(self, shard: int) -> SampleTable:
        """Return the samples of a shard, with all labels of `header`."""
        ...


class MixedIndex:
    """Sets one after another; a label that a set does not have is missing in its samples.

    Costs 16 bytes a shard beside the sets' own indexes; labels are renumbered when a side table is read. Pickled by the
    sets' addresses, like them.

    Args:
        parts: the sets.
        fields: labels to give, as `united_fields` makes them: classes of a set that are not in the order of `fields`
            are renumbered by name.
    """

    def __init__(self, parts: Sequence[ShardIndex], fields: Mapping[str, Field]) -> None:
        self.parts = tuple(parts)
        self.url = " + ".join(part.url for part in parts)
        self.num_samples: NDArray[np.int64] = np.concatenate([part.num_samples for part in parts])
        self.num_bytes: NDArray[np.int64] = np.concatenate([part.num_bytes for part in parts])
        self.header = _united_header(parts, fields)
        self._starts = [0, *accumulate(len(part) for part in parts)]
        self._codes = [_codes(part.header.fields, fields) for part in parts]

    def __reduce__(self) -> tuple[Any, ...]:
        return MixedIndex, (self.parts, self.header.fields)

    def home(self, shard: int) -> tuple[ShardIndex, int]:
        """Return the set that holds a shard, and the shard's number in it."""
        part = bisect_right(self._starts, shard) - 1
        return self.parts[part], shard - self._starts[part]

    def shard_url(self, shard: int) -> str:
        """Return the URL of a shard's tar."""
        part, number = self.home(shard)
        return part.shard_url(number)

    def samples(self, shard: int) -> SampleTable:
        """Return the samples of a shard, with all labels of `header`.

        Raises:
            UserError: the side table is missing or damaged.
        """
        part = bisect_right(self._starts, shard) - 1
        table = self.parts[part].samples(shard - self._starts[part])
        codes = self._codes[part]
        labels: dict[str, NDArray[Any]] = {}
        for name, field in self.header.fields.items():
            if name in table.labels:
                labels[name] = codes[name][table.labels[name]] if name in codes else table.labels[name]
            elif field.kind == "category":
                labels[name] = np.full(len(table), -1, dtype=np.int64)
            else:
                labels[name] = np.full(len(table), np.nan, dtype=np.float32)
        return replace(table, labels=labels)


def united_fields(parts: Sequence[ShardIndex], only: Sequence[str] | None = None) -> dict[str, Field]:
    """Unite the labels of sets that are mixed.

    Args:
        parts: the sets.
        only: labels to look at; all when None.

    A label that two sets have keeps the classes, and their order, of the set with more of them (of the first, if they
    have the same); the other's are found by name.

    Raises:
        UserError: a label is a category in one set and a number in another, has other units, or classes of which
            neither set has all.
    """
    fields: dict[str, Field] = {}
    origin: dict[str, str] = {}
    for part in parts:
        for name, field in part.header.fields.items():
            if only is not None and name not in only:
                continue
            known = fields.get(name)
            if known is None or (field.kind == "category" and set(field.classes) > set(known.classes)):
                if known is not None and known.kind != field.kind:
                    raise _differing(name, field, part.url, known, origin[name])
                fields[name], origin[name] = field, part.url
            elif not _fits(field, known):
                raise _differing(name, field, part.url, known, origin[name])
            elif not known.unit and field.unit:
                fields[name] = field
    return fields


def aligned(index: ShardIndex, fields: Mapping[str, Field]) -> SampleIndex:
    """Return the index with its labels as `fields` has them, itself where they are so already.

    Raises:
        UserError: a label of both is of another kind or unit, or has classes that `fields` does not.
    """
    for name, field in index.header.fields.items():
        if name in fields and not _fits(field, fields[name]):
            raise UserError(
                f"{index.url}: label '{name}' is {_say(field)} there, the model is trained on {_say(fields[name])}; "
                "build the set with classes that are among these"
            )
    return index if index.header.fields == fields else MixedIndex([index], fields)


def _fits(field: Field, known: Field) -> bool:
    if field.kind != known.kind:
        return False
    if field.kind == "category":
        return set(field.classes) <= set(known.classes)
    return field.unit == known.unit or not (field.unit and known.unit)


def _differing(name: str, field: Field, url: str, known: Field, known_url: str) -> UserError:
    return UserError(
        f"data.mix: label '{name}' is {_say(field)} in {url} and {_say(known)} in {known_url}: build one of them again "
        f"with classes that are among the other's, or read other labels by data.fields"
    )


def _say(field: Field) -> str:
    if field.kind == "category":
        return f"one of {', '.join(field.classes)}"
    return f"a number {'of ' + field.unit if field.unit else 'without unit'}"


def _codes(own: Mapping[str, Field], united: Mapping[str, Field]) -> dict[str, NDArray[np.int64]]:
    """Tables from a set's class numbers to the united ones, for the labels where they differ; -1 stays -1."""
    return {
        name: np.array([*(united[name].classes.index(label) for label in field.classes), -1], dtype=np.int64)
        for name, field in own.items()
        if name in united and field.classes != united[name].classes
    }


def _united_header(parts: Sequence[ShardIndex], fields: Mapping[str, Field]) -> IndexHeader:
    headers = [part.header for part in parts]
    counts = {name: [0] * len(field.classes) for name, field in fields.items() if field.kind == "category"}
    for header in headers:
        for name, own in header.label_counts.items():
            for label, count in zip(header.fields[name].classes, own, strict=True):
                if name in counts:
                    counts[name][fields[name].classes.index(label)] += count
    digest = headers[0].digest
    if len(parts) > 1:
        digest = hashlib.sha256("".join(header.digest for header in headers).encode()).hexdigest()
    return IndexHeader(
        dataset=" + ".join(dict.fromkeys(header.dataset for header in headers)),
        split=" + ".join(dict.fromkeys(header.split for header in headers)),
        fields=dict(fields),
        group=headers[0].group,
        num_samples=sum(header.num_samples for header in headers),
        num_shards=sum(header.num_shards for header in headers),
        num_bytes=sum(header.num_bytes for header in headers),
        label_counts=counts,
        digest=digest,
    )
