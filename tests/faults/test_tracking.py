"""Faults of the MLflow server while a run trains: it neither stops nor slows, and everything arrives once, in order."""

import itertools
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from mlflow import MlflowClient

from hmtl_dist.errors import UserError
from hmtl_dist.launch.driver import Finished, drive
from hmtl_dist.launch.record import load_run
from hmtl_dist.launch.sync import sync_run
from hmtl_dist.train.base import Progress
from tests.e2e.drawn import STEPS_PER_EPOCH, config, draw, journal, weights
from tests.faults import proxy as faults
from tests.faults.proxy import Proxy, Rule, Rules
from tests.servers import OwnMLflow

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]

EPOCHS = 25
TOTAL_STEPS = EPOCHS * STEPS_PER_EPOCH
BEGIN, END = 20, TOTAL_STEPS - 2
"""Steps between which a fault acts, and is measured: the last step evaluates and saves."""
DELAY_SECONDS = 4.0
"""How long a slow server takes for each request: if a step waited for one, it would show."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return draw(str(tmp_path_factory.mktemp("drawn") / "set"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[OwnMLflow]:
    server = OwnMLflow(tmp_path_factory.mktemp("tracking"))
    server.start()
    yield server
    server.stop(0.0)


@pytest.fixture(scope="module")
def proxy(server: OwnMLflow) -> Generator[Proxy]:
    with faults.serve(server.url) as proxy:
        yield proxy


@dataclass(frozen=True)
class Trained:
    """A run that has ended."""

    name: str
    folder: str
    weights: dict[str, bytes]
    gaps: list[float]
    """Seconds between neighbouring steps while the fault acted."""
    undelivered: int

    def metrics(self) -> dict[str, list[tuple[int, float]]]:
        """Every figure that was recorded: its values by step."""
        found: dict[str, list[tuple[int, float]]] = {}
        for event in journal(self.folder):
            if event["event"] == "metrics":
                for key, value in event["values"].items():
                    found.setdefault(key, []).append((event["step"], value))
        return found


def nothing() -> None:
    pass


def train(name: str, url: str, uri: str, strike: Callable[[], object] = nothing) -> Trained:
    """Trains in this process; the fault strikes at a step."""

    def show(progress: Progress) -> None:
        if progress.phase == "train" and progress.global_step == BEGIN:
            strike()

    tree = config(
        name,
        url,
        tasks={"inpainting": None},
        train={"epochs": EPOCHS, "evaluate_every_epochs": EPOCHS, "checkpoint_every_epochs": EPOCHS},
        tracking={
            "enabled": True,
            "uri": uri,
            "system_metrics": False,
            "timeout_seconds": 10,
            "close_seconds": 30,
            "experiment": "faults",
        },
    )
    finished = drive(tree, show)
    assert (finished.outcome.status, finished.outcome.global_step) == ("FINISHED", TOTAL_STEPS)
    times = [
        event["time"] / 1000 for event in journal(finished.folder) if "train/loss/total" in event.get("values", {})
    ]
    gaps = [after - before for before, after in itertools.pairwise(times[BEGIN:END])]
    return Trained(name, finished.folder, weights(finished.outcome.checkpoint), gaps, finished.undelivered)


@pytest.fixture(scope="module")
def healthy(url: str, proxy: Proxy, server: OwnMLflow) -> Trained:
    """The run that the others are compared with."""
    proxy.plan = Rules()
    trained = train("healthy", url, proxy.url)
    assert_recorded(trained, server.url)
    return trained


def assert_recorded(trained: Trained, uri: str) -> None:
    """Everything that the journal holds is in one MLflow run, every figure once a step, and the run is over."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("faults")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{trained.name}'")
    assert run.info.status == "FINISHED"
    metrics = trained.metrics()
    assert [step for step, _ in metrics["train/loss/total"]] == list(range(1, TOTAL_STEPS + 1))
    assert set(run.data.metrics) == set(metrics)
    for key, values in metrics.items():
        history: list[Any] = list(client.get_metric_history(run.info.run_id, key))
        assert [(metric.step, metric.value) for metric in history] == values


def assert_unmoved(trained: Trained, healthy: Trained) -> None:
    """The fault moved no weight and held up no step."""
    assert trained.weights == healthy.weights
    ratio = median(trained.gaps) / median(healthy.gaps)
    print(f"{trained.name}: step time over that with a healthy server {ratio:.3f}, longest {max(trained.gaps):.2f} s")  # noqa: T201
    assert max(trained.gaps) < DELAY_SECONDS / 2  # the ratio itself is measured, not judged: docs/reliability.md


def sync(trained: Trained, *overrides: str) -> int:
    return sync_run(load_run(trained.name, overrides), lambda done, total: None).delivered


WAYS = {
    "slow": faults.delay(DELAY_SECONDS),
    "stalled": faults.stall(),
    "erroring": faults.status(500),
    "resetting": faults.reset(),
}
OFTEN = [faults.status(500), faults.status(503), faults.reset(), faults.cut(5)]


@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_ails_neither_stops_nor_slows_a_run(
    url: str, proxy: Proxy, server: OwnMLflow, healthy: Trained, way: str
) -> None:
    def strike() -> None:
        proxy.plan = Rules(Rule(WAYS[way], times=10_000))

    trained = train(way, url, proxy.url, strike)
    assert proxy.hits > 0
    proxy.plan = Rules()
    assert_unmoved(trained, healthy)
    assert trained.undelivered > 0
    assert sync(trained) <= trained.undelivered  # the thread of the run may have been about to end one more
    assert_recorded(trained, server.url)


