"""A sweep in processes of its own, on real Ray, MLflow and S3: killed twice, it goes on to the end; then looked at."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from hmtl_dist.report.page import write_page
from hmtl_dist.report.study import find_study, read_groups
from hmtl_dist.tracking.config import TrackingConfig
from hmtl_dist.tracking.history import History
from hmtl_dist.tune.ledger import Ledger, Record
from tests.e2e.drawn import STEPS_PER_EPOCH, draw, tree
from tests.processes import Family, process_name
from tests.servers import S3Server
from tests.tune.spaces import METRIC, WEIGHTS

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(2400)]

TRIALS, EPOCHS = 5, 6
TRACKED = {"enabled": True, "experiment": "sweeps", "system_metrics": False}


@dataclass(frozen=True)
class Swept:
    """A sweep that was killed twice, and what came of it."""

    answer: dict[str, Any]
    before: dict[int, Record]
    """The trials when the driver was killed."""
    ledger: Ledger
    home: Path
    left_over: list[list[str]]
    """What ran on after each part."""
    uri: str

    def runs(self) -> list[Run]:
        client = MlflowClient(self.uri)
        experiment = client.get_experiment_by_name("sweeps")
        assert experiment is not None
        return list(client.search_runs([experiment.experiment_id], max_results=100))

    def children(self) -> list[Run]:
        parent = self.answer["run_id"]
        return [run for run in self.runs() if run.data.tags.get("mlflow.parentRunId") == parent]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, s3: S3Server, mlflow_server: str) -> Generator[Swept]:
    folder = tmp_path_factory.mktemp("sweep")
    home, bucket = folder / "home", s3.bucket()
    environment = {**os.environ, **s3.env(), "HMTL_HOME": str(home), "MLFLOW_TRACKING_URI": mlflow_server}
    environment["PYTHONPATH"] = os.getcwd()  # noqa: PTH109
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.env().items():
            patch.setenv(name, value)
        recipe = tree(
            draw(f"{bucket}/faces"),
            train={"epochs": EPOCHS, "checkpoint_every_steps": 1},
            launch={"storage": f"{bucket}/runs", "node_hour_price": 3600.0},
            tracking=TRACKED,
        )
        recipe["tasks"] = {name: recipe["tasks"][name] for name in ("expression", "puzzling", "inpainting")}
        recipe |= {"name": "drawn", "weighting": "sum"}
        space = {
            "metric": METRIC,
            "params": WEIGHTS,
            "schedule": {"type": "asha", "grace_epochs": 2, "reduction": 3},
            "budget": {"trials": TRIALS},
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        (folder / "space.yaml").write_text(yaml.safe_dump(space))
        command = [sys.executable, "-m", "hmtl_dist", "tune", str(folder / "space.yaml"), str(folder / "recipe.yaml")]
        url = f"{bucket}/runs/drawn-space"
        driver = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
        family = Family(driver)
        try:
            await_trials(url, driver, family, some_reported)
            family.actor().send_signal(signal.SIGKILL)
            await_trials(url, driver, family, some_ended)
        finally:
            driver.kill()
            driver.wait()
        left = [family.left_over()]
        before = dict(Ledger(url).records)

        again = [*command, "--json", "--retrain", "7"]
        driver = subprocess.Popen(
            again, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        second = Family(driver)
        while driver.poll() is None:
            second.look()
            time.sleep(0.5)
        said, errors = driver.communicate()
        log = home / "runs" / "drawn-space" / "log.txt"
        assert driver.returncode == 0, errors + log.read_text()[-3000:]
        left.append(second.left_over())
        answer = json.loads(said.splitlines()[-1])
        yield Swept(answer, before, Ledger(url), home / "runs" / "drawn-space", left, mlflow_server)
    family.kill()
    second.kill()


def some_reported(records: dict[int, Record]) -> bool:
    return any(record.reports for record in records.values())


def some_ended(records: dict[int, Record]) -> bool:
    return any(record.ended for record in records.values())


def await_trials(
    url: str, driver: "subprocess.Popen[Any]", family: Family, ready: Callable[[dict[int, Record]], bool]
) -> None:
    """Wait until the ledger says so."""
    deadline = time.monotonic() + 500
    while not ready(Ledger(url).records):
        family.look()
        assert driver.poll() is None, "the driver ended"
        assert time.monotonic() < deadline, "no trial came so far"
        time.sleep(0.5)


def test_nothing_runs_on_after_the_driver_is_killed_nor_at_the_end(swept: Swept) -> None:
    assert swept.left_over == [[], []]


def test_every_trial_came_to_an_end_once(swept: Swept) -> None:
    records = swept.ledger.in_order()
    assert [record.number for record in records] == list(range(TRIALS))
    assert all(record.status in ("FINISHED", "PRUNED") for record in records)
    assert any(record.status == "FINISHED" for record in records)


def test_what_had_ended_was_not_run_again_and_what_had_begun_kept_its_values(swept: Swept) -> None:
    ended = [record for record in swept.before.values() if record.ended]
    assert ended
    assert all(swept.ledger.records[record.number] == record for record in ended)
    assert all(swept.ledger.records[number].params == record.params for number, record in swept.before.items())


def test_every_trial_is_one_child_with_its_true_status_and_steps_told_once(swept: Swept) -> None:
    trials = [run for run in swept.children() if run.data.tags.get("kind") != "retrain"]
    assert sorted(run.info.run_name or "" for run in trials) == [
        f"drawn-space-{number:04d}" for number in range(TRIALS)
    ]
    client = MlflowClient(swept.uri)
    for run in trials:
        record = swept.ledger.records[int(run.data.tags["trial"])]
        assert run.info.status == {"FINISHED": "FINISHED", "PRUNED": "KILLED"}[record.status]
        assert run.data.tags["outcome"] == record.status.lower()
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, METRIC)]
        assert steps == sorted(set(steps))
        assert steps[-1] == record.step
        assert float(run.data.params["tasks.puzzling.weight"]) == record.params["tasks.puzzling.weight"]


def test_every_trial_tells_what_it_cost_and_the_parent_what_all_did(swept: Swept) -> None:
    records, children = swept.ledger.in_order(), swept.children()
    trials = {run.data.tags["trial"]: run for run in children if run.data.tags.get("kind") != "retrain"}
    assert all(0 < record.cost <= record.seconds for record in records)  # one machine, for one trial or more at a time
    for record in records:
        told = trials[str(record.number)].data.metrics
        assert told["cost/run"] == pytest.approx(record.cost)
        assert told["cost/per_million_images"] == pytest.approx(record.cost / record.images * 1e6)
    parent = MlflowClient(swept.uri).get_run(swept.answer["run_id"])
    assert parent.data.metrics["cost/trials"] == pytest.approx(sum(record.cost for record in records))
    assert "<th>cost</th>" in (swept.home / "leaderboard.html").read_text()


def test_the_parent_tells_space_data_progress_and_outcome(swept: Swept) -> None:
    client = MlflowClient(swept.uri)
    parent = client.get_run(swept.answer["run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.params["space.budget.trials"] == str(TRIALS)
    assert parent.data.params["data.digest"]
    assert parent.inputs is not None
    assert parent.inputs.dataset_inputs[0].dataset.name == "drawn"
    best = swept.ledger.records[swept.answer["best"]["number"]].metrics[METRIC]
    assert parent.data.metrics["best/expression/accuracy"] >= best
    assert parent.data.metrics["trials/finished"] + parent.data.metrics["trials/pruned"] == TRIALS
    names = {file.path for file in client.list_artifacts(parent.info.run_id)}  # pyright: ignore[reportUnknownMemberType]
    assert {"leaderboard.csv", "leaderboard.html", "learning_curves.png", "parallel_coordinates.png"} <= names
    assert "best.yaml" in names
    assert not [run for run in swept.runs() if run.info.status == "RUNNING"]


def test_the_winner_is_a_candidate_and_its_recipe_repeats_it(swept: Swept, s3_env: S3Server) -> None:
    from hmtl_dist.config.io import load_tree
    from hmtl_dist.launch.driver import drive
    from hmtl_dist.run_config import RunConfig

    client = MlflowClient(swept.uri)
    version = client.get_model_version_by_alias("drawn-space", "candidate")
    best = swept.ledger.records[swept.answer["best"]["number"]]
    assert version.run_id == best.runs[f"drawn-space-{best.number:04d}"]
    config = load_tree(RunConfig, str(swept.home / "best.yaml"), ["tracking.enabled=false"])
    again = drive(config, lambda step: None)
    assert again.outcome.global_step == EPOCHS * STEPS_PER_EPOCH
    assert again.outcome.metrics[METRIC] == best.metrics[METRIC]


def test_the_winner_was_trained_again_with_the_other_seed(swept: Swept) -> None:
    assert list(swept.answer["retrained"]) == ["7"]
    (again,) = [run for run in swept.children() if run.data.tags.get("kind") == "retrain"]
    assert again.info.run_name == "drawn-space-best-0007"
    assert again.info.status == "FINISHED"
    assert again.data.params["seed"] == "7"


def test_the_parent_run_is_readable_in_a_browser(swept: Swept, tmp_path: Path) -> None:
    """The MLflow page of the parent shows its artifacts, and the runs' table its children."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium is installed")
    from playwright.sync_api import sync_playwright

    experiment = MlflowClient(swept.uri).get_run(swept.answer["run_id"]).info.experiment_id
    pages = {
        "parent": f"{swept.uri}/#/experiments/{experiment}/runs/{swept.answer['run_id']}/artifacts",
        "children": f"{swept.uri}/#/experiments/{experiment}/runs",
        "leaderboard": (swept.home / "leaderboard.html").as_uri(),
    }
    expected = {"parent": "leaderboard.html", "children": "drawn-space-0000", "leaderboard": "Learning curves"}
    folder = Path(os.environ.get("HMTL_SCREENSHOTS", tmp_path))
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1200, "height": 800})
        for name, url in pages.items():
            page.goto(url, timeout=120_000)
            if name == "children":
                row = page.get_by_role("gridcell").filter(has=page.get_by_text("drawn-space", exact=True)).first
                row.get_by_role("button").first.click(timeout=120_000)
            page.get_by_text(expected[name]).first.wait_for(timeout=120_000)
            if name == "parent":
                page.get_by_text(expected[name]).first.click()
                page.frame_locator("iframe").get_by_text("Leaderboard").first.wait_for(timeout=120_000)
            page.screenshot(path=str(folder / f"tune_{name}.png"))
            assert (folder / f"tune_{name}.png").stat().st_size > 5_000
        chromium.close()


