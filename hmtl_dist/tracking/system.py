"""Samples how the machine is used into the journal, so that a server's absence loses no sample."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from hmtl_dist.tracking.jsonl import Journal
from hmtl_dist.tracking.redact import first_line

logger = logging.getLogger(__name__)


class Monitor(Protocol):
    """What MLflow's system monitors have in common."""

    def collect_metrics(self) -> Any:
        """Take a sample."""
        ...

    def aggregate_metrics(self) -> Mapping[str, float]:
        """Return the means of the samples by name."""
        ...

    def clear_metrics(self) -> None:
        """Forget the samples."""
        ...


class SystemSampler:
    """A daemon thread that writes system metrics to the journal at equal intervals."""

    def __init__(self, journal: Journal, every: float, monitors: Callable[[], Sequence[Monitor]]) -> None:
        self._journal = journal
        self._every = every
        self._monitors = monitors
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="system-metrics", daemon=True)

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def close(self) -> None:
        """End; a sample under way is waited for, at most a second."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def _sample(self) -> None:
        # A run shorter than one interval has no sample, and no reason to load the monitors.
        if self._stop.wait(self._every):
            return
        try:
            monitors = self._monitors()
            while not self._stop.wait(self._every):
                values: dict[str, float] = {}
                for monitor in monitors:
                    monitor.collect_metrics()
                    values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
                    monitor.clear_metrics()
                self._journal.system(values, self._every)
        except Exception as error:  # noqa: BLE001 - tracking never ends a run
            logger.warning("system metrics ended (%s)", first_line(error))
