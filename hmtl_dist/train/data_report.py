"""What a window cost, over all ranks: bytes read, requests repeated, damaged samples by name, and use of the machines.

All of it goes round in one sum, which the report of a window waits for anyway.
"""

from typing import Any, cast

import torch
import torch.distributed as dist

from hmtl_dist.data.stream.batches import StreamStats
from hmtl_dist.data.stream.loader import Damaged
from hmtl_dist.tasks.base import Ranks
from hmtl_dist.tracking.base import Tracker
from hmtl_dist.tracking.jsonl import Journal
from hmtl_dist.train.nodes import Nodes


class DataReport:
    """Counts over all ranks what happened since the last report, and names damaged samples in the run's journal.

    Args:
        stats: This rank's stream.
        ranks: Over which is counted.
        device: Where the ranks' sums are taken.
        tracker: This rank's; the first rank's is the journal.
        nodes: The machines of the run.
    """

    def __init__(self, stats: StreamStats, ranks: Ranks, device: torch.device, tracker: Tracker, nodes: Nodes) -> None:
        self._stats = stats
        self._ranks = ranks
        self._device = device
        self._tracker = tracker
        self._nodes = nodes
        self._retries = 0
        self._bytes = 0
        self._named = 0

    def __call__(self, step: int) -> dict[str, float]:
        """Return the figures of the window that ends at a global step; collective."""
        new, retries, read = self._new(), self._stats.retries - self._retries, self._stats.bytes_read - self._bytes
        self._retries, self._bytes = self._stats.retries, self._stats.bytes_read
        counts = torch.tensor([len(new), retries, read, *self._nodes.look()], dtype=torch.float64, device=self._device)
        damaged, repeated, read, *used = cast("list[float]", cast("Any", self._ranks.all_reduce_sum(counts)).tolist())
        if damaged:
            self._name(_gathered(new), step)
        return {"data/damaged": damaged, "data/retries": repeated, "data/bytes_read": read} | self._nodes.named(used)

    def close(self, step: int) -> None:
        """Name what this rank has met since the last report: too much of it may be why the run ends."""
        self._name(self._new(), step)

    def _new(self) -> list[Damaged]:
        new = self._stats.damaged_samples[self._named :]
        self._named += len(new)
        return new

    def _name(self, samples: list[Damaged], step: int) -> None:
        if isinstance(self._tracker, Journal):
            for sample in samples:
                self._tracker.damaged(
                    step, sample_id=sample.sample_id, key=sample.key, shard=sample.shard, reason=sample.reason
                )


def _gathered(own: list[Damaged]) -> list[Damaged]:
    if not dist.is_initialized():
        return own
    parts: list[list[Damaged]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, own)  # pyright: ignore[reportUnknownMemberType]  # partial in torch
    return [sample for part in parts for sample in part]
