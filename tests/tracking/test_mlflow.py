"""What is recorded arrives in a real MLflow server once and in order, whatever happens to the server or the run."""

import http.server
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from hmtl_dist.errors import UserError
from hmtl_dist.tracking import delivery
from hmtl_dist.tracking.config import PARENT, Recording, TrackingConfig, resolve
from hmtl_dist.tracking.jsonl import JOURNAL, Journal, read_events
from hmtl_dist.tracking.runs import create_run, delete_run, finish_run, record_file, run_url
from hmtl_dist.tracking.sink import deliver_rest, open_tracker
from tests.servers import OwnMLflow

NOBODY = "http://127.0.0.1:9"
"""A port nobody listens at."""


@pytest.fixture
def config(mlflow_server: str, request: pytest.FixtureRequest) -> Recording:
    name = request.node.name[:200]
    return Recording(uri=mlflow_server, experiment=name, system_metrics=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")  # the machine may be busy, and no server here just hangs
    monkeypatch.setattr(delivery, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(delivery, "FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(delivery, "LONGEST_PAUSE_SECONDS", 0.2)


def started(
    config: TrackingConfig, params: dict[str, str] | None = None, tags: dict[str, str] | None = None
) -> Recording:
    return resolve(config, create_run(config, name="run", params=params, tags=tags))


def run_id_of(config: Recording) -> str:
    assert config.run_id is not None
    return config.run_id


def steps_of(config: Recording, key: str) -> list[int]:
    return [metric.step for metric in MlflowClient(config.uri).get_metric_history(run_id_of(config), key)]


def status_of(config: Recording) -> str:
    return MlflowClient(config.uri).get_run(run_id_of(config)).info.status


def artifacts_of(config: Recording, folder: str | None = None) -> list[str]:
    client: Any = MlflowClient(config.uri)
    return [file.path for file in client.list_artifacts(run_id_of(config), folder)]


def write_and_die(folder: Path, config: Recording) -> None:
    """Writes a loss at step 1 in a process that is killed before anything is delivered."""
    code = (
        "import os, signal, sys; from pathlib import Path; from hmtl_dist.tracking.jsonl import Journal\n"
        "Journal(Path(sys.argv[1]), sys.argv[2]).metrics({'loss': 1.0}, 1); os.kill(os.getpid(), signal.SIGKILL)"
    )
    died = subprocess.run([sys.executable, "-c", code, str(folder), run_id_of(config)], check=False)
    assert died.returncode == -signal.SIGKILL


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def threads_of_ours() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name in {"journal-delivery", "system-metrics"}]


def test_a_new_run_holds_its_parameters_and_tags(config: Recording) -> None:
    params = {f"section.key{i}": str(i) for i in range(250)}
    config = started(config, params=params | {"long": "x" * 7000}, tags={"git.dirty": "true"})
    data = MlflowClient(config.uri).get_run(run_id_of(config)).data
    assert params.items() <= data.params.items()
    assert len(data.params["long"]) == 6000
    assert data.tags["git.dirty"] == "true"


def test_a_run_that_is_named_is_gone_on_with(config: Recording) -> None:
    config = started(config)
    assert create_run(config, name="run", known=config.run_id) == config.run_id


def test_a_new_run_belongs_to_its_parent(config: Recording) -> None:
    parent = started(config)
    child = create_run(config, name="child", parent=parent.run_id)
    tags = MlflowClient(config.uri).get_run(child or "").data.tags
    assert tags[PARENT] == parent.run_id


def test_a_run_is_looked_for_where_it_was_recorded_before_the_database_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = "http://old:5000", "http://new:5000"
    assert resolve(TrackingConfig(), known=old).uri == old
    assert resolve(TrackingConfig(uri=new), known=old).uri == new
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new)
    assert resolve(TrackingConfig(), known=old).uri == new


def test_a_run_that_was_deleted_is_replaced(config: Recording) -> None:
    config = started(config)
    MlflowClient(config.uri).delete_run(run_id_of(config))
    assert create_run(config, name="run", known=config.run_id) not in {None, config.run_id}


def test_every_kind_of_event_arrives(config: Recording, tmp_path: Path) -> None:
    config = started(config)
    tracker = open_tracker(config, tmp_path / "scratch")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "table.csv").write_text("a,b\n1,2\n")
    tracker.params({"version.torch": "2.13.0"})
    tracker.dataset("faces", "0123456789abcdef" * 4, "s3://bucket/faces", "train", {"num_samples": 100})
    tracker.metrics({"loss/total": 1.5, "loss/odd*name": 2.0}, 10)
    tracker.picture("puzzling", np.full((8, 8, 3), 128, np.uint8), 10)
    tracker.artifact(tmp_path / "results", "evaluation")
    tracker.close("FINISHED")
    run = MlflowClient(config.uri).get_run(run_id_of(config))
    assert run.info.status == "FINISHED"
    assert run.data.params["version.torch"] == "2.13.0"
    assert run.data.metrics == {"loss/total": 1.5, "loss/odd_name": 2.0}
    assert run.inputs is not None
    assert [entry.dataset.digest for entry in run.inputs.dataset_inputs] == [("0123456789abcdef" * 4)[:36]]
    assert artifacts_of(config, "evaluation/results") == ["evaluation/results/table.csv"]
    assert len([path for path in artifacts_of(config, "images") if path.endswith(".png")]) == 1


