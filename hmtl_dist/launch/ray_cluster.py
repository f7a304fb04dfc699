# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false
"""Connects to Ray: an own one-node Ray that starts and ends with its user, or a cluster that is already there.

An own Ray hands down the driver's environment, listens on loopback and asks for a token that nobody else has. Nothing
secret is put into a runtime environment, which Ray shows to everyone.
"""

import functools
import math
import os
import socket
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, cast

from hmtl_dist.errors import UserError
from hmtl_dist.launch.failure import TrainingError, one_line
from hmtl_dist.launch.ray_token import find_token
from hmtl_dist.run_config import LaunchConfig
from hmtl_dist.temporary import PREFIX, temporary_folder

ANSWER_SECONDS = 10.0
"""How long a cluster may take to answer at all."""
_START_SECONDS = 240.0
"""How long the servers of an own Ray may take to start."""
_LOOK_SECONDS = 0.2
"""How often its servers are looked for meanwhile."""
_ACTORS = 3
"""Processes of an own Ray beside the workers."""
_OBJECT_STORE_BYTES = 100 * 2**20
"""Nothing large goes through Ray's object store: little more than the least it accepts."""

_TRAIN_VARIABLES = {
    # report() hands over at most one result a look of the controller, so this bounds how often a run can report
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # a cluster may have to grow first
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it writes every printed line twice
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",  # as Ray Train sets it for its controller
}
"""Ray Train hands these to its controller and workers as their runtime environment."""
_DRIVER_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of the configuration keep their meaning on workers
    "RAY_DEDUP_LOGS": "0",  # the log file wants every line,
    "RAY_COLOR_PREFIX": "0",  # and no colours
}
_OWN_RAY_VARIABLES = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": token_hex(32),  # nobody else on this machine shall run code here,
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # and nobody elsewhere connect: Ray then listens on loopback alone
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_worker_maximum_startup_concurrency": "64",  # all processes of a run at once, not one for each core at a time
}


@dataclass(frozen=True)
class Cluster:
    """The Ray that this process is connected to."""

    own: bool
    """Whether it starts and ends with the run."""
    scratch: Path
    """Folder of the driver's machine for what Ray Train and Ray Tune write."""

    def check(self) -> None:
        """See that the servers of an own Ray live, before Ray's library ends this process for want of them.

        Raises:
            TrainingError: One has died; what was left of that Ray is ended.
        """
        if self.own and (dead := dead_servers()):
            kill_servers()
            raise TrainingError(
                f"Ray's {dead} died (it crashed or was killed, for memory perhaps); the same command again goes on "
                "from the last checkpoint",
                keep_logs=True,
            )


def cluster_address(launch: LaunchConfig) -> str | None:
    """Return where the cluster is that a run joins, None where it starts a Ray of its own."""
    return launch.address or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def ray_cluster(launch: LaunchConfig, *, num_cpus: int | None = None) -> Generator[Cluster]:
    """Be connected to Ray: to the cluster that is named, or to an own one that ends with the block.

    Args:
        launch: Names the cluster, and says what an own one has to have room for.
        num_cpus: Cores of an own one; as many as the run's workers need if empty.

    Raises:
        UserError: The cluster is missing or closed, or this machine lacks GPUs.
    """
    address = cluster_address(launch) or "local"
    given = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    _set_variables(own=address == "local")
    import ray

    if ray.is_initialized():  # whoever connected, a search for example, also disconnects
        with temporary_folder("ray") as scratch:
            yield Cluster(own=False, scratch=scratch)
        return
    # not under TMPDIR: Ray's sockets live in this folder, and the path of a socket may have 107 characters at most
    with temporary_folder("ray", "/tmp") as scratch:
        keep = False
        try:
            if address == "local":
                _start(launch, scratch, num_cpus or _cores(launch))
            else:
                _join(launch, address)
            yield Cluster(own=address == "local", scratch=scratch)
        except Exception as error:
            keep = getattr(error, "keep_logs", False)
            raise
        finally:
            ray.shutdown()
            for name in [name for name in os.environ if name.startswith("RAY_AUTH_")]:
                del os.environ[name]  # an own Ray's token is no other cluster's
            os.environ.update(given)
            if keep:
                kept = scratch.rename(scratch.with_name(scratch.name.replace(f"{PREFIX}ray-", "hmtl_ray_logs-")))
                print(f"Ray's own logs are kept in {kept}", flush=True)  # noqa: T201  (goes to the run's log)


