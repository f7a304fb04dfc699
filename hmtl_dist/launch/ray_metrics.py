# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""A run's figures as metrics of Ray, which its nodes export to Prometheus as `ray_hmtl_...` beside Ray's own.

They are set once a report window from what the loop has read anyway, so that a step neither waits nor computes for
them. Figures of the whole run come from rank 0, tagged with the run; what differs between ranks comes from each, tagged
with its rank too. Ray adds the node (`NodeAddress`) and the cluster (`SessionName`) to each.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Export(NamedTuple):
    """One metric: what it is made of, and whether every rank has its own."""

    source: str
    """Name of the figure in the run's record."""
    said: str
    """What it is, with its unit."""
    each_rank: bool = False


GAUGES = {
    "hmtl_images_per_second": Export("train/samples_per_second", "Pictures a second of the whole run."),
    "hmtl_global_step": Export("global_step", "Optimizer steps taken."),
    "hmtl_loss": Export("train/loss/total", "Weighted total loss, mean of a report window."),
    "hmtl_step_seconds": Export("train/step_seconds", "Seconds of a step, waiting included.", each_rank=True),
    "hmtl_data_wait_share": Export("train/wait_share", "Share of time that waits for data, 0 to 1.", each_rank=True),
    "hmtl_checkpoint_seconds": Export("checkpoint/seconds", "Seconds to write and upload the last checkpoint."),
}
"""Metrics that hold the last value, by name."""
COUNTERS = {
    "hmtl_bytes_read": Export("data/bytes_read", "Bytes read from the storage by all ranks."),
    "hmtl_retries": Export("data/retries", "Requests to the storage that were repeated."),
    "hmtl_damaged_samples": Export("data/damaged", "Samples that could not be decoded."),
}
"""Metrics that add up what each window adds, by name; Prometheus sees them with `_total` behind."""


class RunMetrics:
    """The metrics of one rank.

    Args:
        run: Name of the run.
        rank: This rank.
    """

    def __init__(self, run: str, rank: int) -> None:
        from ray.util.metrics import Counter, Gauge

        def made(kind: type, exports: Mapping[str, Export]) -> list[tuple[str, Any]]:
            own = {name: export for name, export in exports.items() if export.each_rank or rank == 0}
            tags = {name: _tags(run, rank, export) for name, export in own.items()}
            metrics = {name: kind(name, description=own[name].said, tag_keys=(*tags[name],)) for name in own}
            return [(own[name].source, metric.set_default_tags(tags[name])) for name, metric in metrics.items()]

        self._gauges = made(Gauge, GAUGES)
        self._counters = made(Counter, COUNTERS)
        for _, counter in self._counters:
            # a rate needs the value before the first event; `inc` takes no 0
            counter._record(0.0)

    def report(self, metrics: Mapping[str, float]) -> None:
        """Take the figures of a report window; those that a window does not have keep their value."""
        for source, gauge in self._gauges:
            if source in metrics:
                gauge.set(metrics[source])
        for source, counter in self._counters:
            if metrics.get(source, 0.0) > 0:
                counter.inc(metrics[source])


def _tags(run: str, rank: int, export: Export) -> dict[str, str]:
    return {"run": run, "rank": str(rank)} if export.each_rank else {"run": run}