@pytest.mark.parametrize("keeps_journal", [True, False], ids=["same machine", "other machine"])
def test_a_resumed_run_has_one_value_and_one_picture_a_step(
    config: Recording, tmp_path: Path, keeps_journal: bool
) -> None:
    config = started(config)
    picture = np.zeros((4, 4, 3), np.uint8)
    first = open_tracker(config, tmp_path / "first")
    for step in range(1, 8):  # saved after step 4, interrupted after step 7
        first.metrics({"loss": float(step)}, step)
    first.picture("puzzling", picture, 6)
    first.close("KILLED")
    second = open_tracker(config, tmp_path / ("first" if keeps_journal else "second"))
    for step in range(5, 11):
        second.metrics({"loss": float(step)}, step)
        if step in {6, 10}:
            second.picture("puzzling", picture, step)
    second.close("FINISHED")
    history = MlflowClient(config.uri).get_metric_history(run_id_of(config), "loss")
    assert [(metric.step, metric.value) for metric in history] == [(step, float(step)) for step in range(1, 11)]
    assert status_of(config) == "FINISHED"
    assert len([path for path in artifacts_of(config, "images") if path.endswith(".png")]) == 2


def test_figures_that_a_lost_machine_had_not_delivered_come_from_the_checkpoint(
    config: Recording, tmp_path: Path
) -> None:
    config = started(config)
    lost = open_tracker(config.model_copy(update={"enabled": False}), tmp_path / "lost")  # delivers nothing
    for step in range(1, 6):
        lost.metrics({"loss": float(step)}, step)
    waited = delivery.waiting_metrics(lost.path, 4, most=10)  # what a checkpoint of step 4 holds
    lost.close("FAILED")

    resumed = open_tracker(config, tmp_path / "other", 4, waited)
    resumed.metrics({"loss": 5.0}, 5)
    resumed.close("KILLED")
    assert steps_of(config, "loss") == [1, 2, 3, 4, 5]
    again = open_tracker(config, tmp_path / "other", 5, waited)  # on the same machine nothing is written twice
    again.close("FINISHED")
    told = [event["step"] for event, _ in read_events(again.path) if event["event"] == "metrics"]
    assert told == [1, 2, 3, 4, 5]


def test_what_a_killed_process_left_is_delivered_by_the_next_start(config: Recording, tmp_path: Path) -> None:
    config = started(config)
    write_and_die(tmp_path, config)
    resumed = open_tracker(config, tmp_path)
    resumed.metrics({"loss": 2.0}, 2)
    resumed.close("FINISHED")
    assert steps_of(config, "loss") == [1, 2]


