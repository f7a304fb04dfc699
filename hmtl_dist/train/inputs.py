"""From a batch of the stream to the inputs of a step: on the device, in [0, 1], augmented."""

from collections.abc import Iterator

import torch

from hmtl_dist.augment import AugmentConfig, photometric
from hmtl_dist.data.stream import Batch
from hmtl_dist.tasks.base import Inputs


class InputMaker:
    """Makes the inputs of each micro-batch out of a rank's batch.

    Args:
        device: Where the step runs.
        seed: Seed of the run, for every draw.
        micro_batches: Equal parts a batch is cut into.
        augment: Photometric augmentation; None leaves pictures as they are, for evaluation.
    """

    def __init__(
        self, device: torch.device, seed: int, *, micro_batches: int = 1, augment: AugmentConfig | None = None
    ) -> None:
        self._device = device
        self._seed = seed
        self._micro_batches = micro_batches
        self._augment = augment

    def __call__(self, batch: Batch) -> Iterator[Inputs]:
        """Yield the inputs of each micro-batch; they are valid as long as the batch is."""
        size = len(batch.images) // self._micro_batches
        for start in range(0, size * self._micro_batches, size):
            yield self._inputs(batch, slice(start, start + size))

    def _inputs(self, batch: Batch, rows: slice) -> Inputs:
        positions = batch.positions[rows].to(self._device, non_blocking=True)
        # The stream writes [B, H, W, C]: seen as [B, C, H, W] that is channels_last already, and stays so.
        pictures = batch.images[rows].to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        images = pictures.to(torch.float32).mul_(1 / 255)
        if self._augment is not None:
            images = photometric(images, self._augment, self._seed, batch.epoch, positions)
        return Inputs(
            images=images,
            labels={name: values[rows].to(self._device, non_blocking=True) for name, values in batch.labels.items()},
            weight=batch.weight[rows].to(self._device, non_blocking=True),
            seed=self._seed,
            epoch=batch.epoch,
            positions=positions,
        )
