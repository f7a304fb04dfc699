import asyncio

from hmtl_dist.data.storage.waits import Wait
from hmtl_dist.launch.relay import Relay
from hmtl_dist.train.base import Progress
from tests.launch.toy import line


async def steps(relay: Relay) -> list[int]:
    """The steps of the lines of progress that are handed over."""
    lines, _ = await relay.take()
    return [line.global_step for line in lines if isinstance(line, Progress)]


def test_progress_is_handed_over_once_and_in_order() -> None:
    async def scene() -> tuple[list[int], list[int]]:
        relay = Relay()
        for step in (1, 2, 3):
            await relay.push(line(step))
        return await steps(relay), await steps(relay)

    assert asyncio.run(scene()) == ([1, 2, 3], [])


def test_progress_that_nobody_takes_does_not_pile_up() -> None:
    async def scene() -> list[int]:
        relay = Relay()
        for step in range(5000):
            await relay.push(line(step))
        return await steps(relay)

    assert asyncio.run(scene()) == list(range(4000, 5000))


def test_the_last_word_of_a_wait_is_handed_over_once() -> None:
    async def scene() -> list[Wait | None]:
        relay = Relay()
        await relay.waits(Wait("s3://faces", 5.0))
        await relay.waits(Wait("s3://faces", 6.0))
        return [(await relay.take())[1], (await relay.take())[1]]

    assert asyncio.run(scene()) == [Wait("s3://faces", 6.0), None]


def test_a_run_is_under_way_once_a_step_was_told_also_when_the_line_was_taken() -> None:
    async def scene() -> list[bool]:
        relay = Relay()
        said = [await relay.under_way()]
        await relay.push(line(1))
        await relay.take()
        return [*said, await relay.under_way()]

    assert asyncio.run(scene()) == [False, True]


def test_a_note_is_handed_over_among_the_progress_and_is_no_step() -> None:
    async def scene() -> tuple[bool, list[Progress | str]]:
        relay = Relay()
        await relay.push("goes on from step 4")
        under_way = await relay.under_way()
        await relay.push(line(5))
        return under_way, (await relay.take())[0]

    assert asyncio.run(scene()) == (False, ["goes on from step 4", line(5)])


def test_every_worker_waits_until_a_stop_is_requested() -> None:
    async def scene() -> tuple[int, int]:
        relay = Relay()
        waiting = [asyncio.create_task(relay.stop_requested()) for _ in range(3)]
        await asyncio.sleep(0)
        before = sum(task.done() for task in waiting)
        await relay.request_stop()
        await asyncio.wait_for(asyncio.gather(*waiting), timeout=5)
        return before, sum(task.done() for task in waiting)

    assert asyncio.run(scene()) == (0, 3)
