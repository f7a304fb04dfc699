# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedBaseClass=false, reportAttributeAccessIssue=false
"""Runs training on Ray Train V2: an own one-node Ray started for the run, or a cluster that is already there.

The driver stays in charge of the terminal: `fit()` blocks in a thread while the main thread shows progress and listens
for Ctrl-C. Workers find their credentials where their machine keeps them (environment, files, instance role); an own
Ray hands down the driver's environment. Nothing secret is put into a runtime environment, which Ray shows to everyone.
"""

import math
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, cast

from hmtl_dist.errors import UserError
from hmtl_dist.launch.failure import TrainingError, one_line
from hmtl_dist.launch.place import TrainRank, num_threads, run_folder, scratch_folder, torch_threads
from hmtl_dist.launch.relay import Relay
from hmtl_dist.launch.signals import StopRequest
from hmtl_dist.run_config import LaunchConfig, RunConfig
from hmtl_dist.train.base import Outcome, Place, Progress

_LOOK_SECONDS = 0.2
"""How often the driver looks for progress and for a stop request."""
_ANSWER_SECONDS = 10.0
"""How long a cluster may take to answer at all."""
_OBJECT_STORE_BYTES = 100 * 2**20
"""Nothing large goes through Ray's object store: little more than the least it accepts."""

_DIED = "its process died (it crashed or was killed, for memory perhaps)"

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
    "RAY_AUTH_TOKEN": token_hex(32),  # Ray listens on the network: nobody else shall run code here
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


class RayListener:
    """The loop's listener on a worker."""

    def __init__(self, relay: Any) -> None:
        self._relay = relay
        self._stop = threading.Event()
        threading.Thread(target=self._wait_for_stop, name="stop request", daemon=True).start()

    def _wait_for_stop(self) -> None:
        import ray

        with suppress(ray.exceptions.RayError):  # the relay ends with its driver, and so does this worker
            ray.get(self._relay.stop_requested.remote())
            self._stop.set()

    def progress(self, progress: Progress) -> None:
        """Send a line of progress to the driver, without waiting for it."""
        self._relay.push.remote(progress)

    def report(self, metrics: Mapping[str, float], checkpoint: str | None) -> None:
        """Tell Ray Train the figures of a window and where the newest checkpoint is; a barrier over the ranks.

        The checkpoint goes along as a figure. Registered as Ray's own, it would have to stay forever: Ray refuses to
        start again in a folder where one it knew is gone, and old checkpoints do go.
        """
        import ray.train

        figures: dict[str, Any] = dict(metrics)
        if checkpoint is not None:
            figures["checkpoint"] = checkpoint
        ray.train.report(figures)

    def should_stop(self) -> bool:
        """Whether the driver asked for an orderly stop."""
        return self._stop.is_set()


def run_ray(config: RunConfig, show: Callable[[Progress], None], train: TrainRank | None = None) -> Outcome:
    """Train on `launch.num_workers` Ray workers and return how it ended.

    The cluster is `launch.address`, else that of the submitted job (RAY_ADDRESS), else an own one that starts and ends
    with this call. The first SIGINT or SIGTERM asks the workers for an orderly stop, with a checkpoint, and waits; the
    second raises KeyboardInterrupt.

    Args:
        config: The resolved configuration; the workers get it as it is.
        show: Called on the main thread with every line of progress of rank 0.
        train: What to run instead of `train.worker.train_rank`; importable on the workers.

    Raises:
        UserError: A worker met something the user can mend, or the cluster is missing or closed.
        TrainingError: Anything else broke; the message is one line, the traceback is in this process's output.
    """
    with _ray(config.launch) as cluster, StopRequest() as stop:
        import ray

        relay: Any = cast("Any", ray.remote(num_cpus=0)(Relay)).remote()
        fit = _in_thread(_trainer(config, train, relay, cluster).fit)
        asked = False
        while not _done(fit):
            _show_new(relay, show)
            if stop.requested and not asked:
                relay.request_stop.remote()
                asked = True
        _show_new(relay, show)
        return _outcome(fit)


