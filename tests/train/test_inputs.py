"""How the batches of a stream come to the device."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import pytest
import torch

from hmtl_dist.data.stream.batches import Batch
from hmtl_dist.errors import UserError
from hmtl_dist.train.inputs import Copier, Feed, copier_of

SIDE = 64
BATCHES = 6


def overwritten(asked: list[int], size: int) -> Iterator[Batch]:
    """Batches that show the same pictures' memory, as those of a stream do: each fill ends the one before."""
    images = torch.empty(size, SIDE, SIDE, 3, dtype=torch.uint8)
    for step in range(BATCHES):
        asked.append(step)
        yield Batch(
            images=images.fill_(step),
            labels={"mood": torch.full((size,), step)},
            weight=torch.full((size,), float(step)),
            positions=torch.full((size,), step),
            sample_ids=torch.full((size,), step),
            epoch=0,
            step=step,
        )


def whole(batch: Batch) -> Batch:
    return batch.with_tensors(torch.clone)


class FakeCopier:
    """Copies at once; tells what it has begun and what it has handed out."""

    def __init__(self) -> None:
        self.begun: list[int] = []

    def begin(self, batch: Batch) -> Callable[[], Batch]:
        self.begun.append(batch.step)
        return partial(whole, whole(batch))


def feed_of(batches: Iterator[Batch]) -> tuple[Feed, FakeCopier]:
    copier = FakeCopier()
    return Feed(batches, cast(Copier, copier)), copier


def test_on_a_cpu_a_batch_is_handed_out_as_it_is_and_only_when_it_is_asked_for() -> None:
    asked: list[int] = []
    feed = Feed(overwritten(asked, size=2), copier_of(torch.device("cpu")))
    memory = set[int]()
    for step, batch in enumerate(feed):
        feed.ahead()
        assert (batch.step, asked) == (step, list(range(step + 1)))
        assert bool((batch.images == step).all())
        memory.add(batch.images.data_ptr())
    assert len(asked) == BATCHES
    assert len(memory) == 1


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_one_batch_is_copied_ahead_and_none_is_left_out(calls: int) -> None:
    asked: list[int] = []
    feed, copier = feed_of(overwritten(asked, size=2))
    for step, batch in enumerate(feed):
        for _ in range(calls):
            feed.ahead()
        assert len(copier.begun) == min(step + 1 + (calls > 0), BATCHES)
        assert batch.step == step
        assert bool((batch.images == step).all())
    assert asked == list(range(BATCHES))
    assert next(feed, None) is None


def test_what_goes_wrong_ahead_is_raised_when_the_batch_is_asked_for() -> None:
    def breaks() -> Iterator[Batch]:
        yield next(overwritten([], size=2))
        raise UserError("too much of it is damaged")

    feed, _ = feed_of(breaks())
    assert next(feed).step == 0
    feed.ahead()
    feed.ahead()
    with pytest.raises(UserError, match="damaged"):
        next(feed)


@pytest.mark.gpu
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("busy", [False, True])
def test_on_a_gpu_every_batch_is_whole_though_its_memory_is_used_again(ahead: bool, busy: bool) -> None:
    device = torch.device("cuda:0")
    asked: list[int] = []
    # read at once, a large batch is still on its way; with work before it, it is read long after it was handed out
    feed = Feed(overwritten(asked, size=256 if busy else 4096), copier_of(device))
    seen: list[torch.Tensor] = []
    work = torch.rand(4096, 4096, device=device)
    for batch in feed:
        if busy:
            work = (work @ work).clamp(0, 1)
        parts = (batch.images, batch.labels["mood"], batch.weight, batch.positions)
        assert {part.device for part in parts} == {device}
        assert batch.sample_ids.device.type == "cpu"
        seen.append(torch.stack([value.double() for part in parts for value in (part.min(), part.max())]))
        if ahead:
            feed.ahead()
            assert asked[-1] == min(batch.step + 1, BATCHES - 1)
    expected = torch.arange(BATCHES, dtype=torch.float64)
    assert torch.equal(torch.stack(seen).cpu(), expected.view(-1, 1).expand(-1, 8))


@pytest.mark.gpu
def test_on_a_gpu_neither_many_batches_nor_many_feeds_take_more_memory() -> None:
    device = torch.device("cuda:0")
    work, out = torch.rand(2, 4096, 4096, device=device)

    def once() -> int:
        for batch in Feed(overwritten([], size=4096), copier_of(device)):
            for _ in range(20):  # takes longer than to bring the next batch
                torch.mm(work, work, out=out)
            batch.images.max()
        torch.cuda.synchronize()
        return torch.cuda.memory_reserved()

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    first = once()
    assert torch.cuda.max_memory_allocated() - before < 4 * 4096 * SIDE * SIDE * 3
    assert [once() for _ in range(3)] == [first] * 3
