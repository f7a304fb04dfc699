"""What a server is told: where it listens, how it batches, what it refuses."""

from dataclasses import dataclass

from hmtl_dist.errors import UserError


@dataclass(frozen=True)
class Limits:
    """What one request, and one client, may take."""

    max_bytes: int = 16 << 20
    """Bytes of a picture's file; more is answered with 413."""
    read_seconds: float = 10.0
    """How long a body may take to arrive; longer is answered with 408."""
    max_requests_per_second: float = 0.0
    """Of one client's address, to `/predict` and `/explain`; more is answered with 429. 0: no limit."""
    max_open: int = 256
    """Requests to `/predict` and `/explain` that are being received or answered; one more is answered with 503."""


@dataclass(frozen=True)
class Settings:
    """Where a server listens, and how it spreads its work."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: any that is free."""
    num_replicas: int = 1
    """Processes that compute, each with its own copy of the model."""
    batch_size: int = 16
    """Requests that are computed together at most; 1: each alone."""
    batch_wait_ms: float = 5.0
    """How long a batch waits for more requests."""
    max_queued: int = 64
    """Requests that may wait beyond two batches a replica; one more is answered with 503."""
    limits: Limits = Limits()

    @property
    def room(self) -> int:
        """Requests that all replicas have at once: a batch that is computed, the next one, and those that wait."""
        return self.num_replicas * 2 * self.batch_size + self.max_queued

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UserError: Names the option.
        """
        counts = {"--num-replicas": self.num_replicas, "--batch-size": self.batch_size}
        counts["--max-bytes"] = self.limits.max_bytes
        for name, value in counts.items():
            if value < 1:
                raise UserError(f"{name}: given {value}, allowed 1 or more")
        amounts = {"--batch-wait-ms": self.batch_wait_ms, "--max-queued": self.max_queued}
        amounts["--max-requests-per-second"] = self.limits.max_requests_per_second
        for name, value in amounts.items():
            if value < 0:
                raise UserError(f"{name}: given {value:g}, allowed 0 or more")
        if self.limits.read_seconds <= 0:
            raise UserError(f"--read-timeout: given {self.limits.read_seconds:g}, allowed more than 0 seconds")
        if not 0 <= self.port < 65536:
            raise UserError(f"--port: given {self.port}, allowed 0 to 65535")
