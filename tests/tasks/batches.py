"""Small batches for the tests of tasks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.tasks.base import Inputs, Surroundings

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def make_inputs(
    images: Tensor | None = None,
    labels: dict[str, Tensor] | None = None,
    weight: Tensor | None = None,
    *,
    num_samples: int = 4,
    size: int = 24,
    epoch: int = 0,
) -> Inputs:
    if images is None:
        images = torch.rand(num_samples, 3, size, size, generator=torch.Generator().manual_seed(0))
    return Inputs(
        images=images,
        labels=labels or {},
        weight=torch.ones(len(images)) if weight is None else weight,
        seed=7,
        epoch=epoch,
        positions=torch.arange(len(images)) + 100,
    )


def around(fields: Mapping[str, Field], counts: Mapping[str, Sequence[int]] | None = None) -> Surroundings:
    return Surroundings(fields, image_size=24, label_counts=counts or {})
