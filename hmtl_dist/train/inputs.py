"""From a batch of the stream to the inputs of a step: on the device, in [0, 1], augmented."""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor

from hmtl_dist.augment import AugmentConfig
from hmtl_dist.augment.mixing import draw_mix, mixes
from hmtl_dist.augment.photometric import photometric
from hmtl_dist.data.stream.batches import Batch
from hmtl_dist.tasks.base import Inputs


class Copier:
    """Copies batches to a GPU beside what it computes: through page-locked memory, on a CUDA stream of its own.

    Two or three batches lie on the device as uint8, and as many, each rounded up to a power of two bytes, in
    page-locked memory, which torch keeps. The copy into that memory takes the caller's time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._given_before: torch.cuda.Event | None = None
        """All work that the device had been given when the last batch was handed out."""

    def begin(self, batch: Batch) -> Callable[[], Batch]:
        """Begin to copy a batch, whose own memory is free on return; call what is returned to have it on the device."""
        with torch.cuda.stream(self._stream):
            # torch keeps what it has page-locked from being used again before the copy is over
            there = batch.with_tensors(lambda tensor: tensor.pin_memory().to(self._device, non_blocking=True))
            return partial(self._hand_out, there, _mark(self._stream))

    def _hand_out(self, there: Batch, copied: torch.cuda.Event) -> Batch:
        computes = torch.cuda.current_stream(self._device)
        if self._given_before is not None:  # or an evaluation, which never waits, would fill the device with batches
            self._given_before.synchronize()
        self._given_before = _mark(computes)
        computes.wait_event(copied)
        # what the step still reads when the batch is dropped must not be given to a later copy
        return there.with_tensors(lambda tensor: _record(tensor, computes))


@functools.cache
def copier_of(device: torch.device) -> Copier | None:
    """Return a device's only copier, None for a CPU: torch keeps freed memory for the stream it was made for."""
    return Copier(device) if device.type == "cuda" else None


def _mark(stream: torch.cuda.Stream) -> torch.cuda.Event:
    """Return the event that all work given to a stream so far is done."""
    event = torch.cuda.Event(blocking=True)
    event.record(stream)
    return event


def _record(tensor: Tensor, stream: torch.cuda.Stream) -> Tensor:
    tensor.record_stream(stream)
    return tensor


class Feed:
    """Hands out the batches of a stream, with a copier on its device, where the next one can be copied ahead.

    An iterator. Without a copier nothing is fetched before it is asked for, and nothing is copied.

    Args:
        batches: Batches of host memory; each may be overwritten when the next is asked for.
        copier: Copies them to the device.
    """

    def __init__(self, batches: Iterable[Batch], copier: Copier | None) -> None:
        self._batches = iter(batches)
        self._copier = copier
        self._ahead: Callable[[], Batch] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """Return the next batch; without a copier, the pictures of the one before are gone."""
        if self._copier is None:
            return next(self._batches)
        self.ahead()
        if self._ahead is None:
            raise StopIteration
        hand_out, self._ahead = self._ahead, None
        return hand_out()

    def ahead(self) -> None:
        """Fetch the next batch and begin to copy it, to be called when the device has been given its work.

        What goes wrong is raised when the batch is asked for: the step before does not need it.
        """
        if self._copier is None or self._ahead is not None:
            return
        try:
            batch = next(self._batches, None)
        except Exception as error:  # noqa: BLE001  # raised again
            self._ahead = partial(_fail, error)
            return
        if batch is not None:
            self._ahead = self._copier.begin(batch)


def _fail(error: Exception) -> Batch:
    raise error


class InputMaker:
    """Makes the inputs of each micro-batch out of a rank's batch.

    Args:
        device: Where the step runs.
        seed: Seed of the run, for every draw.
        micro_batches: Equal parts a batch is cut into.
        augment: Photometric augmentation and mixing; None leaves pictures as they are, for evaluation.
        per_lane: Samples of a lane in a step, among which partners are mixed; it divides a micro-batch.
    """

    def __init__(
        self,
        device: torch.device,
        seed: int,
        *,
        micro_batches: int = 1,
        augment: AugmentConfig | None = None,
        per_lane: int = 1,
    ) -> None:
        self._device = device
        self._seed = seed
        self._micro_batches = micro_batches
        self._augment = augment
        self._per_lane = per_lane

    def __call__(self, batch: Batch) -> "MicroBatches":
        """Return the inputs of each micro-batch; they are valid as long as the batch is."""
        return MicroBatches(self, batch)

    def cut(self, batch: Batch) -> Iterator[Inputs]:
        """Yield the inputs of each micro-batch."""
        size = len(batch.images) // self._micro_batches
        for start in range(0, size * self._micro_batches, size):
            yield self._inputs(batch, slice(start, start + size))

    def _inputs(self, batch: Batch, rows: slice) -> Inputs:
        positions = batch.positions[rows].to(self._device, non_blocking=True)
        # The stream writes [B, H, W, C]: seen as [B, C, H, W] that is channels_last already, and stays so.
        pictures = batch.images[rows].to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        images = pictures.to(torch.float32).mul_(1 / 255)
        weight = batch.weight[rows].to(self._device, non_blocking=True)
        mix = None
        if self._augment is not None:
            images = photometric(images, self._augment, self._seed, batch.epoch, positions)
            if mixes(self._augment):
                mix = draw_mix(
                    self._augment,
                    self._seed,
                    batch.epoch,
                    positions,
                    weight=weight,
                    per_lane=self._per_lane,
                    size=(images.shape[2], images.shape[3]),
                )
        return Inputs(
            images=images,
            labels={name: values[rows].to(self._device, non_blocking=True) for name, values in batch.labels.items()},
            weight=weight,
            seed=self._seed,
            epoch=batch.epoch,
            positions=positions,
            mix=mix,
        )


@dataclass(frozen=True)
class MicroBatches:
    """The micro-batches of a batch, made when asked for: each pass makes the same again, so none has to be kept."""

    maker: InputMaker
    batch: Batch

    def __iter__(self) -> Iterator[Inputs]:
        return self.maker.cut(self.batch)
