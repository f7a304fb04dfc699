# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedBaseClass=false, reportAttributeAccessIssue=false
"""Runs training on Ray Train V2: an own one-node Ray started for the run, or a cluster that is already there.

The driver stays in charge of the terminal: `fit()` blocks in a thread while the main thread shows progress and listens
for Ctrl-C. Workers find their credentials where their machine keeps them (environment, files, instance role); an own
Ray hands down the driver's environment. Nothing secret is put into a runtime environment, which Ray shows to everyone.
"""

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import Any, cast

from hmtl_dist import garbage
from hmtl_dist.data.storage.config import REACHED
from hmtl_dist.data.storage.waits import Wait, WaitNotice, hear
from hmtl_dist.data.stream.worker import LoaderDiedError
from hmtl_dist.errors import UserError
from hmtl_dist.launch.failure import TrainingError, one_line
from hmtl_dist.launch.folders import run_folder, scratch_folder
from hmtl_dist.launch.ray_cluster import ANSWER_SECONDS, Cluster, ray_cluster
from hmtl_dist.launch.ray_metrics import RunMetrics
from hmtl_dist.launch.ray_nodes import actor_here, living_nodes, scales
from hmtl_dist.launch.relay import Relay
from hmtl_dist.launch.room import check_accelerator, with_workers, workers_on
from hmtl_dist.launch.signals import StopRequest
from hmtl_dist.launch.threads import num_threads, torch_threads
from hmtl_dist.run_config import RunConfig
from hmtl_dist.train.background import in_thread
from hmtl_dist.train.base import Outcome, Progress, RankContext, RunContext, TrainRank

_LOOK_SECONDS = 0.2
"""How often the driver looks for progress and for a stop request."""
_DIED = "its process died (it crashed or was killed, for memory perhaps)"


class RayListener:
    """The loop's listener on a worker.

    Args:
        relay: The driver's mailbox.
        rank: This rank.
        metrics: Takes a window's figures too; None where nobody scrapes them.
    """

    def __init__(self, relay: Any, rank: int, metrics: RunMetrics | None = None) -> None:
        self._relay = relay
        self._rank = rank
        self._metrics = metrics
        self._preemption: Any = None
        self._over = False
        self._stop = threading.Event()
        threading.Thread(target=self._wait_for_stop, name="stop request", daemon=True).start()

    def _wait_for_stop(self) -> None:
        import ray

        try:
            ray.get(self._relay.stop_requested.remote())
        except ray.exceptions.RayError:
            if not self._over:  # the relay ends with its driver: nobody is left to train for, and another may begin
                os._exit(1)
        self._stop.set()

    def close(self) -> None:
        """Take note that the training is over."""
        self._over = True

    def progress(self, progress: Progress) -> None:
        """Send a line of progress to the driver, without waiting for it."""
        self._relay.push.remote(progress)

    def note(self, line: str) -> None:
        """Send a line to the driver, without waiting for it."""
        self._relay.push.remote(line)

    def report(self, metrics: Mapping[str, float], checkpoint: str | None) -> None:
        """Tell Ray Train the figures of a window and where the newest checkpoint is; a barrier over the ranks.

        The checkpoint goes along as a figure. Registered as Ray's own, it would have to stay forever: Ray refuses to
        start again in a folder where one it knew is gone, and old checkpoints do go.
        """
        import ray.train

        if self._metrics is not None:
            self._metrics.report(metrics)
        told: dict[str, Any] = dict(metrics)
        if checkpoint is not None:
            told["checkpoint"] = checkpoint
        ray.train.report(told)

    def should_stop(self) -> bool:
        """Whether the driver asked for an orderly stop."""
        return self._stop.is_set()

    def hung(self, said: str) -> None:
        """Leave the line for the driver, which sees a dead process next."""
        import ray

        ray.get(self._relay.give_up.remote(f"rank {self._rank}: {said}"), timeout=ANSWER_SECONDS)

    def should_save(self) -> bool:
        """Whether Ray was told that a machine of this run will be taken away, and nothing was saved since."""
        # get_preemption_info() is a barrier: too dear for every step. This is what it hands round.
        from ray.train.v2._internal.execution.context import get_train_context

        info: Any = get_train_context().preemption_context.preemption_info
        new, self._preemption = info is not None and info != self._preemption, info
        return new