def test_a_resumed_run_is_running_until_it_ends_again(config: Recording, tmp_path: Path) -> None:
    config = started(config)
    first = open_tracker(config, tmp_path)
    first.metrics({"loss": 1.0}, 1)
    first.close("FAILED")
    second = open_tracker(config, tmp_path)
    second.metrics({"loss": 2.0}, 2)
    until(lambda: steps_of(config, "loss") == [1, 2])
    running = status_of(config)
    second.close("FINISHED")
    assert (running, status_of(config)) == ("RUNNING", "FINISHED")


def test_a_parameter_that_a_resume_changed_keeps_its_first_value_and_becomes_a_tag(
    config: Recording, tmp_path: Path
) -> None:
    config = started(config, params={"train.epochs": "10"})
    tracker = open_tracker(config, tmp_path)
    tracker.params({"train.epochs": "20", "seed": "7"})
    tracker.close("FINISHED")
    data = MlflowClient(config.uri).get_run(run_id_of(config)).data
    assert data.params == {"train.epochs": "10", "seed": "7"}
    assert {name: value for name, value in data.tags.items() if name.startswith("changed.")} == {
        "changed.train.epochs": "20"
    }


def test_an_event_that_the_server_refuses_holds_up_nothing(config: Recording, tmp_path: Path) -> None:
    config = started(config)
    tracker = open_tracker(config, tmp_path)
    tracker.artifact(tmp_path / "nothing-here.bin")
    tracker.append({"event": "metrics", "step": 1, "values": {"bad*name": 1.0}})
    tracker.metrics({"loss": 1.0}, 1)
    tracker.close("FINISHED")
    assert steps_of(config, "loss") == [1]
    assert status_of(config) == "FINISHED"


def test_numbers_that_are_none_arrive(config: Recording, tmp_path: Path) -> None:
    config = started(config)
    tracker = open_tracker(config, tmp_path)
    tracker.metrics({"loss": float("nan")}, 1)
    tracker.close("FINISHED")
    assert np.isnan(MlflowClient(config.uri).get_run(run_id_of(config)).data.metrics["loss"])


def test_system_metrics_are_sampled_and_the_sampler_ends_with_the_run(config: Recording, tmp_path: Path) -> None:
    config = started(config.model_copy(update={"system_metrics": True, "system_metrics_seconds": 0.2}))
    tracker = open_tracker(config, tmp_path)
    tracker.metrics({"loss": 1.0}, 1)
    until(lambda: len(steps_of(config, "system/cpu_utilization_percentage")) >= 2)
    tracker.close("FINISHED")
    steps = steps_of(config, "system/cpu_utilization_percentage")
    assert steps == sorted(set(steps))
    assert not threads_of_ours()