def test_a_report_of_the_sweep_has_its_leaderboard_and_every_trial(swept: Swept) -> None:
    history = History(TrackingConfig(uri=swept.uri))
    study = find_study("drawn-space", history)
    assert list(read_groups(study, history)) == []  # a trial is told of by the leaderboard
    (sweep,) = study.sweeps
    assert (sweep.status, len(sweep.leaderboard)) == ("FINISHED", TRIALS)
    trials = {run.info.run_id for run in swept.children() if run.data.tags["sweep"] == "drawn-space"}
    assert {run.run_id for run in study.runs} == trials
    page = write_page(study)
    assert all(
        f'alt="{name} of the search drawn-space"' in page for name in ("learning curves", "parallel coordinates")
    )
    assert sweep.leaderboard[0]["trial"] == str(swept.answer["best"]["number"])


def test_trials_of_several_workers_train_on_ray_train_one_after_another(tmp_path: Path, hmtl_home: Path) -> None:
    recipe = tree(
        draw(str(tmp_path / "faces")),
        tasks={"inpainting": None, "age": None, "pose": None},
        train={"epochs": 2},
        launch={"kind": "ray", "num_workers": 2, "storage": str(tmp_path / "runs")},
    )
    space = {"metric": METRIC, "params": {"tasks.puzzling.weight": WEIGHTS["tasks.puzzling.weight"]}}
    space |= {"search": "random", "budget": {"trials": 2}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "several"} | recipe))
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    command = [sys.executable, "-m", "hmtl_dist", "tune", tmp_path / "space.yaml", tmp_path / "recipe.yaml", "--json"]
    environment = os.environ | {"HMTL_HOME": str(hmtl_home)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    trials = json.loads(done.stdout)["trials"]
    assert [trial["status"] for trial in trials] == ["FINISHED", "FINISHED"]
    assert [trial["images"] for trial in trials] == [2 * STEPS_PER_EPOCH * 16] * 2
    first, second = (trial["reports"] for trial in trials)
    assert len(first) == len(second) == 2
    assert max(report["at"] for report in first) < min(report["at"] for report in second)


def test_a_killed_server_of_ray_ends_a_sweep_in_one_line_and_the_same_command_goes_on(
    tmp_path: Path, hmtl_home: Path
) -> None:
    epochs = 30
    recipe = tree(
        draw(str(tmp_path / "faces")),
        tasks={"inpainting": None, "age": None, "pose": None},
        train={"epochs": epochs, "checkpoint_every_steps": 4},
        launch={"kind": "ray", "storage": str(tmp_path / "runs")},
    )
    space = {"metric": METRIC, "params": {"tasks.puzzling.weight": WEIGHTS["tasks.puzzling.weight"]}}
    space |= {"search": "random", "budget": {"trials": 2}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "crashed"} | recipe))
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    command = [sys.executable, "-m", "hmtl_dist", "tune", tmp_path / "space.yaml", tmp_path / "recipe.yaml", "--json"]
    environment = os.environ | {"HMTL_HOME": str(hmtl_home)}
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    family = Family(driver)
    try:
        await_trials(str(tmp_path / "runs" / "crashed-space"), driver, family, some_reported)
        (raylet,) = [child for child in psutil.Process(driver.pid).children() if process_name(child) == "raylet"]
        raylet.kill()
        said = driver.communicate(timeout=120)[1]
    finally:
        driver.kill()
        family.look()
    assert driver.returncode == 1
    assert said.startswith("error: TrainingError: Ray's raylet died")
    assert family.left_over() == []

    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    for trial in json.loads(done.stdout)["trials"]:
        assert trial["status"] == "FINISHED"
        # what was on its way when Ray died too: its checkpoint tells it
        assert [report["step"] for report in trial["reports"]] == [4 * (one + 1) for one in range(epochs)]
