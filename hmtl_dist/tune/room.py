"""How many trials a cluster has room for at a time, so that none waits half placed for what another one holds."""

from collections.abc import Mapping, Sequence

from hmtl_dist.errors import UserError
from hmtl_dist.launch.room import workers_on
from hmtl_dist.run_config import LaunchConfig
from hmtl_dist.tune.space import Space


def places(nodes: Sequence[Mapping[str, float]], launch: LaunchConfig) -> int:
    """Return how many trials can train at the same time.

    Args:
        nodes: `CPU` and `GPU` of each machine.
        launch: What a trial asks for.
    """
    return workers_on(nodes, launch) // launch.world_size


def price_per_second(nodes: Sequence[Mapping[str, float]], launch: LaunchConfig, concurrency: int) -> float:
    """Return what a second of a trial costs: its part of the machines that trials train on, at their price.

    Args:
        nodes: `CPU` and `GPU` of each machine.
        launch: What a trial asks for, and the price of a machine's hour.
        concurrency: Trials at a time, which share the machines.
    """
    machines = sum(workers_on([node], launch) > 0 for node in nodes)
    return (launch.node_hour_price or 0.0) * machines / concurrency / 3600


def check_room(found: int, nodes: Sequence[Mapping[str, float]], launch: LaunchConfig) -> None:
    """Refuse a sweep of which no trial could ever start.

    Raises:
        UserError: There is no room for one trial.
    """
    if found:
        return
    cpus, gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    raise UserError(
        f"launch: a trial needs {launch.world_size} worker(s) with {launch.cpus_per_worker:g} CPU and "
        f"{launch.gpus_per_worker:g} GPU each, but Ray has {cpus:g} CPU and {gpus:g} GPU on {len(nodes)} machine(s); "
        "lower launch.num_workers, launch.cpus_per_worker or launch.gpus_per_worker"
    )


def in_hand(space: Space, launch: LaunchConfig, concurrency: int, room: int) -> int:
    """Return how many trials Tune may hold at once.

    Args:
        space: What is searched.
        launch: What a trial asks for.
        concurrency: Trials at a time.
        room: How many there is room for.

    Raises:
        UserError: They would have to take turns, and cannot.
    """
    apart = launch.world_size > 1  # a trial's own process takes no room, so Tune starts all it holds
    if space.exchanges:
        if apart and room < space.num_trials:
            raise UserError(
                f"budget.trials: a population of {space.num_trials} trials of several workers each trains at once, and "
                f"there is room for {room}; use fewer trials, or launch.num_workers=1"
            )
        return space.num_trials  # a population takes turns, all of it
    # One more than can run: it takes the process over of whoever ends first.
    return concurrency + 1 if concurrency == room and not apart else concurrency
