"""A sweep whose trials, driver or Ray are killed goes on with the same command and ends as if nothing had happened."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from hmtl_dist.tune.ledger import Ledger
from tests.e2e.drawn import STEPS_PER_EPOCH, draw, tree
from tests.processes import Family, kill_all
from tests.tune.spaces import METRIC, WEIGHTS

Victim = Literal["trial", "driver", "cluster"]
KILLS = 10


@dataclass
class Sweep:
    """A sweep of random trials over one weight, each trained to its end."""

    folder: Path
    trials: int
    epochs: int
    uri: str
    """MLflow that it is recorded in."""
    at_once: int = 2
    """Trials at a time."""
    experiment: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        recipe = tree(
            draw(str(self.folder / "faces")),
            tasks={"inpainting": None, "age": None, "pose": None},
            weighting="sum",
            train={"epochs": self.epochs, "checkpoint_every_steps": 1},
            launch={"kind": "ray", "storage": str(self.folder / "runs"), "max_failures": KILLS + 1},
            tracking={"enabled": True, "experiment": self.experiment, "system_metrics": False},
        )
        space: dict[str, Any] = {"metric": METRIC, "search": "random", "budget": {"trials": self.trials}}
        space["concurrency"] = self.at_once
        space["params"] = {"tasks.puzzling.weight": WEIGHTS["tasks.puzzling.weight"]}
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "killed"} | recipe))
        (self.folder / "space.yaml").write_text(yaml.safe_dump(space))

    @property
    def ledger(self) -> Ledger:
        return Ledger(str(self.folder / "runs" / "killed-space"))

    @property
    def told(self) -> int:
        """How many evaluations the ledger has of all trials."""
        return sum(len(record.reports) for record in self.ledger.in_order())

    def metrics(self) -> list[tuple[str, list[tuple[int, dict[str, float]]]]]:
        """Return how each trial ended, and what it told at which step."""
        return [
            (record.status, [(report.step, dict(report.metrics)) for report in record.reports])
            for record in self.ledger.in_order()
        ]

    def runs(self) -> list[Run]:
        client = MlflowClient(self.uri)
        experiment = client.get_experiment_by_name(self.experiment)
        assert experiment is not None
        return list(client.search_runs([experiment.experiment_id], max_results=100))

    @contextmanager
    def started(self) -> Generator["Part"]:
        """The command, in a session of its own; nothing of it outlives the context."""
        command = [sys.executable, "-m", "hmtl_dist", "tune", str(self.folder / "space.yaml")]
        with (self.folder / "said.txt").open("ab") as said:
            driver = subprocess.Popen(
                [*command, str(self.folder / "recipe.yaml")],
                env=os.environ | {"HMTL_HOME": str(self.folder / "home"), "MLFLOW_TRACKING_URI": self.uri},
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        part = Part(self, driver, Family(driver))
        try:
            yield part
        finally:
            part.family.look()
            driver.kill()
            driver.wait()
            part.family.kill()


@dataclass
class Part:
    """One start of a sweep's command."""

    sweep: Sweep
    driver: "subprocess.Popen[bytes]"
    family: Family

    def await_told(self, count: int) -> None:
        """Wait until the ledger has so many evaluations."""
        deadline = time.monotonic() + 500
        while self.sweep.told < count:
            self.family.look()
            assert self.driver.poll() is None, f"the driver ended: {self._said()}"
            assert time.monotonic() < deadline, f"{self.sweep.told} of {count} evaluations: {self._said()}"
            time.sleep(0.2)

    def hit(self, victim: Victim) -> None:
        """Kill one by SIGKILL; without a driver or Ray this part is over."""
        self.family.look()
        if victim == "trial":
            self.family.actor().kill()
            return
        if victim == "driver":
            self.driver.kill()
        else:
            kill_all(self.family.running(but_driver=True))
        self.driver.wait(timeout=300)
        assert self.driver.returncode != 0

    def end(self) -> None:
        """Wait for its good end."""
        while self.driver.poll() is None:
            self.family.look()
            time.sleep(0.2)
        assert self.driver.returncode == 0, self._said()

    def _said(self) -> str:
        return (self.sweep.folder / "said.txt").read_text()[-3000:]


def check_books(sweep: Sweep) -> None:
    """Every trial has come to its end once, in one MLflow run of the sweep's, and told each evaluation once."""
    steps = [STEPS_PER_EPOCH * (epoch + 1) for epoch in range(sweep.epochs)]
    ends = [(status, [step for step, _ in told]) for status, told in sweep.metrics()]
    assert ends == [("FINISHED", steps)] * sweep.trials
    runs = sweep.runs()
    (parent,) = [run for run in runs if run.data.tags.get("kind") == "sweep"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.data.tags["trial"] for run in children) == [str(number) for number in range(sweep.trials)]
    assert len(runs) == 1 + sweep.trials
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.nightly
def test_a_sweep_whose_driver_is_killed_goes_on_with_the_same_command(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, trials=2, epochs=2, uri=f"sqlite:///{tmp_path}/mlflow.db", at_once=1)
    with sweep.started() as first:
        first.await_told(1)
        first.hit("driver")
        before = sweep.ledger.records
        with sweep.started() as second:
            second.end()
            assert second.family.left_over() == []
        # Ray's agents look for their raylet once a minute
        assert [one for one in first.family.left_over(patience=0) if "agent" not in one.lower()] == []
    check_books(sweep)
    assert all(sweep.ledger.records[number].params == record.params for number, record in before.items())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, mlflow_server: str) -> Sweep:
    sweep = Sweep(tmp_path_factory.mktemp("undisturbed"), trials=3, epochs=10, uri=mlflow_server)
    with sweep.started() as part:
        part.end()
    check_books(sweep)
    return sweep


@pytest.mark.nightly
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("victim", ["trial", "driver", "cluster"])
def test_a_sweep_that_is_hit_ten_times_tells_what_an_undisturbed_one_tells(
    victim: Victim, undisturbed: Sweep, tmp_path: Path
) -> None:
    sweep = Sweep(tmp_path, trials=3, epochs=10, uri=undisturbed.uri)
    moments = [2 + 2 * number for number in range(KILLS)]
    if victim == "trial":
        with sweep.started() as part:
            for moment in moments:
                part.await_told(moment)
                part.hit(victim)
            part.end()
            assert part.family.left_over() == []
    else:
        for moment in moments:
            with sweep.started() as part:
                part.await_told(moment)
                part.hit(victim)
                assert part.family.left_over() == []
        with sweep.started() as part:
            part.end()
            assert part.family.left_over() == []
    check_books(sweep)
    assert sweep.metrics() == undisturbed.metrics()
