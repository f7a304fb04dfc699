"""Requests that wait at the same time are computed together.

Ray Serve's own `serve.batch` (2.60) closes a batch after its waiting time even while the one before is still being
computed, so that under load many small batches queue up. Here the next batch stays open until it can be computed.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    since: float
    """On the loop's clock, seconds."""
    result: "asyncio.Future[Result]"


class Batcher(Generic[Item, Result]):
    """Computes what is asked for in batches, one after another.

    Args:
        compute: Answers a batch, in its order.
        size: Items of a batch at most.
        wait_seconds: How long an item waits for more before its batch is computed; one that had to wait for the batch
            before does not wait again.
    """

    def __init__(
        self, compute: Callable[[list[Item]], Awaitable[Sequence[Result]]], size: int, wait_seconds: float
    ) -> None:
        self._compute = compute
        self._size = size
        self._wait_seconds = wait_seconds
        self._queue: deque[_Waiting[Item, Result]] = deque()
        self._full = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    async def ask(self, item: Item) -> Result:
        """Have an item computed with others that wait.

        Raises:
            Exception: What computing its batch raised.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting[Item, Result](item, loop.time(), loop.create_future())
        self._queue.append(waiting)
        if len(self._queue) >= self._size:
            self._full.set()
        if self._runner is None or self._runner.done():
            self._runner = loop.create_task(self._run())
        return await waiting.result

    async def _run(self) -> None:
        while self._queue:
            batch = await self._next()
            if not batch:
                continue
            try:
                results = await self._compute([waiting.item for waiting in batch])
                for waiting, result in zip(batch, results, strict=True):
                    if not waiting.result.done():
                        waiting.result.set_result(result)
            except Exception as error:  # noqa: BLE001  # whoever asked gets it
                for waiting in batch:
                    if not waiting.result.done():
                        waiting.result.set_exception(error)

    async def _next(self) -> list[_Waiting[Item, Result]]:
        """Wait until the batch is full or has waited enough, and take it; without those who have left."""
        until = self._queue[0].since + self._wait_seconds
        self._full.clear()
        if len(self._queue) < self._size:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._full.wait()
        taken = [self._queue.popleft() for _ in range(min(self._size, len(self._queue)))]
        return [waiting for waiting in taken if not waiting.result.done()]
