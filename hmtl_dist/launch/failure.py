"""How a run that broke is told: one line for the terminal, everything else in the log."""

from hmtl_dist.tracking.redact import redact


class TrainingError(RuntimeError):
    """Training broke for a reason that is not the user's to mend; the message is the one cause, in one line."""

    def __init__(self, message: str, *, keep_logs: bool = False) -> None:
        super().__init__(message)
        self.keep_logs = keep_logs
        """Whether the launcher's own logs may say more: a process died, or the launcher itself broke."""


def one_line(error: BaseException) -> str:
    """Say what went wrong in one line, without secrets: the kind of the error and the first line of its message."""
    lines = [line.strip() for line in redact(str(error)).splitlines() if line.strip()]
    kind = type(error).__name__
    return f"{kind}: {lines[0]}" if lines else kind
