"""The section `data` of the configuration."""

from typing import Annotated

from pydantic import Field

from hmtl_dist.config.base import Section


class DataConfig(Section):
    """Where samples come from, how many make a batch, and how they are read."""

    url: str
    """Data set as `hmtl-dist data build` wrote it: `s3://bucket/prefix` or a local folder."""
    train_split: str = "train"
    """Split that is trained on."""
    eval_split: str = "val"
    """Split that is evaluated on."""
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
    num_workers: Annotated[int, Field(ge=0, le=64)] = 1
    """Data-loader processes of each training worker; 0 loads in the training process itself."""
    prefetch_batches: Annotated[int, Field(ge=1, le=64)] = 2
    """Batches that the data-loader processes may be ahead of the training step."""
    buffer_bytes: Annotated[int, Field(ge=1 << 20)] = 512 << 20
    """Most bytes of encoded pictures that one training worker, with its data-loader processes, holds in memory."""
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of pictures that may fail to decode before the run stops."""