# --- the cluster -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cluster:
    own: bool
    """Whether it starts and ends with the run."""
    scratch: Path
    """Folder of the driver's machine for what Ray Train writes."""


@contextmanager
def _ray(launch: LaunchConfig) -> Generator[_Cluster]:
    """Be connected to Ray."""
    address = launch.address or os.environ.get("RAY_ADDRESS") or "local"
    given = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    _set_variables(own=address == "local")
    import ray

    if ray.is_initialized():  # whoever connected, a search for example, also disconnects
        with tempfile.TemporaryDirectory(prefix="hmtl-ray-") as scratch:
            yield _Cluster(own=False, scratch=Path(scratch))
        return
    # not under TMPDIR: Ray's sockets live in this folder, and the path of a socket may have 107 characters at most
    scratch = Path(tempfile.mkdtemp(prefix="hmtl-ray-", dir="/tmp"))
    keep = False
    try:
        if address == "local":
            _start(launch, scratch)
        else:
            _join(launch, address)
        yield _Cluster(own=address == "local", scratch=scratch)
    except Exception as error:
        keep = getattr(error, "keep_logs", False)
        raise
    finally:
        ray.shutdown()
        for name in [name for name in os.environ if name.startswith("RAY_AUTH_")]:
            del os.environ[name]  # an own Ray's token is no other cluster's
        os.environ.update(given)
        if keep:
            print(f"Ray's own logs are kept in {scratch}", flush=True)  # noqa: T201  (goes to the run's log)
        else:
            shutil.rmtree(scratch, ignore_errors=True)


def _set_variables(*, own: bool) -> None:
    """Set what Ray reads from the environment, before it is imported; what the user has set stays."""
    variables = _DRIVER_VARIABLES | _TRAIN_VARIABLES | (_OWN_RAY_VARIABLES if own else {})
    if own and sys.platform == "linux":
        variables["GLOO_SOCKET_IFNAME"] = "lo"  # one machine: do not depend on how its host name resolves
    if not own:
        variables["RAY_AUTH_MODE"] = "token" if _token_configured() else "disabled"
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def _token_configured() -> bool:
    """Whether a token is where Ray looks for one."""
    named = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return named or (Path.home() / ".ray" / "auth_token").is_file()


def _start(launch: LaunchConfig, scratch: Path) -> None:
    import ray

    _check_gpus(launch)
    ray.init(
        address="local",
        # an own Ray is as large as the run: its cores are only a count that must suffice
        num_cpus=math.ceil(launch.num_workers * launch.cpus_per_worker),
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        # the same environment as Ray Train's actors: they then take the worker processes that Ray starts in advance
        runtime_env={"env_vars": {name: os.environ[name] for name in _worker_variables()}},
        _temp_dir=str(scratch),
    )


def _worker_variables() -> list[str]:
    return [*_TRAIN_VARIABLES, "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"]


def _join(launch: LaunchConfig, address: str) -> None:
    import ray

    host, _, port = address.rpartition(":")
    if host:  # Ray itself would go on asking for more than five minutes
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
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


def _check_gpus(launch: LaunchConfig) -> None:
    if launch.gpus_per_worker == 0:
        return
    import torch

    wanted = math.ceil(launch.gpus_per_worker * launch.num_workers)
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted > found:
        raise UserError(
            f"launch.gpus_per_worker: {launch.num_workers} workers with {launch.gpus_per_worker:g} each need {wanted} "
            f"GPUs, but torch finds {found} here; use launch.gpus_per_worker=0 to train on the CPU"
        )


# --- the workers -------------------------------------------------------------------------------------------------