def run_ray(
    config: RunConfig,
    show: Callable[[Progress], None],
    train: TrainRank | None = None,
    *,
    run: RunContext | None = None,
    on_stop: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Train on `launch.num_workers` Ray workers and return how it ended.

    The cluster is `launch.address`, else that of the submitted job (RAY_ADDRESS), else an own one that starts and ends
    with this call. The first SIGINT or SIGTERM asks the workers for an orderly stop, with a checkpoint, and waits; the
    second raises KeyboardInterrupt.

    Args:
        config: The resolved configuration; the workers get it as it is.
        show: Called on the main thread with every line of progress of rank 0.
        train: What to run instead of `train.worker.train_rank`; importable on the workers.
        run: Which run it is; if empty, one that MLflow knows nothing of.
        on_stop: Called once, inside a signal's handler, when a stop is asked for.
        should_stop: Asked now and then whether to stop in order, as after the first signal.
        say: Called with what the user should know of where it runs.

    Raises:
        UserError: A worker met something the user can mend, or the cluster is missing or closed.
        TrainingError: Anything else broke; the message is one line, the traceback is in this process's output.
    """
    with ray_cluster(config.launch) as cluster, StopRequest(on_stop) as stop:
        config = _placed(config, cluster, say)
        relay = actor_here(Relay)
        say(f"Ray is up; starting {config.launch.world_size} worker(s)")
        # in the main thread `fit` would take over Ctrl-C
        trainer = _trainer(config, run or RunContext(run_folder(config)), train, relay, cluster)
        fit = in_thread(trainer.fit, "ray train")
        asked = False
        while not _done(fit):
            cluster.check()
            _show_new(relay, show, say)
            if not asked and (stop.requested or (should_stop is not None and should_stop())):
                relay.request_stop.remote()
                asked = True
        _show_new(relay, show, say)
        return _outcome(fit, relay)


def _placed(config: RunConfig, cluster: Cluster, say: Callable[[str], None]) -> RunConfig:
    """See what the machines are, and decide how many workers `auto` is.

    Raises:
        UserError: There is no GPU of the type asked for, or no room.
    """
    nodes = living_nodes()
    if cluster.own or not scales():
        check_accelerator(nodes, config.launch)
    room = workers_on(nodes, config.launch)
    placed = with_workers(config, room)
    if config.launch.num_workers == "auto":
        say(
            f"launch.num_workers=auto: {placed.launch.world_size} worker(s); {len(nodes)} machine(s) have room for "
            f"{room}, and data.lanes={config.data.lanes}"
        )
    return placed


# --- the workers -------------------------------------------------------------------------------------------------


def _trainer(config: RunConfig, run: RunContext, train: TrainRank | None, relay: Any, cluster: Cluster) -> Any:
    import ray.train

    launch = config.launch
    backend = "nccl" if launch.gpus_per_worker > 0 else "gloo"
    resources = {"CPU": launch.cpus_per_worker}
    if launch.gpus_per_worker > 0:
        resources["GPU"] = launch.gpus_per_worker
    own = cluster.own

    def train_on_worker() -> "Outcome | TrainingError | UserError":
        # all within, not as Ray Train's configuration: its controller would import torch to read that
        return _train_on_worker(config, run, train, relay, own=own)

    arguments: dict[str, Any] = {
        "scaling_config": ray.train.ScalingConfig(
            num_workers=launch.world_size,
            use_gpu=launch.gpus_per_worker > 0,
            resources_per_worker=resources,
            accelerator_type=launch.accelerator_type,
        ),
        "run_config": ray.train.RunConfig(
            name=config.name,
            # our checkpoints are elsewhere; this holds what Ray Train's controller, on this machine, writes of its own
            storage_path=str(cluster.scratch / "train"),
            failure_config=ray.train.FailureConfig(max_failures=launch.max_failures, controller_failure_limit=0),
        ),
    }
    from hmtl_dist.launch.ray_own import FileConfig, OwnRayTrainer, without

    if cluster.own:
        return OwnRayTrainer(train_on_worker, backend_config=FileConfig(backend, str(cluster.scratch)), **arguments)

    import ray.train.torch

    class Trainer(ray.train.torch.TorchTrainer):
        """Without an actor for Ray Data: 2 s less."""

        def _create_default_callbacks(self) -> list[Any]:
            return without(super()._create_default_callbacks(), "DatasetsCallback")

    return Trainer(train_on_worker, torch_config=ray.train.torch.TorchConfig(backend=backend), **arguments)


def _train_on_worker(
    config: RunConfig, run: RunContext, train: TrainRank | None, relay: Any, *, own: bool
) -> "Outcome | TrainingError | UserError":
    """Run one rank; Ray Train has made the process group.

    What starting again cannot mend is returned by the workers that Ray starts after it, on all ranks alike.
    """
    garbage.collect_rarely()
    import ray
    import ray.train
    import ray.train.torch

    if train is None:
        from hmtl_dist.train.worker import train_rank as train
    known: TrainingError | UserError | None = cast("Any", ray.get(relay.failed.remote()))
    if known is not None:
        return known
    if own or ray.get(relay.under_way.remote()):  # its driver has reached the same storages from this machine
        os.environ[REACHED] = "1"
    context = ray.train.get_context()
    rank = context.get_world_rank()
    rank_context = RankContext(
        rank=rank,
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        device=str(ray.train.torch.get_device()),
        scratch=scratch_folder(config, rank),
        run=run,
        node=context.get_node_rank(),
        nodes=_count_nodes(context),
    )
    listener = RayListener(relay, rank, None if own else RunMetrics(config.name, rank))
    try:
        with torch_threads(num_threads(config.launch)), WaitNotice(relay.waits.remote):
            outcome = train(config, rank_context, listener)
        return replace(outcome, nodes=rank_context.nodes)
    except (RuntimeError, OSError, LoaderDiedError):  # a rank that has lost another one, its loader or its network
        raise
    except Exception as error:
        final = (
            UserError(str(error)) if isinstance(error, UserError) else TrainingError(f"rank {rank}: {one_line(error)}")
        )
        ray.get(relay.fail.remote(final))
        raise
    finally:
        listener.close()


def _count_nodes(context: Any) -> int:
    """Count the machines that hold ranks: they may hold unlike numbers of them. Collective."""
    import torch.distributed as dist

    if context.get_world_size() == 1:
        return 1
    numbers: list[int] = [0] * context.get_world_size()
    dist.all_gather_object(numbers, context.get_node_rank())
    return max(numbers) + 1


# --- the driver --------------------------------------------------------------------------------------------------


def _done(future: "Future[Any]") -> bool:
    """Wait a moment for a result."""
    return bool(wait([future], timeout=_LOOK_SECONDS).done)


def _show_new(relay: Any, show: Callable[[Progress], None], say: Callable[[str], None]) -> None:
    import ray

    try:
        left = ray.get(relay.take.remote(), timeout=ANSWER_SECONDS)
    except (
        ray.exceptions.GetTimeoutError,
        ray.exceptions.RayError,
    ):  # its machine is gone; the run itself says what that means
        return
    lines, wait = cast("tuple[list[Progress | str], Wait | None]", left)
    for line in lines:
        if isinstance(line, str):
            say(line)
        else:
            show(line)
    if wait is not None:
        hear(wait)


def _outcome(fit: "Future[Any]", relay: Any) -> Outcome:
    import ray.train

    try:
        outcome = fit.result().return_value
    except ray.train.TrainingFailedError as error:
        cause = _cause(error)
        if isinstance(cause, TrainingError) and (hung := _last_words(relay)):
            cause = TrainingError(hung, keep_logs=True)
        raise cause from error
    if isinstance(outcome, (TrainingError, UserError)):
        raise outcome
    if not isinstance(outcome, Outcome):
        raise TrainingError("Ray Train ended without an outcome", keep_logs=True)
    return outcome


def _last_words(relay: Any) -> str | None:
    """Return what a rank that hung has said of it."""
    import ray

    try:
        return ray.get(relay.gave_up.remote(), timeout=ANSWER_SECONDS)
    except (ray.exceptions.GetTimeoutError, ray.exceptions.RayError):
        return None


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
