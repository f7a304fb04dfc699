"""Drawn faces, for trying things out: the one set that needs no originals."""

from pydantic import Field as Limits

from hmtl_dist.config.base import Section
from hmtl_dist.data.catalog.registry import DataSet
from hmtl_dist.data.dataset.adapter import Adapter
from hmtl_dist.data.drawn.faces import SyntheticAdapter, SyntheticSettings


class Options(Section):
    """Which faces are drawn."""

    samples: int = Limits(default=2000, ge=1)
    """Pictures."""
    identities: int = Limits(default=400, ge=1)
    """People; each falls to one split."""
    image_size: int = Limits(default=96, ge=16, le=1024)
    """Pixels of the side."""
    seed: int = 0
    """Another seed gives other people, and other splits."""


def open_drawn(source: None, options: Options) -> Adapter:
    """The adapter that draws them."""
    del source
    return SyntheticAdapter(SyntheticSettings(**options.model_dump()))


DATASET = DataSet(
    name="synth",
    title="drawn faces with known expression, gender, age and pose",
    labels=("expression", "gender", "age", "yaw", "pitch", "roll"),
    licence="ours (Apache-2.0)",
    url="",
    splits="train=0.8,val=0.2",
    group="identity",
    source="none",
    shard_samples=250,
    options=Options,
    open=open_drawn,
)
