"""What the driver and the workers of a Ray run tell each other while it trains: progress and waits up, a stop down.

The class knows nothing of Ray: the launcher makes an actor of it. It is asynchronous so that every worker can wait for
the request in one pending call, and nobody polls for it.
"""

import asyncio
from collections import deque

from hmtl_dist.data.storage.waits import Wait
from hmtl_dist.errors import UserError
from hmtl_dist.launch.failure import TrainingError
from hmtl_dist.train.base import Progress

_KEPT = 1000
"""Lines of progress kept for a driver that does not take them."""


class Relay:
    """Mailbox between the driver and the workers."""

    def __init__(self) -> None:
        self._lines: deque[Progress | str] = deque(maxlen=_KEPT)
        self._wait: Wait | None = None
        self._stop = asyncio.Event()
        self._gave_up: str | None = None
        self._final: TrainingError | UserError | None = None
        self._under_way = False

    async def push(self, line: Progress | str) -> None:
        """Leave a line for the driver: of progress, or one to be read as it is."""
        self._lines.append(line)
        self._under_way = self._under_way or isinstance(line, Progress)

    async def waits(self, wait: Wait) -> None:
        """Leave word of what a rank waits for; the last word counts."""
        self._wait = wait

    async def take(self) -> tuple[list[Progress | str], Wait | None]:
        """Hand over the lines left since the last call, oldest first, and what was waited for meanwhile."""
        left = list(self._lines), self._wait
        self._lines.clear()
        self._wait = None
        return left

    async def under_way(self) -> bool:
        """Whether any worker has told of a step: whoever starts now was started again."""
        return self._under_way

    async def fail(self, error: TrainingError | UserError) -> None:
        """Note what starting the workers again cannot mend; the first one counts."""
        self._final = self._final or error

    async def failed(self) -> TrainingError | UserError | None:
        """Return what was noted."""
        return self._final

    async def give_up(self, said: str) -> None:
        """Note what a rank says that hangs; the first one counts."""
        self._gave_up = self._gave_up or said

    async def gave_up(self) -> str | None:
        """Return what was noted."""
        return self._gave_up

    async def request_stop(self) -> None:
        """Ask every worker for an orderly stop."""
        self._stop.set()

    async def stop_requested(self) -> None:
        """Return when a stop is requested, and not before."""
        await self._stop.wait()