def _trainer(config: RunConfig, train: TrainRank | None, relay: Any, cluster: _Cluster) -> Any:
    import ray.train
    import ray.train.torch

    launch = config.launch
    unused = {"DatasetsCallback"} | ({"PlacementGroupCleanerCallback"} if cluster.own else set[str]())

    class Trainer(ray.train.torch.TorchTrainer):
        """Without an actor for Ray Data and, in an own Ray, one for clusters that outlive a run: 2 s less each."""

        def _create_default_callbacks(self) -> list[Any]:
            callbacks: list[Any] = super()._create_default_callbacks()
            return [callback for callback in callbacks if type(callback).__name__ not in unused]

    resources = {"CPU": launch.cpus_per_worker}
    if launch.gpus_per_worker > 0:
        resources["GPU"] = launch.gpus_per_worker
    return Trainer(
        _train_on_worker,
        train_loop_config={"config": config, "train": train, "relay": relay, "storage": run_folder(config)},
        scaling_config=ray.train.ScalingConfig(
            num_workers=launch.num_workers, use_gpu=launch.gpus_per_worker > 0, resources_per_worker=resources
        ),
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if launch.gpus_per_worker > 0 else "gloo"),
        run_config=ray.train.RunConfig(
            name=config.name,
            # our checkpoints are elsewhere; this holds what Ray Train's controller, on this machine, writes of its own
            storage_path=str(cluster.scratch / "train"),
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )


def _train_on_worker(task: dict[str, Any]) -> Outcome:
    """Run one rank; Ray Train has made the process group."""
    import ray.train
    import ray.train.torch

    train: TrainRank | None = task["train"]
    if train is None:
        from hmtl_dist.train.worker import train_rank as train
    config: RunConfig = task["config"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    place = Place(
        rank=rank,
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        device=str(ray.train.torch.get_device()),
        scratch=scratch_folder(config, rank),
        storage=task["storage"],
    )
    with torch_threads(num_threads(config.launch)):
        return train(config, place, RayListener(task["relay"]))


# --- the driver --------------------------------------------------------------------------------------------------


def _in_thread(function: Callable[[], Any]) -> "Future[Any]":
    """Call a function in a thread that does not hold the process up; in the main one `fit` would take over Ctrl-C."""
    future: Future[Any] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001  (handed to whoever asks for the result)
            future.set_exception(error)

    threading.Thread(target=call, name="ray train", daemon=True).start()
    return future


def _done(future: "Future[Any]") -> bool:
    """Wait a moment for a result."""
    return bool(wait([future], timeout=_LOOK_SECONDS).done)


def _show_new(relay: Any, show: Callable[[Progress], None]) -> None:
    import ray

    try:
        lines: list[Progress] = ray.get(relay.take.remote(), timeout=_ANSWER_SECONDS)
    except (
        ray.exceptions.GetTimeoutError,
        ray.exceptions.RayError,
    ):  # its machine is gone; the run itself says what that means
        return
    for progress in lines:
        show(progress)


def _outcome(fit: "Future[Any]") -> Outcome:
    import ray.train

    try:
        outcome = fit.result().return_value
    except ray.train.TrainingFailedError as error:
        raise _cause(error) from error
    if not isinstance(outcome, Outcome):
        raise TrainingError("Ray Train ended without an outcome", keep_logs=True)
    return outcome


def _cause(error: Exception) -> Exception:
    """Find the one thing that broke in what Ray Train raises.

    What a user can mend goes first; then a process that died, since the other ranks then break for want of it; then
    the lowest rank's error.
    """
    from ray.exceptions import RayActorError

    failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    causes = {rank: getattr(failure, "_base_exc", failure) for rank, failure in sorted(failures.items())}
    for cause in causes.values():
        if isinstance(cause, UserError):
            return cause
    for rank, cause in causes.items():
        if hasattr(cause, "health_check_failure"):
            return TrainingError(f"rank {rank}: {_DIED}", keep_logs=True)
    for rank, cause in causes.items():
        return TrainingError(f"rank {rank}: {one_line(cause)}")
    cause = getattr(error, "controller_failure", error)
    message = f"a worker: {_DIED}" if isinstance(cause, RayActorError) else one_line(cause)
    return TrainingError(message, keep_logs=True)
