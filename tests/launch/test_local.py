import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hmtl_dist.errors import UserError
from hmtl_dist.launch.local import run_local
from hmtl_dist.run_config import RunConfig
from hmtl_dist.services.process import free_ports
from hmtl_dist.train.base import Listener, Outcome, Progress, RankContext, RunContext
from tests.launch import toy
from tests.launch.drive import config


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_one_rank_trains_in_this_process(hmtl_home: Path) -> None:
    shown: list[Progress] = []
    places: list[RankContext] = []

    def train(tree: RunConfig, rank_context: RankContext, listener: Listener) -> Outcome:
        places.append(rank_context)
        return toy.sum_of_ranks(tree, rank_context, listener)

    outcome = run_local(config(num_workers=1), shown.append, train)

    assert outcome.metrics == {"sum": 1.0, "seed": 5.0}
    assert [progress.global_step for progress in shown] == [1, 2, 3]
    runs = hmtl_home / "runs" / "toy"
    assert places == [RankContext(0, 1, 0, "cpu", runs / "rank-0", RunContext(str(runs)))]


def test_ctrl_c_ends_the_run_in_order() -> None:
    def train(tree: RunConfig, rank_context: RankContext, listener: Listener) -> Outcome:
        signal.raise_signal(signal.SIGINT)
        return toy.until_stopped(tree, rank_context, listener)

    assert run_local(config(num_workers=1), lambda progress: None, train).status == "STOPPED"


def test_more_workers_than_this_process_are_refused() -> None:
    with pytest.raises(UserError, match=r"launch\.num_workers: 2 given, .* in this one process; .* launch\.kind=ray"):
        run_local(config(num_workers=2), lambda progress: None, toy.sum_of_ranks)


def test_another_number_of_workers_than_torchrun_started_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match=r"2 given, but torchrun started 4"):
        run_local(config(num_workers=2), lambda progress: None, toy.sum_of_ranks)


def test_gpus_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1000")
    with pytest.raises(UserError, match=r"launch\.gpus_per_worker: 1 given, but torch finds \d+ GPUs .*per_worker=0"):
        run_local(config(num_workers=1, gpus_per_worker=1), lambda progress: None, toy.sum_of_ranks)


@pytest.mark.nightly
def test_two_ranks_of_torchrun_find_each_other() -> None:
    (port,) = free_ports(1)
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.launch.drive", "local", "sum_of_ranks"],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ends = [json.loads(rank.communicate(timeout=600)[0].splitlines()[-1]) for rank in ranks]
    assert [end["outcome"]["metrics"]["sum"] for end in ends] == [3.0, 3.0]
