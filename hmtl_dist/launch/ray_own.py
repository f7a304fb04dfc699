# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedBaseClass=false, reportUnusedClass=false
"""Ray Train V2 on an own Ray, which is one machine and ends with the run: without what only a cluster needs.

Ray Train's controller imports this module, and so neither torch nor the rest of this package. On a machine of its own
nobody scales a cluster for it, nothing outlives it, and the environment is the driver's: the actors need none of their
own and take the processes that Ray starts in advance.
"""

import os
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from secrets import token_hex
from typing import Any, cast

import ray
import ray.train
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from hmtl_dist import garbage

_LEAVE_SECONDS = 10.0
"""How long the ranks may take to leave their group."""


def without(callbacks: list[Any], *names: str) -> list[Any]:
    """Return Ray Train's callbacks but for some, by the names of their classes; those below start an actor each."""
    return [callback for callback in callbacks if type(callback).__name__ not in names]


class OwnRayTrainer(DataParallelTrainer):
    """Trains on the own Ray that this process has started; takes what `DataParallelTrainer` takes."""

    def _create_default_callbacks(self) -> list[Any]:
        # for Ray Data, and for clusters that outlive a run
        return without(super()._create_default_callbacks(), "DatasetsCallback", "PlacementGroupCleanerCallback")

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        policy = _NoAutoscaler(self.scaling_config)
        controller: Any = cast("Any", ray.remote(num_cpus=0)(_Controller)).remote(
            **{**arguments, "scaling_policy": policy}
        )
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())


class _WorkerGroup(WorkerGroup):
    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Any) -> Any:
        return custom_runtime_env


class _Controller(TrainController):
    worker_group_cls = _WorkerGroup


class _NoAutoscaler(FixedScalingPolicy):
    """As many workers as were asked for, without the actor that would tell an autoscaler of them."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class FileConfig(BackendConfig):
    """How the ranks find one another: by a file, as torch's own store listens to the network.

    Args:
        backend: torch's name of the backend.
        folder: Where the file may be, on this machine.
    """

    timeout_s = 1800

    def __init__(self, backend: str, folder: str) -> None:
        self.backend = backend
        self.folder = folder

    @property
    def backend_cls(self) -> type[Backend]:
        """The class that makes the process group."""
        return _FileBackend

    @property
    def train_func_context(self) -> Any:
        """What the training function runs in."""
        return _OnDevice


class _OnDevice(AbstractContextManager[None]):
    """Makes a rank's GPU the default one of the thread that trains."""

    def __enter__(self) -> None:
        import torch
        from ray.train.torch import get_device

        device = get_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)

    def __exit__(self, *_: object) -> None:
        pass


class _FileBackend(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        config: FileConfig = backend_config
        address = f"file://{config.folder}/ranks-{token_hex(8)}"  # another one each time: the ranks of before are dead
        ray.get(
            [
                worker_group.execute_single_async(rank, _join_ranks, config.backend, address, config.timeout_s)
                for rank in range(len(worker_group))
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        with suppress(GetTimeoutError):  # a rank that hangs: its process is ended next
            ray.get(worker_group.execute_async(_leave_ranks), timeout=_LEAVE_SECONDS)


def _join_ranks(backend: str, address: str, seconds: int) -> None:
    """Make the process group, and set what libraries ask the environment for, as `torchrun` does."""
    garbage.collect_rarely()
    import torch.distributed as dist

    context = ray.train.get_context()
    environment = {
        "RANK": context.get_world_rank(),
        "WORLD_SIZE": context.get_world_size(),
        "LOCAL_RANK": context.get_local_rank(),
        "LOCAL_WORLD_SIZE": context.get_local_world_size(),
        "NODE_RANK": context.get_node_rank(),
    }
    os.environ.update({name: str(value) for name, value in environment.items()})
    dist.init_process_group(
        backend,
        init_method=address,
        rank=environment["RANK"],
        world_size=environment["WORLD_SIZE"],
        timeout=timedelta(seconds=seconds),
    )


def _leave_ranks() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
