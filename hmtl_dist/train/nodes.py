"""How the machines of a run are used, told by one rank of each.

The first rank's machine is sampled by its journal, every few seconds and in more detail (`tracking.system`); these are
the others, once a window and without a message of their own.
"""

from collections.abc import Sequence

import psutil
import torch

from hmtl_dist.train.base import RankContext

MOST = 64
"""Machines that are told of: MLflow holds a series for each figure of each of them."""
METRICS = ("cpu_utilization_percentage", "system_memory_usage_percentage", "gpu_memory_usage_percentage")
"""As MLflow names its own; the share of GPU memory is the mean over the machine's GPUs."""


class Nodes:
    """The machines beside the first rank's.

    Args:
        rank_context: Where this rank runs; the rank with local rank 0 speaks for its machine.
    """

    def __init__(self, rank_context: RankContext) -> None:
        self._others = range(1, min(rank_context.nodes, MOST))
        self._here = rank_context.node if rank_context.local_rank == 0 and rank_context.node in self._others else None
        self._has_gpus = rank_context.device.startswith("cuda")
        if self._here is not None:
            psutil.cpu_percent()  # the first call has nothing to compare with

    def look(self) -> list[float]:
        """Return a row of figures for each other machine, zeros but for this one: their sum over the ranks is all."""
        rows = [0.0] * (len(METRICS) * len(self._others))
        if self._here is not None:
            first = len(METRICS) * (self._here - self._others.start)
            rows[first : first + len(METRICS)] = _usage(self._has_gpus)
        return rows

    def named(self, rows: Sequence[float]) -> dict[str, float]:
        """Name the figures of all other machines the way MLflow does, `system/node-1/...`."""
        metrics = METRICS if self._has_gpus else METRICS[:-1]
        return {
            f"system/node-{node}/{name}": rows[row * len(METRICS) + column]
            for row, node in enumerate(self._others)
            for column, name in enumerate(metrics)
        }


def _usage(has_gpus: bool) -> list[float]:
    shares = [0.0]
    if has_gpus:
        memory = [torch.cuda.mem_get_info(number) for number in range(torch.cuda.device_count())]
        shares = [100 * (1 - free / total) for free, total in memory]
    return [psutil.cpu_percent(), psutil.virtual_memory().percent, sum(shares) / len(shares)]
