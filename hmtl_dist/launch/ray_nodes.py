# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false
"""The nodes of the Ray cluster that this job runs on: an actor beside the driver, a question to all of them."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from hmtl_dist.launch.failure import one_line

_CLOCK_LOOKS = 5
"""The quickest of so many answers tells the time best."""


@dataclass(frozen=True)
class NodeAnswer:
    """What a node said."""

    node: str
    """Its address and host name."""
    gpus: float
    """GPUs that Ray counts there."""
    clock_seconds: float | None
    """How far its clock is ahead of the driver's."""
    said: Any
    """What the question returned; None if it failed."""
    error: str | None
    """Why it failed, in one line."""


class Respondent:
    """Answers on a node."""

    def clock(self) -> float:
        """Return the time here, in seconds since the epoch."""
        return time.time()

    def ask(self, question: Callable[[], Any]) -> Any:
        """Return what the question returns here."""
        return question()


def actor_here(of: type) -> Any:
    """Start an actor on this process's node, as Ray Train does with its controller: no other node takes it along."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return cast("Any", ray.remote(num_cpus=0)(of)).options(scheduling_strategy=here).remote()


def living_nodes() -> list[dict[str, float]]:
    """Return Ray's resources of each machine that is there."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def scales() -> bool:
    """Whether the cluster has an autoscaler, which brings machines that are not there yet."""
    from ray._private.state import state

    return cast("Any", state).get_max_resources_from_cluster_config() is not None


def ask_every_node(question: Callable[[], Any], *, patience_seconds: float) -> list[NodeAnswer]:
    """Ask all living nodes at once, the head too; a node that does not answer in time says so.

    Args:
        question: Importable on the nodes.
        patience_seconds: How long all of them have together.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    actor: Any = cast("Any", ray.remote(num_cpus=0)(Respondent))
    there = [
        actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in nodes
    ]
    asked = [one.ask.remote(question) for one in there]
    deadline = time.monotonic() + patience_seconds
    answers: list[NodeAnswer] = []
    for node, respondent, reference in zip(nodes, there, asked, strict=True):
        said, error, clock = None, None, None
        try:
            said = ray.get(reference, timeout=max(1.0, deadline - time.monotonic()))
            clock = _clock(respondent)
        except Exception as problem:  # noqa: BLE001  # whatever it is, the other nodes are to be heard
            error = one_line(getattr(problem, "cause", None) or problem)
        name = f"{node['NodeManagerAddress']} ({node['NodeManagerHostname']})"
        answers.append(NodeAnswer(name, float(node["Resources"].get("GPU", 0)), clock, said, error))
    ray.shutdown()
    return answers


def _clock(respondent: Any) -> float:
    """Return how many seconds a node's clock is ahead of ours, by the answer that took least time."""
    import ray

    best = (float("inf"), 0.0)
    for _ in range(_CLOCK_LOOKS):
        before = time.time()
        there = float(cast("Any", ray.get(respondent.clock.remote(), timeout=10)))
        after = time.time()
        best = min(best, (after - before, there - (before + after) / 2))
    return best[1]