def test_no_secret_reaches_the_server(config: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret-0815")
    words = ("planted-secret-0815", "planted-word")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.log").write_text("key planted-secret-0815\nat https://me:planted-word@host\n")
    config = started(config, params={"a": words[0]}, tags={"b": f"https://me:{words[1]}@host"})
    tracker = open_tracker(config, tmp_path / "scratch")
    tracker.params({"c": words[0]})
    tracker.artifact(tmp_path / "out")
    tracker.metrics({"loss": 1.0}, 1)
    tracker.close("FINISHED")
    client = MlflowClient(config.uri)
    stored = str(client.get_run(run_id_of(config)).to_dictionary())
    stored += Path(client.download_artifacts(run_id_of(config), "out/run.log", str(tmp_path))).read_text()
    stored += (tmp_path / "scratch" / JOURNAL).read_text()
    assert "***" in stored
    assert not any(word in stored for word in words)


# --- the server away -----------------------------------------------------------------------------------------------


@pytest.fixture
def own_server(tmp_path: Path) -> Generator[OwnMLflow]:
    server = OwnMLflow(tmp_path / "server")
    server.start()
    yield server
    server.stop()


@pytest.mark.nightly
def test_a_server_that_goes_away_and_comes_back_gets_everything_once_and_in_order(
    own_server: OwnMLflow, tmp_path: Path
) -> None:
    config = started(TrackingConfig(uri=own_server.url, system_metrics=False))
    tracker = open_tracker(config, tmp_path / "scratch")
    tracker.metrics({"loss": 1.0}, 1)
    until(lambda: steps_of(config, "loss") == [1])
    own_server.stop()
    begin = time.perf_counter()
    for step in range(2, 300):
        tracker.metrics({"loss": float(step)}, step)
    tracker.picture("puzzling", np.zeros((4, 4, 3), np.uint8), 300)
    stalled = time.perf_counter() - begin
    own_server.start()
    tracker.metrics({"loss": 300.0}, 300)
    until(lambda: len(steps_of(config, "loss")) == 300)
    tracker.close("FINISHED")
    history = MlflowClient(config.uri).get_metric_history(run_id_of(config), "loss")
    assert [(metric.step, metric.value) for metric in history] == [(step, float(step)) for step in range(1, 301)]
    assert status_of(config) == "FINISHED"
    assert stalled < 1.0


def test_a_server_that_stays_away_delays_the_end_by_seconds_and_gets_the_rest_later(
    config: Recording, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = started(config)
    away = config.model_copy(update={"uri": NOBODY})
    tracker = open_tracker(away, tmp_path)
    tracker.metrics({"loss": 1.0}, 1)
    begin = time.perf_counter()
    with caplog.at_level(logging.WARNING):
        tracker.close("FINISHED")
    waited = time.perf_counter() - begin
    left = deliver_rest(config, tmp_path).left
    assert "wait there" in caplog.text
    assert waited < 8.0
    assert (left, steps_of(config, "loss"), status_of(config)) == (0, [1], "FINISHED")


def test_a_run_that_was_cut_off_is_failed_once_its_rest_is_delivered(config: Recording, tmp_path: Path) -> None:
    config = started(config)
    write_and_die(tmp_path, config)
    deliver_rest(config, tmp_path)
    assert status_of(config) == "FAILED"


def test_a_journal_of_a_run_without_mlflow_is_not_delivered_to_nowhere(config: Recording, tmp_path: Path) -> None:
    Journal(tmp_path).close("FINISHED")
    with pytest.raises(UserError, match="was written without MLflow, and nobody says which run"):
        deliver_rest(config, tmp_path)


def test_a_journal_of_a_run_without_mlflow_is_delivered_to_the_run_that_is_named(
    config: Recording, tmp_path: Path
) -> None:
    journal = Journal(tmp_path)
    journal.metrics({"loss": 1.0}, 1)
    journal.close("FINISHED")
    config = started(config)
    left = deliver_rest(config, tmp_path).left
    assert (left, steps_of(config, "loss"), status_of(config)) == (0, [1], "FINISHED")


def test_a_folder_without_a_journal_is_refused_in_one_line(config: Recording, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no journal here"):
        deliver_rest(config, tmp_path)


def test_without_a_server_a_run_starts_in_bounded_time_and_writes_its_journal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = TrackingConfig(uri=NOBODY)
    begin = time.perf_counter()
    with caplog.at_level(logging.WARNING):
        config = resolve(config, create_run(config, name="run"))
    waited = time.perf_counter() - begin
    tracker = open_tracker(config, tmp_path)
    tracker.metrics({"loss": 1.0}, 1)
    tracker.close("FINISHED")
    assert config.run_id is None
    assert "recorded in its journal only" in caplog.text
    assert waited < 8.0


class _Refusing(http.server.BaseHTTPRequestHandler):
    """A server that is no MLflow, or lets nobody in."""

    status = 401

    def do_GET(self) -> None:
        self.send_error(self.status)

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "asks for a name and a password, and did not get the right ones (HTTP status 401); put them into "),
        (404, "refuses or does not answer ("),
    ],
)
def test_a_server_that_refuses_is_told_before_anything_is_trained(
    status: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Refusing, "status", status)
    told: list[str] = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        assert create_run(TrackingConfig(uri=uri), name="run", say=told.append) is None
        server.shutdown()
    (line,) = told
    assert line.startswith(f"MLflow at {uri} {said}")
    assert line.endswith("; until then this run is recorded in its journal only")


