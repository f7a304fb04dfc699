"""How many threads a rank computes with, the same for every launcher."""

from collections.abc import Generator
from contextlib import contextmanager

import torch

from hmtl_dist.run_config import LaunchConfig


def num_threads(launch: LaunchConfig) -> int:
    """Return with how many threads one rank computes."""
    return max(1, int(launch.cpus_per_worker))


@contextmanager
def torch_threads(count: int) -> Generator[None]:
    """Compute with so many threads inside the block: exact repetition needs the same count everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
