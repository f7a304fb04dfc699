"""MLflow's page with our views: what the command says, and what a browser shows."""

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from hmtl_dist.cli.app import app
from hmtl_dist.errors import UserError
from hmtl_dist.services.store import known_mlflow, looked_up
from hmtl_dist.tracking.config import TrackingConfig

pytestmark = pytest.mark.nightly


def urls(text: str) -> list[str]:
    return re.findall(r"http://\S+", text)


@pytest.fixture(scope="module")
def said(tracking: TrackingConfig) -> str:
    environment = os.environ | {"MLFLOW_TRACKING_URI": str(tracking.uri)}
    command = [sys.executable, "-m", "hmtl_dist", "ui", "made-experiment", "--no-browser"]
    first, second = (
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout for _ in range(2)
    )
    assert first == second
    return first


def test_a_view_by_run_and_one_by_row_are_saved_once(said: str, tracking: TrackingConfig) -> None:
    assert len(urls(said)) == 2
    experiment = MlflowClient(str(tracking.uri)).get_experiment_by_name("made-experiment")
    assert experiment is not None
    assert sorted(experiment.tags) == ["mlflow.sharedViewState.hmtl-rows", "mlflow.sharedViewState.hmtl-runs"]


def test_a_browser_shows_runs_grouped_by_row_with_our_charts(said: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1500, "height": 1000})
        page.goto(urls(said)[1], timeout=120_000)
        for text in ("Group by: row", "Group: puzzling", "Group: sl", r"Evaluation\s*\(2\)", r"Training\s*\(1\)"):
            page.get_by_text(re.compile(text)).first.wait_for(timeout=120_000)
        page.locator(".js-plotly-plot").first.wait_for(timeout=120_000)
        page = chromium.new_page(viewport={"width": 1500, "height": 1000})
        page.goto(urls(said)[0], timeout=120_000)
        for text in ("made.sl.s0", r"Evaluation\s*\(2\)", r"Training\s*\(1\)", r"Pictures\s*\(1\)"):
            page.get_by_text(re.compile(text)).first.wait_for(timeout=120_000)
        page.screenshot(path=str(Path(os.environ.get("HMTL_SCREENSHOTS", tmp_path)) / "mlflow_runs.png"))
        chromium.close()


def test_an_experiment_that_is_not_there_is_one_line(tracking: TrackingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tracking.uri))
    for name in ("nothing-of-this-name", "made-empty"):
        done = CliRunner().invoke(app, ["ui", name])
        assert (done.exit_code, len(done.stderr.strip().splitlines())) == (2, 1)
        assert name in done.stderr


def test_runs_of_services_that_have_stopped_are_told_of(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracking = known_mlflow()
    assert tracking.uri is None
    with pytest.raises(UserError, match=r"^nothing there$"), looked_up(tracking):
        raise UserError("nothing there")
    (own_home / "services" / "mlflow").mkdir(parents=True)
    (own_home / "services" / "mlflow" / "mlflow.db").touch()
    told = r"^nothing there; the local services have stopped, start them with 'hmtl-dist services start'$"
    with pytest.raises(UserError, match=told), looked_up(tracking):
        raise UserError("nothing there")


def test_a_database_is_served_until_ctrl_c(own_home: Path) -> None:
    store = f"sqlite:///{own_home / 'mlflow.db'}"
    own_home.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(store)
    run = client.create_run(client.create_experiment("alone")).info.run_id
    client.log_metric(run, "eval/gender/accuracy", 0.5)
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "hmtl_dist", "ui"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    )
    assert process.stdout is not None
    with process.stdout as output:
        told = ""
        while "Ctrl-C" not in told:
            told += output.readline()
            assert process.poll() is None, told
        (url,) = urls(told)
        with urllib.request.urlopen(url.partition("#")[0]) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0, output.read()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url.partition("#")[0])
