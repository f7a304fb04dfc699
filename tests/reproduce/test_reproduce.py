"""A suite from the command line to its table, killed in the middle and run again."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest

from hmtl_dist.data.storage import open_storage
from hmtl_dist.reproduce.results import Result, Store

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]

SUITE = """
title: A minute comparison
metric: expression/accuracy
overrides: [data.image_size=32, data.batch_size=16, train.epochs=2, "train.checkpoint_every_steps=1"]
data:
  drawn: {draw: {samples: 96, identities: 24, image_size: 32, splits: {train: 0.75, val: 0.25}}}
rows:
  ssl: {title: SSL, recipe: synthetic_ssl, data: drawn, shown: false}
  sl: {title: SL, recipe: synthetic_sl, data: drawn}
  tuned: {title: Tuned, recipe: synthetic_sl, data: drawn, init_from: ssl, baseline: sl}
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HMTL_HOME", str(tmp_path / "home"))
    (tmp_path / "minute.yaml").write_text(SUITE)
    return tmp_path


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hmtl_dist", "reproduce", str(home / "minute.yaml"), "--seeds", "0-1", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    out, errors = process.communicate(timeout=400)
    assert process.returncode == code, out + errors
    return out + errors


def results(home: Path) -> dict[str, Result]:
    store = Store(home / "home" / "reproduce" / "minute")
    names = [path.stem for path in (store.folder / "results").glob("*.json")]
    return {name: found for name in names if (found := store.read(name))}


def table(home: Path) -> dict[str, dict[str, str]]:
    with (home / "home" / "reproduce" / "minute" / "table.csv").open() as file:
        return {line["row"]: line for line in csv.DictReader(file)}


def test_a_killed_suite_goes_on_and_runs_nothing_twice(home: Path) -> None:
    quiet = ("--set", "tracking.enabled=false")
    first = start(home, *quiet)
    while not results(home):
        assert first.poll() is None, first.communicate()
        time.sleep(0.1)
    first.kill()
    first.communicate()
    before = results(home)

    said = finish(start(home, *quiet))

    after = results(home)
    assert set(after) == {f"minute.{row}.s{seed}" for row in ("ssl", "sl", "tuned") for seed in (0, 1)}
    assert all(result.status == "FINISHED" for result in after.values())
    assert {name: after[name] for name in before} == before
    assert table(home)["tuned"]["seeds"] == "2"
    assert table(home)["tuned"]["p_value"] in {"0.5", "1.0"}
    assert "table " in said

    again = finish(start(home, *quiet))
    assert "[" not in again.split("reproduce")[0]
    assert results(home) == after

    refused = finish(start(home, *quiet, "--set", "optim.learning_rate=0.5"), 2)
    assert "minute.ssl.s0 was done with optim.learning_rate=0.003, now it is 0.5; give this suite another" in refused


def test_a_failing_row_leaves_the_others_alone_and_shows_in_the_exit_code(home: Path) -> None:
    quiet = ("--set", "tracking.enabled=false", "--jobs", "2", "--seeds", "0")
    suite = (home / "minute.yaml").read_text().replace("init_from: ssl", f"init_from: ssl, overrides: [{BROKEN}]")
    (home / "minute.yaml").write_text(suite)
    said = finish(start(home, *quiet), 1)
    assert "minute.tuned.s0 failed: model.init_from" in said
    assert {name: result.status for name, result in results(home).items()} == {
        "minute.ssl.s0": "FINISHED",
        "minute.sl.s0": "FINISHED",
        "minute.tuned.s0": "FAILED",
    }


BROKEN = "model.backbone=test_resnet"
"""A backbone that the pre-trained weights do not fit: it is found only when the run begins."""


def test_an_interrupted_suite_stops_its_runs_in_order(home: Path) -> None:
    process = start(home, "--set", "tracking.enabled=false", "--set", "train.epochs=500", "--only", "sl")
    folder = home / "home" / "runs" / "minute.sl.s0" / "checkpoints"
    while not list(folder.glob("*/manifest.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    said = finish(process, 130)
    assert "stopped; the same command again goes on" in said
    assert [(result.status, result.error) for result in results(home).values()] == [("STOPPED", "")], said


def test_the_runs_are_children_of_the_suites_run_in_mlflow(home: Path, mlflow_server: str) -> None:
    from mlflow import MlflowClient

    finish(start(home, "--set", f"tracking.uri={mlflow_server}", "--set", "tracking.experiment=minute", "--jobs", "2"))
    client = MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("minute")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs.pop("reproduce minute")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert len(runs) == 6
    assert parent.data.metrics["sl/mean"] == pytest.approx(float(table(home)["sl"]["mean"]))
    files = cast("Any", client).list_artifacts(parent.info.run_id)
    assert {file.path for file in files} >= {"table.csv", "table.html"}


def test_missing_data_are_one_line_before_anything_runs(home: Path) -> None:
    text = SUITE.replace("draw: {samples: 96,", f"url: {home}/nothing, needs: build it so}}  # {{")
    (home / "minute.yaml").write_text(text)
    said = finish(start(home, "--set", "tracking.enabled=false"), 2)
    assert f"data set drawn: nothing at {home}/nothing; build it so, or give --data drawn=URL" in said
    assert not open_storage(str(home / "home" / "runs")).exists("minute.ssl.s0")