def dead_servers() -> str | None:
    """Name the server of an own Ray that has died, which takes the whole of it along."""
    from ray._private import worker

    node: Any = cast("Any", worker)._global_node
    dead = {kind for kind, _ in node.dead_processes()} if node else set[str]()
    return next((kind for kind in ("gcs_server", "raylet") if kind in dead), None)


def kill_servers() -> None:
    """End what is left of an own Ray: its orderly end would wait for the server that has died."""
    from ray._private import worker

    cast("Any", worker)._global_node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)


def _set_variables(*, own: bool) -> None:
    """Set what Ray reads from the environment, before it is imported; what the user has set stays."""
    variables = _DRIVER_VARIABLES | _TRAIN_VARIABLES | (_OWN_RAY_VARIABLES if own else {})
    if own and sys.platform == "linux":
        variables["GLOO_SOCKET_IFNAME"] = "lo"  # one machine: do not depend on how its host name resolves
    if not own:
        variables["RAY_AUTH_MODE"] = "token" if find_token(os.environ) else "disabled"
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def _start(launch: LaunchConfig, scratch: Path, num_cpus: int) -> None:
    """Start an own Ray.

    Raises:
        UserError: It does not start.
    """
    check_own_gpus(launch)
    try:
        with _started_our_way():
            _init_own(scratch, num_cpus)
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        raise UserError(
            f"Ray did not start within {_START_SECONDS:.0f} s: the machine is too busy; wait, or use launch.kind=local "
            "with launch.num_workers=1"
        ) from error


@contextmanager
def _started_our_way() -> Generator[None]:
    """Start Ray's servers otherwise than Ray does, which has no settings for it.

    They have longer to start than the 30 s that are written into it: on a busy machine they need it. And they have a
    session of their own, where no signal to the driver's process group, or of its terminal, reaches them: the driver
    decides what follows, and the kernel ends them with it.
    """
    from ray._private import services

    known: Any = services
    get_node, popen = known.get_node, known.ConsolePopen

    def wait_for_node(*arguments: Any) -> Any:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:  # not there yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_SECONDS)

    known.get_node = wait_for_node
    known.ConsolePopen = functools.partial(popen, start_new_session=True)
    try:
        yield
    finally:
        known.get_node, known.ConsolePopen = get_node, popen


def _init_own(scratch: Path, num_cpus: int) -> None:
    import ray

    ray.init(
        address="local",
        # an own Ray is as large as the run: its cores are only a count that must suffice, and Ray starts as many
        # processes in advance
        num_cpus=num_cpus,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        _temp_dir=str(scratch),
    )


def _cores(launch: LaunchConfig) -> int:
    """Return how many cores an own Ray has: what the run's workers need, or all of this machine's.

    At least one for each process that takes part: the workers, mailbox, controller and barrier.
    """
    if launch.num_workers == "auto":
        return len(os.sched_getaffinity(0))
    return max(math.ceil(launch.num_workers * launch.cpus_per_worker), launch.num_workers + _ACTORS)


def _join(launch: LaunchConfig, address: str) -> None:
    import ray

    host, _, port = address.rpartition(":")
    if host:  # Ray itself would go on asking for more than five minutes
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
        except (OSError, ValueError) as error:
            raise UserError(
                f"no Ray cluster answers at '{address}' ({one_line(error)}); give launch.address=HOST:PORT of its "
                "head, or unset launch.address and RAY_ADDRESS to train on this machine"
            ) from error
    try:
        ray.init(address=address)
    except (ray.exceptions.AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"Ray cluster '{address}' cannot be joined ({one_line(error)}); if it asks for a token, set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE; else check that it runs this version of Ray"
        ) from error
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    if nodes > 1 and launch.storage is None:
        raise UserError(
            f"launch.storage: not given, but the cluster has {nodes} machines; "
            "give an s3:// URL or a folder that all of them see"
        )


def check_own_gpus(launch: LaunchConfig) -> None:
    """See that this machine has the GPUs that workers of an own Ray are to have.

    Raises:
        UserError: It has not.
    """
    if launch.gpus_per_worker == 0:
        return
    import torch

    workers = 1 if launch.num_workers == "auto" else launch.num_workers
    wanted = math.ceil(launch.gpus_per_worker * workers)
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted > found:
        raise UserError(
            f"launch.gpus_per_worker: {workers} workers with {launch.gpus_per_worker:g} each need {wanted} "
            f"GPUs, but torch finds {found} here; use launch.gpus_per_worker=0 to train on the CPU"
        )
