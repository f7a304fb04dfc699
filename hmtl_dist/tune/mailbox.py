"""What the driver of a sweep and its trials tell each other: progress and waits up, a stop request down.

The class knows nothing of Ray: the search makes an actor of it. A trial waits for the request in one pending call, and
ends when the mailbox is gone, since the driver is gone with it.
"""

import asyncio
from collections import deque

from hmtl_dist.data.storage.waits import Wait
from hmtl_dist.train.base import Progress

_KEPT = 10_000
"""Lines of progress kept for a driver that does not take them."""


class Mailbox:
    """Mailbox between a sweep's driver and its trials."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, Progress | Wait]] = deque(maxlen=_KEPT)
        self._stop = asyncio.Event()

    async def push(self, number: int, line: Progress | Wait) -> None:
        """Leave a trial's line of progress for the driver, or what it waits for."""
        self._lines.append((number, line))

    async def take(self) -> list[tuple[int, Progress | Wait]]:
        """Hand over what was left since the last call, oldest first."""
        lines = list(self._lines)
        self._lines.clear()
        return lines

    async def request_stop(self) -> None:
        """Ask every trial for an orderly stop."""
        self._stop.set()

    async def stop_requested(self) -> None:
        """Return when a stop is requested, and not before."""
        await self._stop.wait()
