"""Which requests are computed together."""

import asyncio
from collections.abc import Sequence

import pytest

from hmtl_dist.serve.batching import Batcher


class Computer:
    """Doubles numbers, when it is let, and remembers in which batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.free = asyncio.Event()

    async def __call__(self, batch: list[int]) -> Sequence[int]:
        self.batches.append(batch)
        await self.free.wait()
        if -1 in batch:
            raise ArithmeticError("minus one")
        return [2 * item for item in batch]


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_what_waits_while_a_batch_is_computed_is_the_next_batch() -> None:
    async def scenario() -> None:
        computer = Computer()
        batcher = Batcher(computer, 4, 0.0)
        asked = [asyncio.create_task(batcher.ask(0))]
        while not computer.batches:
            await asyncio.sleep(0)
        asked += [asyncio.create_task(batcher.ask(number)) for number in range(1, 7)]
        await asyncio.sleep(0.05)  # far longer than a batch waits for more
        computer.free.set()
        assert await asyncio.gather(*asked) == [0, 2, 4, 6, 8, 10, 12]
        assert computer.batches == [[0], [1, 2, 3, 4], [5, 6]]

    asyncio.run(scenario())


def test_a_batch_waits_for_more_no_longer_than_until_it_is_full() -> None:
    async def scenario() -> None:
        computer = Computer()
        computer.free.set()
        batcher = Batcher(computer, 3, 3600.0)
        assert await asyncio.gather(*map(batcher.ask, range(3))) == [0, 2, 4]
        assert computer.batches == [[0, 1, 2]]

    asyncio.run(scenario())


def test_one_alone_waits_as_long_as_it_was_told() -> None:
    async def scenario() -> None:
        computer = Computer()
        computer.free.set()
        batcher = Batcher(computer, 3, 0.05)
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert await batcher.ask(1) == 2
        assert loop.time() - began >= 0.05

    asyncio.run(scenario())


def test_an_error_reaches_its_own_batch_alone() -> None:
    async def scenario() -> None:
        computer = Computer()
        computer.free.set()
        batcher = Batcher(computer, 2, 0.0)
        results = await asyncio.gather(*map(batcher.ask, (1, -1, 2)), return_exceptions=True)
        assert [type(result) for result in results] == [ArithmeticError, ArithmeticError, int]
        with pytest.raises(ArithmeticError):
            await batcher.ask(-1)
        assert await batcher.ask(5) == 10

    asyncio.run(scenario())


def test_who_has_left_is_not_computed() -> None:
    async def scenario() -> None:
        computer = Computer()
        batcher = Batcher(computer, 2, 0.0)
        asked = [asyncio.create_task(batcher.ask(0))]
        await settle()
        asked += [asyncio.create_task(batcher.ask(number)) for number in (1, 2, 3)]
        await settle()
        asked[1].cancel()
        computer.free.set()
        assert await asyncio.gather(*asked[:1], *asked[2:]) == [0, 4, 6]
        assert computer.batches == [[0], [2], [3]]

    asyncio.run(scenario())