def test_a_run_that_goes_on_keeps_its_id_while_the_server_is_away() -> None:
    assert create_run(TrackingConfig(uri=NOBODY), name="run", known="begun") == "begun"


def test_without_a_required_server_a_run_is_refused_in_one_line() -> None:
    config = TrackingConfig(uri=NOBODY, required=True)
    with pytest.raises(UserError, match=r"MLflow at http://127\.0\.0\.1:9 does not answer .* tracking\.required=false"):
        create_run(config, name="run")


def test_an_address_with_a_password_is_refused_without_repeating_it() -> None:
    with pytest.raises(UserError, match="MLFLOW_TRACKING_PASSWORD") as refused:
        create_run(TrackingConfig(uri="https://me:planted-word@host"), name="run")
    assert "planted-word" not in str(refused.value)


def test_an_address_with_a_password_in_the_environment_is_not_written_into_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:planted-word@host")
    assert resolve(TrackingConfig(), "abc").uri is None


# --- the driver ----------------------------------------------------------------------------------------------------


def test_the_driver_ends_a_run_whose_workers_died(config: Recording) -> None:
    config = started(config)
    finish_run(config, config.run_id, "FAILED")
    assert status_of(config) == "FAILED"


def test_the_page_of_a_run_is_named(config: Recording) -> None:
    config = started(config)
    experiment = MlflowClient(config.uri).get_run(run_id_of(config)).info.experiment_id
    url = run_url(config, run_id_of(config))
    assert url == f"{config.uri}/#/experiments/{experiment}/runs/{config.run_id}?workflowType=machine_learning"


def test_without_an_address_a_database_in_the_home_folder_is_used(
    hmtl_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HMTL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    config = started(TrackingConfig(system_metrics=False))
    (tmp_path / "note.txt").write_text("note")
    tracker = open_tracker(config, tmp_path / "scratch")
    tracker.artifact(tmp_path / "note.txt")
    tracker.metrics({"loss": 1.0}, 1)
    tracker.close("FINISHED")
    assert config.uri == f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}"
    assert steps_of(config, "loss") == [1]
    assert len(list((tmp_path / "home").rglob("note.txt"))) == 1


def test_switched_off_tracking_asks_no_server() -> None:
    assert create_run(TrackingConfig(enabled=False, uri=NOBODY, required=True), name="run") is None


def test_a_file_is_kept_in_a_run_of_its_own_and_a_run_can_be_deleted(config: Recording, tmp_path: Path) -> None:
    (tmp_path / "sheet.png").write_bytes(b"picture")
    run_id = record_file(config, tmp_path / "sheet.png", name="people", params={"seed": "1"}, tags={"kind": "data"})
    kept = config.model_copy(update={"run_id": run_id})
    run = MlflowClient(config.uri).get_run(run_id)
    assert (run.info.status, run.data.params, run.data.tags["kind"]) == ("FINISHED", {"seed": "1"}, "data")
    assert artifacts_of(kept) == ["sheet.png"]
    for _ in range(2):  # one that is gone is none
        delete_run(config, run_id)
        assert MlflowClient(config.uri).get_run(run_id).info.lifecycle_stage == "deleted"


def test_a_file_for_a_server_that_is_away_is_refused(config: Recording, tmp_path: Path) -> None:
    away = config.model_copy(update={"uri": NOBODY, "required": True, "timeout_seconds": 2.0})
    with pytest.raises(UserError, match="does not answer"):
        record_file(away, tmp_path / "sheet.png", name="people", params={}, tags={})
