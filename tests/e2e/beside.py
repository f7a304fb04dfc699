# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""A job that says for each node of the cluster on which nodes the actors are that are asked for beside it."""

import json
import sys

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hmtl_dist.launch.ray_nodes import actor_here


class Where:
    """Knows its node."""

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


def beside() -> list[str]:
    """The nodes of four actors, each to be where this runs."""
    return ray.get([actor.node.remote() for actor in [actor_here(Where) for _ in range(4)]])


if __name__ == "__main__":
    ray.init()
    answers: dict[str, list[str]] = {}
    for node in (one for one in ray.nodes() if one["Alive"]):
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        answers[node["NodeID"]] = ray.get(ray.remote(num_cpus=0)(beside).options(scheduling_strategy=there).remote())
    sys.stdout.write(json.dumps(answers) + "\n")
