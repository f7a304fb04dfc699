"""How many workers a cluster has room for, and how many of them a run can use."""

import math
from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from hmtl_dist.config.io import to_dict
from hmtl_dist.errors import UserError
from hmtl_dist.run_config import LaunchConfig, RunConfig

_LABEL = "accelerator_type:"
"""How Ray names the resource that stands for a machine's type of GPU."""


def workers_on(nodes: Sequence[Mapping[str, float]], launch: LaunchConfig) -> int:
    """Return how many workers all machines have room for together.

    A worker is never split over machines, nor its part of a GPU over two of them.

    Args:
        nodes: Ray's resources of each machine: `CPU`, `GPU` and its types of GPU.
        launch: What a worker asks for.
    """
    wanted = launch.accelerator_type
    return sum(_workers(node, launch) for node in nodes if wanted is None or f"{_LABEL}{wanted}" in node)


def _workers(node: Mapping[str, float], launch: LaunchConfig) -> int:
    by_cpu = math.floor(node.get("CPU", 0.0) / launch.cpus_per_worker + 1e-9)
    gpus, share = node.get("GPU", 0.0), launch.gpus_per_worker
    if share == 0:
        return by_cpu
    by_gpu = math.floor(gpus) * math.floor(1 / share + 1e-9) if share < 1 else math.floor(gpus / share + 1e-9)
    return min(by_cpu, by_gpu)


def check_accelerator(nodes: Sequence[Mapping[str, float]], launch: LaunchConfig) -> None:
    """See that there is a machine with the wanted type of GPU.

    Raises:
        UserError: There is none; tells the types that there are.
    """
    wanted = launch.accelerator_type
    found = sorted({name.removeprefix(_LABEL) for node in nodes for name in node if name.startswith(_LABEL)})
    if wanted is not None and wanted not in found:
        there = f"there are {', '.join(found)}" if found else "no machine of this cluster says what GPUs it has"
        raise UserError(f"launch.accelerator_type: given '{wanted}', but {there}; give one of them, or leave it out")


def with_workers(config: RunConfig, room: int) -> RunConfig:
    """Return the configuration with a number of workers: where it says `auto`, the most there is room for.

    That is the greatest number that divides the lanes and fits the rest of the configuration.

    Args:
        config: The resolved configuration.
        room: Workers that there is room for.

    Raises:
        UserError: There is no room for any.
    """
    if config.launch.num_workers != "auto":
        return config
    tree = to_dict(config)
    for workers in range(min(room, config.data.lanes), 0, -1):
        try:
            return RunConfig.model_validate(tree | {"launch": tree["launch"] | {"num_workers": workers}})
        except ValidationError:  # it does not divide the lanes, or what a worker takes of a batch is too odd
            continue
    launch = config.launch
    kind = f" of type {launch.accelerator_type}" if launch.accelerator_type else ""
    raise UserError(
        f"launch.num_workers: auto finds no room for a worker with {launch.cpus_per_worker:g} CPU and "
        f"{launch.gpus_per_worker:g} GPU{kind} on the machines that are there; ask for less, or give a number and Ray "
        "waits for machines"
    )
