"""What a data set says of itself: its labels, its splits, and the header of a split's index."""

import hashlib
from typing import Literal

from pydantic import model_validator

from hmtl_dist.config.base import Section

FORMAT_VERSION = 1

LabelValue = str | float | None
"""A readable label: class name, number, or None when the sample has none."""


class Field(Section):
    """A label that samples may carry."""

    kind: Literal["category", "number"]
    """What the label is: one of `classes`, or a number."""
    classes: tuple[str, ...] = ()
    """Names of the classes of a category, in the order of their numbers; the same in all splits."""
    unit: str = ""
    """Unit of a number, for people to read."""

    @model_validator(mode="after")
    def _classes_fit_kind(self) -> "Field":
        if (self.kind == "category") != bool(self.classes):
            raise ValueError("a category has classes and a number has none")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class is named twice")
        return self


class IndexHeader(Section):
    """What is known of a split without reading its tables."""

    format_version: Literal[1] = FORMAT_VERSION
    """Version of the layout of the tables."""
    dataset: str
    """Name of the data set."""
    split: str
    """Name of the split."""
    fields: dict[str, Field]
    """Labels that the samples may carry."""
    group: str | None = None
    """What the group of a sample is (for example `subject`), when samples have groups."""
    num_samples: int
    """Samples of all shards."""
    num_shards: int
    """Shards."""
    num_bytes: int
    """Bytes of all tars."""
    label_counts: dict[str, list[int]]
    """Samples of each class, for the categories."""
    digest: str = ""
    """SHA-256 over this header and the table of shards, which holds the digests of all tars and side tables."""

    def sealed(self, shards_table: bytes) -> "IndexHeader":
        """The header with the digest that fits `shards_table`."""
        unsealed = self.model_copy(update={"digest": ""})
        seal = hashlib.sha256(unsealed.model_dump_json().encode())
        seal.update(hashlib.sha256(shards_table).digest())
        return self.model_copy(update={"digest": seal.hexdigest()})


class DatasetHeader(Section):
    """The splits of a data set."""

    format_version: Literal[1] = FORMAT_VERSION
    """Version of the layout of the tables."""
    dataset: str
    """Name of the data set."""
    splits: tuple[str, ...]
    """Names of the splits."""
