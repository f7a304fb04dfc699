"""What the loop tells about a run, whoever listens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """Records a run. No call blocks on a network or raises because a server is away."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record named figures at an optimizer step."""
        ...

    def params(self, values: Mapping[str, str]) -> None:
        """Record facts that hold for the whole run: the flat configuration, versions, the data digest."""
        ...

    def picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """Record a picture, uint8 `[H, W, 3]`."""
        ...

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file or folder under `folder` of the run's artifacts; it must stay in place until delivered."""
        ...

    def model(self, folder: Path) -> None:
        """Record the trained model that was written to `folder`."""
        ...

    def close(self, status: RunStatus) -> None:
        """End the run with its true status, waiting a bounded time for delivery."""
        ...


class SilentTracker:
    """Records nothing: what every rank but the first has."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def params(self, values: Mapping[str, str]) -> None:
        """Do nothing."""

    def picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """Do nothing."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Do nothing."""

    def model(self, folder: Path) -> None:
        """Do nothing."""

    def close(self, status: RunStatus) -> None:
        """Do nothing."""
