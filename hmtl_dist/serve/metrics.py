"""What Prometheus may ask the front for."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from hmtl_dist.serve.answers import Answer

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
MEDIA_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Figures of one server, since it started."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "hmtl_requests", "Requests answered, by path and status.", ["path", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "hmtl_request_seconds",
            "Time from a request's head to the end of its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._sizes = Histogram(
            "hmtl_batch_size", "Pictures that were computed together.", buckets=_SIZES, registry=self._registry
        )
        self.open = Gauge("hmtl_open_requests", "Pictures being received or answered.", registry=self._registry)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def computed(self, answer: Answer) -> None:
        """Count the batch that a picture was computed in, once for all of its pictures."""
        if answer.first:
            self._sizes.observe(answer.batch_size)

    def text(self) -> bytes:
        """Write all figures in Prometheus' text format."""
        return generate_latest(self._registry)
