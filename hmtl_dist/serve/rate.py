"""How often a client may come."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable

_MAX_CLIENTS = 10_000
"""Clients that are remembered; the one that came least recently is forgotten first."""


class RateLimit:
    """A token bucket for each client: so many requests a second in the long run, a second's worth of them at once.

    Args:
        per_second: Requests a second; 0 lets everybody pass.
        clock: Seconds that only grow.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = per_second
        self._room = max(1.0, per_second)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str) -> int:
        """Take a client's request in; returns 0, or the whole seconds after which it may come again."""
        if not self._rate:
            return 0
        now = self._clock()
        tokens, then = self._buckets.pop(client, (self._room, now))
        tokens = min(self._room, tokens + (now - then) * self._rate)
        passes = tokens >= 1
        self._buckets[client] = (tokens - passes, now)
        if len(self._buckets) > _MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return 0 if passes else math.ceil((1 - tokens) / self._rate)
