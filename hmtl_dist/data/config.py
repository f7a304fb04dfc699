"""The section `data` of the configuration."""

from collections.abc import Mapping
from typing import Annotated, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from hmtl_dist.config.base import MAY_CHANGE, Section

FieldT = TypeVar("FieldT")


class MixedSet(Section):
    """A data set that is mixed into the training data."""

    url: str
    """Data set, as `data.url`."""
    split: str = "train"
    """Split of it that is trained on."""
    ratio: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Draws of it for each draw of `data.url`; null draws each of its samples once an epoch."""


class CacheConfig(Section):
    """Where a machine keeps the shards that it has read from S3."""

    folder: str
    """Folder on a disk of the machine itself, shared by all workers there."""
    max_bytes: Annotated[int, Field(ge=1 << 20)] = 32 << 30
    """Most bytes it holds; what was not read for longest is removed first."""


class DataConfig(Section):
    """Where samples come from, how many make a batch, and how they are read."""

    url: Annotated[str, MAY_CHANGE]  # what counts is the digest of the data
    """Data set as `hmtl-dist data build` wrote it: `s3://bucket/prefix` or a local folder."""
    train_split: str = "train"
    """Split that is trained on."""
    eval_split: Annotated[str, MAY_CHANGE] = "val"
    """Split that is evaluated on, whole; not read with `folds`."""
    eval_url: Annotated[str | None, MAY_CHANGE] = None
    """Data set of which `eval_split` is evaluated on, such as AFLW2000 for 300W-LP; null: `url`."""
    subset: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Fraction of the training samples of `url` to train on, in whole groups where the set has groups."""
    subset_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Another seed chooses another subset; the run's own seed does not move it."""
    folds: Annotated[int, Field(ge=2, le=250)] | None = None
    """Cut `train_split` of `url` into so many folds of whole groups: `fold` is evaluated on, the others trained on."""
    fold: Annotated[int, Field(ge=0)] = 0
    """Fold that is evaluated on, from 0 to `folds` - 1."""
    fold_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Another seed cuts other folds."""
    stratify_by: str | None = None
    """Category label whose classes have the same shares in subset and folds as in the whole; null: by chance."""
    balance: str | None = None
    """Category label whose classes are drawn equally often; samples without it, and an epoch, keep their number."""
    mix: tuple[MixedSet, ...] = ()
    """Data sets that are mixed into the training data, evenly over an epoch; their labels are united with those of
    `url`, and missing where a set has none. Subset and folds are taken of `url` alone."""
    fields: tuple[str, ...] | None = None
    """Labels to read; all labels of the data set when null."""
    image_size: Annotated[int, Field(ge=16, le=2048)] = 224
    """Height and width of the pictures given to the model, in pixels."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Samples of one step over all ranks; a multiple of `lanes`."""
    lanes: Annotated[int, Field(ge=1, le=65535)] = 8
    """Parallel reading lanes of an epoch; a multiple of every number of training workers you may want to use."""
    shuffle_block: Annotated[int, Field(ge=1)] = 1024
    """Samples of a lane that are shuffled, and so read, together."""
    num_workers: Annotated[int, Field(ge=0, le=64), MAY_CHANGE] = 1
    """Data-loader processes of each training worker; 0 loads in the training process itself."""
    prefetch_batches: Annotated[int, Field(ge=1, le=64), MAY_CHANGE] = 2
    """Batches that the data-loader processes may be ahead of the training step."""
    buffer_bytes: Annotated[int, Field(ge=1 << 20), MAY_CHANGE] = 512 << 20
    """Most bytes of encoded pictures that one training worker, with its data-loader processes, holds in memory."""
    cache: Annotated[CacheConfig | None, MAY_CHANGE] = None
    """Keep shards of S3 whole on each machine, for the next epoch and for the other workers there; null: read ranges
    anew each time. It pays where a machine's part of the data fits into it."""
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of pictures that may fail to decode before the run stops."""

    @field_validator("folds")
    @classmethod
    def _of_one_set(cls, folds: int | None, info: ValidationInfo) -> int | None:
        if folds is not None and info.data.get("eval_url") is not None:
            raise ValueError(f"given {folds} with data.eval_url, but a fold is of data.url; drop one of the two")
        return folds

    @field_validator("fold")
    @classmethod
    def _is_one_of_folds(cls, fold: int, info: ValidationInfo) -> int:
        folds = info.data.get("folds")
        if fold >= (folds or 1):
            allowed = f"0 to {folds - 1}" if folds else "only together with data.folds"
            raise ValueError(f"given {fold}, allowed {allowed}")
        return fold

    def wanted(self, fields: Mapping[str, FieldT]) -> dict[str, FieldT]:
        """Return those labels of a data set that are read, by name: all of them, or the ones that `fields` names."""
        return {name: field for name, field in fields.items() if self.fields is None or name in self.fields}