def test_faults_at_rate_leave_every_figure_once(url: str, proxy: Proxy, server: OwnMLflow, healthy: Trained) -> None:
    def strike() -> None:
        proxy.plan = faults.Chaos(5, 0.5, OFTEN)

    trained = train("at-rate", url, proxy.url, strike)
    proxy.plan = Rules()
    assert_unmoved(trained, healthy)
    if trained.undelivered:
        sync(trained)
    assert_recorded(trained, server.url)


def test_a_server_that_goes_away_is_delivered_to_by_sync(
    url: str, proxy: Proxy, server: OwnMLflow, healthy: Trained
) -> None:
    away = proxy.away()
    proxy.plan = Rules()
    trained = train("away", url, proxy.url, away.__enter__)
    with pytest.raises(UserError, match=r"^MLflow at .* does not answer"):
        sync(trained)
    away.__exit__(None, None, None)
    assert_unmoved(trained, healthy)
    ended = subprocess.run(
        [sys.executable, "-m", "hmtl_dist", "sync", "away"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    *shown, delivered, _ = ended.stdout.splitlines()
    assert re.match(r"sync events \d+/\d+ ", shown[-1])
    assert delivered == f"delivered  {trained.undelivered} events"
    assert_recorded(trained, server.url)
    assert sync(trained) == 0
    assert_recorded(trained, server.url)


def test_what_a_lost_machine_had_not_delivered_comes_from_the_checkpoint_on_another_one(
    url: str, proxy: Proxy, server: OwnMLflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(epochs: int, strike: Callable[[], object] = nothing) -> Finished:
        tracking = {"enabled": True, "uri": proxy.url, "system_metrics": False, "experiment": "faults"}
        tree = config(
            "moved",
            url,
            tasks={"inpainting": None},
            train={"epochs": epochs},
            launch={"storage": str(tmp_path / "shared")},
            tracking=tracking,
        )

        def show(progress: Progress) -> None:
            if progress.global_step == 2:
                strike()

        return drive(tree, show, again="changed")

    proxy.plan = Rules()
    away = proxy.away()
    monkeypatch.setenv("HMTL_HOME", str(tmp_path / "lost"))
    assert run(1, away.__enter__).undelivered > 0
    away.__exit__(None, None, None)
    monkeypatch.setenv("HMTL_HOME", str(tmp_path / "another"))
    moved = run(2)
    assert (moved.outcome.status, moved.undelivered) == ("FINISHED", 0)
    client = MlflowClient(server.url)
    history = client.get_metric_history(str(moved.run_id), "train/loss/total")
    assert [metric.step for metric in history] == [*range(1, 2 * STEPS_PER_EPOCH + 1)]
    assert len(client.get_metric_history(str(moved.run_id), "eval/expression/accuracy")) == 2


def test_a_run_that_began_while_the_server_was_away_gets_its_mlflow_run_by_sync(
    url: str, proxy: Proxy, server: OwnMLflow, healthy: Trained
) -> None:
    proxy.plan = Rules()
    with proxy.away():
        trained = train("from-the-start", url, proxy.url)
    assert_unmoved(trained, healthy)
    assert sync(trained) == trained.undelivered
    assert_recorded(trained, server.url)
    assert sync(trained) == 0  # the run has noted which MLflow run is its own
    assert_recorded(trained, server.url)


def test_a_server_that_is_restarted_gets_everything(
    url: str, proxy: Proxy, server: OwnMLflow, healthy: Trained
) -> None:
    def restart() -> None:
        server.stop(0.0)
        server.start()

    proxy.plan = Rules()
    restarting = threading.Thread(target=restart)
    trained = train("restarted", url, proxy.url, restarting.start)
    restarting.join()
    assert trained.weights == healthy.weights  # a starting server takes a core: the pace is no measure here
    assert max(trained.gaps) < DELAY_SECONDS / 2
    if trained.undelivered:
        sync(trained)
    assert_recorded(trained, server.url)


@pytest.mark.parametrize("through", ["server", "file"])
def test_a_locked_database_neither_stops_nor_slows_a_run(
    url: str, server: OwnMLflow, healthy: Trained, through: str, tmp_path: Path
) -> None:
    """Another program holds the database, that of the server or one that the run itself writes to."""
    database = server.database if through == "server" else tmp_path / "own.db"
    uri = server.url if through == "server" else f"sqlite:///{database}"
    with closing(sqlite3.connect(database, isolation_level=None, check_same_thread=False)) as other:
        trained = train(f"locked-{through}", url, uri, lambda: other.execute("BEGIN EXCLUSIVE"))
        other.execute("ROLLBACK")
    assert_unmoved(trained, healthy)
    if trained.undelivered:
        sync(trained)
    assert_recorded(trained, uri)


def test_a_run_is_not_delivered_while_it_is_being_trained(url: str, proxy: Proxy, server: OwnMLflow) -> None:
    complaints: list[str] = []

    def meanwhile() -> None:
        try:
            sync_run(load_run("under-way"), lambda done, total: None)
        except UserError as error:
            complaints.append(str(error))

    proxy.plan = Rules()
    trained = train("under-way", url, proxy.url, meanwhile)
    assert [line.startswith("run 'under-way' is being trained by process ") for line in complaints] == [True]
    assert_recorded(trained, server.url)
