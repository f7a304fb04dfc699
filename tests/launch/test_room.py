"""How many workers `auto` is, on machines as Ray tells of them."""

from typing import Any

import pytest

from hmtl_dist.errors import UserError
from hmtl_dist.launch.room import check_accelerator, with_workers, workers_on
from hmtl_dist.run_config import LaunchConfig, RunConfig

H100 = {"CPU": 16.0, "GPU": 4.0, "accelerator_type:H100": 1.0}
L4 = {"CPU": 16.0, "GPU": 2.0, "accelerator_type:L4": 1.0}
PLAIN = {"CPU": 4.0}


def config(lanes: int = 8, num_workers: Any = "auto", **sections: Any) -> RunConfig:
    tree: dict[str, Any] = {
        "data": {"url": "nowhere", "batch_size": 48, "lanes": lanes},
        "tasks": {"mood": {"type": "classification"}},
        "launch": {"num_workers": num_workers},
    }
    return RunConfig.model_validate(tree | sections)


@pytest.mark.parametrize(
    ("launch", "expected"),
    [
        ({}, 36),
        ({"cpus_per_worker": 3}, 11),
        ({"gpus_per_worker": 1}, 6),
        ({"gpus_per_worker": 1, "accelerator_type": "L4"}, 2),
        ({"gpus_per_worker": 1, "cpus_per_worker": 8}, 4),
        ({"gpus_per_worker": 1, "accelerator_type": "T4"}, 0),
    ],
)
def test_room_is_that_of_all_machines_of_the_type(launch: dict[str, Any], expected: int) -> None:
    assert workers_on([H100, L4, PLAIN], LaunchConfig.model_validate(launch)) == expected


@pytest.mark.parametrize(
    ("lanes", "room", "workers"), [(8, 8, 8), (8, 7, 4), (8, 100, 8), (6, 5, 3), (6, 1, 1), (24, 23, 12)]
)
def test_auto_is_the_most_that_divides_the_lanes(lanes: int, room: int, workers: int) -> None:
    assert with_workers(config(lanes), room).launch.world_size == workers


def test_auto_leaves_each_worker_a_share_that_it_can_accumulate() -> None:
    """Of 48 samples, 4 workers take 12 each, which 8 parts do not divide; 2 workers take 24."""
    tree = config(4, engine={"accumulation_steps": 8})
    assert with_workers(tree, 4).launch.world_size == 2


def test_a_number_stays_whatever_there_is_room_for() -> None:
    tree = config(num_workers=4)
    assert with_workers(tree, 1) is tree


def test_nothing_else_of_the_configuration_changes() -> None:
    tree = config()
    found = with_workers(tree, 2)
    assert found.model_copy(update={"launch": tree.launch}) == tree


def test_no_room_is_one_line_with_what_a_worker_needs() -> None:
    with pytest.raises(UserError, match=r"^launch.num_workers: auto finds no room for a worker with 1 CPU and 0 GPU"):
        with_workers(config(), 0)


def test_wrong_type_of_gpu_is_told_what_there_is() -> None:
    launch = LaunchConfig(gpus_per_worker=1, accelerator_type="A100")
    with pytest.raises(UserError, match=r"^launch.accelerator_type: given 'A100', but there are H100, L4; "):
        check_accelerator([H100, L4, PLAIN], launch)
    with pytest.raises(UserError, match=r"but no machine of this cluster says what GPUs it has"):
        check_accelerator([PLAIN], launch)
    check_accelerator([H100, PLAIN], LaunchConfig(gpus_per_worker=1, accelerator_type="H100"))


def test_where_a_number_is_needed_auto_is_refused() -> None:
    with pytest.raises(UserError, match=r"^launch.num_workers: auto is for a run of its own; give a number here$"):
        _ = LaunchConfig(num_workers="auto").world_size
