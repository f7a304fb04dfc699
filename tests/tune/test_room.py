"""Trials at a time: as many as are placed whole, on one machine or several, on parts of a GPU too."""

from typing import Any

import pytest

from hmtl_dist.errors import UserError
from hmtl_dist.run_config import LaunchConfig
from hmtl_dist.tune.room import check_room, in_hand, places, price_per_second
from tests.tune.spaces import space

NODE = {"CPU": 16.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("nodes", "launch", "expected"),
    [
        ([{"CPU": 2.0}], {}, 2),
        ([{"CPU": 2.0}], {"cpus_per_worker": 2}, 1),
        ([{"CPU": 8.0}], {"num_workers": 2, "cpus_per_worker": 3}, 1),
        ([NODE], {"gpus_per_worker": 1}, 4),
        ([NODE], {"gpus_per_worker": 0.5}, 8),
        ([NODE], {"gpus_per_worker": 0.4}, 8),
        ([NODE], {"gpus_per_worker": 0.1, "cpus_per_worker": 2}, 8),
        ([NODE], {"gpus_per_worker": 3}, 1),
        ([NODE, NODE], {"gpus_per_worker": 3, "num_workers": 2}, 1),
        ([{"CPU": 3.0}, {"CPU": 3.0}], {"cpus_per_worker": 2}, 2),
        ([{"CPU": 64.0}], {"gpus_per_worker": 1}, 0),
    ],
)
def test_as_many_trials_as_there_are_whole_places(
    nodes: list[dict[str, float]], launch: dict[str, Any], expected: int
) -> None:
    assert places(nodes, LaunchConfig.model_validate(launch)) == expected


@pytest.mark.parametrize(
    ("nodes", "launch", "concurrency", "machines"),
    [
        ([{"CPU": 4.0}], {}, 4, 0.25),
        ([{"CPU": 4.0}], {}, 1, 1.0),  # nobody else uses the rest of it
        ([{"CPU": 0.0}, {"CPU": 2.0}, {"CPU": 2.0}], {}, 4, 0.5),  # a head that trains nothing is no trial's
        ([{"CPU": 2.0}, {"CPU": 2.0}], {"num_workers": 4}, 1, 2.0),
        ([NODE, {"CPU": 64.0}], {"gpus_per_worker": 1}, 4, 0.25),
    ],
)
def test_a_trial_costs_its_part_of_the_machines_that_trials_train_on(
    nodes: list[dict[str, float]], launch: dict[str, Any], concurrency: int, machines: float
) -> None:
    priced = LaunchConfig.model_validate(launch | {"node_hour_price": 7.2})
    assert price_per_second(nodes, priced, concurrency) == pytest.approx(7.2 * machines / 3600)
    assert price_per_second(nodes, LaunchConfig.model_validate(launch), concurrency) == 0.0


def test_a_trial_that_fits_nowhere_is_refused_with_what_it_needs_and_what_there_is() -> None:
    launch = LaunchConfig(num_workers=2, gpus_per_worker=1)
    with pytest.raises(
        UserError, match=r"^launch: a trial needs 2 worker\(s\) with 1 CPU and 1 GPU each, but Ray has 8"
    ):
        check_room(0, [{"CPU": 8.0}], launch)


@pytest.mark.parametrize(
    ("sections", "workers", "expected"),
    [
        ({}, 1, 3),  # one in waiting, that takes a process over
        ({"concurrency": 1}, 1, 1),
        ({}, 2, 2),  # none in waiting: it would begin to train
        ({"search": "random", "schedule": "pbt", "budget": {"trials": 5}}, 1, 5),
        ({"search": "random", "schedule": "pbt", "budget": {"trials": 2}}, 2, 2),
    ],
)
def test_tune_holds_no_more_trials_than_can_wait_without_training(
    sections: dict[str, Any], workers: int, expected: int
) -> None:
    wanted = space(**sections)
    at_once = min(2, wanted.concurrency or 2)
    assert in_hand(wanted, LaunchConfig(num_workers=workers), at_once, 2) == expected


def test_a_population_of_several_workers_each_must_fit_at_once() -> None:
    wanted = space(search="random", schedule="pbt", budget={"trials": 3})
    with pytest.raises(UserError, match=r"^budget\.trials: a population of 3 trials .* room for 2; use fewer trials"):
        in_hand(wanted, LaunchConfig(num_workers=2), 2, 2)
