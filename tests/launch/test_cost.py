"""What a run costs is its machines times its wall time, over all the sessions that ended in order."""

import json
import signal
from pathlib import Path

import mlflow
import pytest

from hmtl_dist.launch.cost import Cost, account
from hmtl_dist.launch.driver import drive
from hmtl_dist.run_config import RunConfig
from hmtl_dist.train.base import Progress
from tests.e2e.drawn import config, draw


def test_machine_hours_times_price(tmp_path: Path) -> None:
    assert account(3.0, str(tmp_path), nodes=4, seconds=1800.0, images=2_000_000) == Cost(6.0, 3.0, 2.0)


def test_sessions_of_a_run_add_up_at_the_price_of_today(tmp_path: Path) -> None:
    account(3.0, str(tmp_path), nodes=1, seconds=3600.0, images=1_000_000)
    assert account(2.0, str(tmp_path), nodes=2, seconds=3600.0, images=2_000_000) == Cost(6.0, 2.0, 3.0)


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"node_seconds": "x"}'])
def test_damaged_account_begins_anew(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "cost.json").write_bytes(damage)
    assert account(1.0, str(tmp_path), nodes=1, seconds=3600.0, images=0) == Cost(1.0, None, 1.0)


def test_account_that_cannot_be_kept_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert account(1.0, str(tmp_path / "file"), nodes=1, seconds=3600.0, images=0).run == 1.0


def priced(url: str, name: str, **more: object) -> RunConfig:
    tasks = {"puzzling": None, "inpainting": None}
    return config(name, url, tasks=tasks, launch={"kind": "local", "node_hour_price": 3600.0}, **more)


@pytest.mark.nightly
def test_stopped_run_that_went_on_tells_and_records_its_whole_cost(
    tmp_path: Path, mlflow_server: str, hmtl_home: Path
) -> None:
    url = draw(str(tmp_path / "set"))
    tracking = {"enabled": True, "uri": mlflow_server, "system_metrics": False, "model": False, "pictures": False}

    def press(progress: Progress) -> None:
        if progress.global_step == 4:
            signal.raise_signal(signal.SIGINT)

    first = drive(priced(url, "priced", tracking=tracking), press)
    last = drive(priced(url, "priced", tracking=tracking), lambda progress: None)

    assert first.cost is not None
    assert last.cost is not None
    assert (first.outcome.status, last.outcome.status) == ("STOPPED", "FINISHED")
    assert last.cost.run > first.cost.run > 0
    kept = json.loads((hmtl_home / "runs" / "priced" / "cost.json").read_text())
    assert kept["images"] == last.outcome.global_step * 16
    assert last.cost.run == pytest.approx(kept["node_seconds"])
    recorded = mlflow.MlflowClient(mlflow_server).get_run(last.run_id or "").data.metrics
    assert recorded["cost/run"] == pytest.approx(last.cost.run)
    assert recorded["cost/per_million_images"] == pytest.approx(last.cost.run / kept["images"] * 1e6)
