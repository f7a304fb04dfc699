"""`hmtl-dist train` in a process of its own, on the real components."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from hmtl_dist.config.io import load_tree
from hmtl_dist.run_config import RunConfig
from tests.e2e.drawn import STEPS_PER_EPOCH, draw, tree, weights
from tests.processes import kill_all
from tests.servers import S3Server

pytestmark = pytest.mark.slow

MARK = "HMTL_TEST_MARK"
"""Variable by which everything a command starts is found again."""


@dataclass
class Command:
    """A command line under way, in a session of its own."""

    process: "subprocess.Popen[str]"
    mark: str

    def end(self) -> tuple[int, str]:
        """Waits; returns the exit code and everything that was said."""
        said, _ = self.process.communicate(timeout=800)
        return self.process.returncode, said

    def left_over(self, patience: float = 10.0) -> list[psutil.Process]:
        """What is still running of all it started, when it had time to end."""
        deadline = time.monotonic() + patience
        while (found := marked(self.mark)) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found


def marked(mark: str) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


Start = Callable[..., Command]


@pytest.fixture(scope="module")
def start() -> Generator[Start]:
    """Starts `hmtl-dist` with the environment of this process and more; nothing of it outlives the test."""
    started: list[Command] = []

    def launch(*arguments: str, **environment: str) -> Command:
        mark = uuid.uuid4().hex
        process = subprocess.Popen(
            [sys.executable, "-m", "hmtl_dist", *arguments],
            env=os.environ | environment | {MARK: mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(Command(process, mark))
        return started[-1]

    yield launch
    for command in started:
        kill_all(marked(command.mark))
        command.process.communicate()


# --- everything at once ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A run of the shipped recipe on two Ray workers through DeepSpeed, from S3 into an MLflow server."""

    code: int
    said: str
    left_over: list[psutil.Process]
    home: Path
    store: Path
    """Folder of the MLflow server."""
    client: MlflowClient
    uri: str

    @property
    def run(self) -> Run:
        experiment = self.client.get_experiment_by_name("demo")
        assert experiment is not None
        (run,) = self.client.search_runs([experiment.experiment_id], "attributes.run_name = 'whole'")
        return run

    def artifacts(self, folder: str) -> list[str]:
        client = cast("Any", self.client)  # partly untyped
        return [file.path.rsplit("/", 1)[-1] for file in client.list_artifacts(self.run.info.run_id, folder)]


@pytest.fixture(scope="module")
def trained(s3: S3Server, mlflow_server: str, start: Start, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    home = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.env().items():
            patch.setenv(name, value)
        url = draw(f"{s3.bucket()}/faces", image_size=64)
        command = start(
            *("train", "demo", f"data.url={url}", "name=whole", "train.epochs=2", "train.report_every_steps=1"),
            *(
                "model.backbone=test_efficientnet",
                "data.image_size=64",
                "data.batch_size=32",
                "train.evaluate_every_epochs=2",
                "launch.num_workers=2",
                "engine.kind=deepspeed",
                "tracking.system_metrics_seconds=1",
                "tracking.close_seconds=300",
            ),
            HMTL_HOME=str(home),
            MLFLOW_TRACKING_URI=mlflow_server,
        )
        code, said = command.end()
    return Trained(
        code=code,
        said=said,
        left_over=command.left_over(),
        home=home,
        store=next(path for path in tmp_path_factory.getbasetemp().glob("mlflow*") if path.is_dir()),
        client=MlflowClient(mlflow_server),
        uri=mlflow_server,
    )


def test_the_recipe_trains_to_its_end(trained: Trained) -> None:
    assert trained.code == 0, trained.said
    assert "finished at step" in trained.said
    assert "Traceback" not in trained.said


def test_the_terminal_shows_our_lines_alone(trained: Trained) -> None:
    chatter = ("(TrainController", "(RayTrainWorker", "[INFO]", "WARNING", "Warning", "DeepSpeed", "INFO mlflow")
    assert not [line for line in trained.said.splitlines() if any(word in line for word in chatter)]


def test_nothing_is_left_running(trained: Trained) -> None:
    assert not trained.left_over


def test_the_run_is_finished_in_mlflow(trained: Trained) -> None:
    assert trained.run.info.status == "FINISHED"
    assert trained.run.info.run_id in trained.said


def test_every_step_is_recorded_once(trained: Trained) -> None:
    history = trained.client.get_metric_history(trained.run.info.run_id, "train/loss/total")
    assert [metric.step for metric in history] == [1, 2, 3, 4]


def test_figures_of_every_task_are_recorded(trained: Trained) -> None:
    metrics = set(trained.run.data.metrics)
    assert {f"train/loss/{task}" for task in ("expression", "gender", "puzzling", "inpainting")} <= metrics
    assert {"eval/expression/accuracy", "eval/gender/balanced_accuracy", "eval/puzzling/accuracy"} <= metrics
    assert {"train/samples_per_second", "train/wait_share", "train/learning_rate"} <= metrics
    assert any(name.startswith("system/") for name in metrics)


def test_parameters_and_data_are_recorded(trained: Trained) -> None:
    params = trained.run.data.params
    assert (params["launch.num_workers"], params["engine.kind"], params["tasks.inpainting.type"]) == (
        "2",
        "deepspeed",
        "inpainting",
    )
    assert trained.run.inputs is not None
    inputs = trained.run.inputs.dataset_inputs
    assert {(given.dataset.name, given.tags[0].value) for given in inputs} == {
        ("drawn", "train"),
        ("drawn", "evaluation"),
    }
    assert any(params["data.digest"].startswith(given.dataset.digest) for given in inputs)


def test_pictures_of_puzzles_restorations_and_learning_curves_are_recorded(trained: Trained) -> None:
    images = " ".join(trained.artifacts("images"))
    assert all(name in images for name in ("puzzling", "inpainting", "learning_curves"))


def test_confusion_matrices_are_recorded(trained: Trained) -> None:
    (folder,) = trained.artifacts("evaluation")
    assert sorted(trained.artifacts(f"evaluation/{folder}")) == [
        *("confusion_expression.csv", "confusion_expression.png"),
        *("confusion_gender.csv", "confusion_gender.png"),
    ]


def test_the_model_loads_elsewhere_and_predicts(trained: Trained) -> None:
    (model,) = trained.client.search_logged_models([trained.run.info.experiment_id])
    program = (
        "import sys, numpy, mlflow.pyfunc\n"
        "table = mlflow.pyfunc.load_model(sys.argv[1]).predict({'picture': numpy.zeros((2, 64, 64, 3), numpy.uint8)})\n"
        "print(len(table), *table.columns)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, f"models:/{model.model_id}"],
        env=os.environ | {"MLFLOW_TRACKING_URI": trained.uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows, *columns = done.stdout.split()
    assert rows == "2"
    assert any(column.startswith("expression") for column in columns)


def test_the_model_is_called_like_its_run_and_linked_with_step_figures_and_data(trained: Trained) -> None:
    run, client = trained.run, trained.client
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert (model.name, model.tags["weights"]) == ("whole", "last")
    assert model.params is not None
    assert {key: model.params[key] for key in ("model.backbone", "recipe", "seed", "tasks", "dataset")} == {
        "model.backbone": "test_efficientnet",
        "recipe": run.data.params["recipe"],
        "seed": run.data.params["seed"],
        "tasks": "expression, gender",
        "dataset": "drawn",
    }
    assert run.outputs is not None
    assert run.inputs is not None
    last = max(metric.step for metric in client.get_metric_history(run.info.run_id, "eval/expression/accuracy"))
    assert [(output.model_id, output.step) for output in run.outputs.model_outputs] == [(model.model_id, last)]
    assert model.params["global_step"] == str(last)
    found = {metric.key: (metric.value, metric.step) for metric in model.metrics or ()}
    assert found["eval/expression/accuracy"] == (run.data.metrics["eval/expression/accuracy"], last)
    assert found.keys() >= {"eval/gender/accuracy", "eval/expression/loss", "eval/puzzling/accuracy"}
    digests = {given.dataset.digest for given in run.inputs.dataset_inputs if given.tags[0].value == "evaluation"}
    assert {(metric.dataset_name, metric.dataset_digest) for metric in model.metrics or ()} == {
        ("drawn", digest) for digest in digests
    }
    for key in found:  # linking adds no second value
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, key)]
        assert len(steps) == len(set(steps))


def test_configuration_and_log_are_artifacts(trained: Trained, tmp_path: Path) -> None:
    assert set(trained.artifacts("")) >= {"config.yaml", "log.txt"}
    client, run_id = cast("Any", trained.client), trained.run.info.run_id
    recipe = client.download_artifacts(run_id, "config.yaml", str(tmp_path))
    known = load_tree(RunConfig, recipe, ())
    assert (known.name, known.train.epochs, known.model.backbone) == ("whole", 2, "test_efficientnet")
    assert Path(client.download_artifacts(run_id, "log.txt", str(tmp_path))).stat().st_size > 0


def test_the_secret_key_is_nowhere(trained: Trained, s3: S3Server) -> None:
    secret = s3.admin.secret_access_key
    assert secret not in trained.said
    files = [file for folder in (trained.home, trained.store) for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 10
    assert not [file for file in files if secret.encode() in file.read_bytes()]


# --- Ctrl-C ------------------------------------------------------------------------------------------------------

TOTAL_STEPS = 80


@dataclass(frozen=True)
class GoneOn:
    """A run that was stopped by Ctrl-C, went on to its end, and was refused another start with other settings."""

    folder: Path
    stopped: tuple[int, str]
    ended: tuple[int, str]
    refused: tuple[int, str]

    def query(self, sql: str) -> list[tuple[int | str]]:
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as database:
            return database.execute(sql).fetchall()


@pytest.fixture(scope="module")
def gone_on(start: Start, tmp_path_factory: pytest.TempPathFactory) -> GoneOn:
    folder = tmp_path_factory.mktemp("stopped")
    epochs = TOTAL_STEPS // STEPS_PER_EPOCH
    sections = tree(
        draw(str(folder / "set")),
        train={"epochs": epochs, "evaluate_every_epochs": epochs, "checkpoint_every_epochs": epochs},
        engine={"kind": "deepspeed"},
        tracking={"enabled": True, "uri": f"sqlite:///{folder}/mlflow.db", "system_metrics": False},
    )
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(sections))

    def train(*overrides: str) -> Command:
        return start("train", str(recipe), *overrides, HMTL_HOME=str(folder / "home"))

    assert train("name=whole", "tracking.enabled=false").end()[0] == 0
    command = train("name=stopped")
    assert command.process.stdout is not None
    for line in command.process.stdout:
        if line.startswith("train "):
            break
    command.process.send_signal(signal.SIGINT)
    return GoneOn(
        folder=folder,
        stopped=command.end(),
        ended=train("name=stopped").end(),
        refused=train("name=stopped", "seed=1").end(),
    )


@pytest.mark.nightly
def test_ctrl_c_ends_in_order_and_says_how_to_go_on(gone_on: GoneOn) -> None:
    code, said = gone_on.stopped
    where = re.search(rf"stopped at step (\d+) of {TOTAL_STEPS}; the same command again goes on", said)
    assert code == 130, said
    assert where is not None, said
    assert 0 < int(where[1]) < TOTAL_STEPS


@pytest.mark.nightly
def test_the_same_command_goes_on_to_the_weights_of_the_uninterrupted_run(gone_on: GoneOn) -> None:
    assert gone_on.ended[0] == 0, gone_on.ended[1]
    runs, name = gone_on.folder / "home" / "runs", f"checkpoints/step-{TOTAL_STEPS:08d}"
    assert weights(str(runs / "stopped" / name)) == weights(str(runs / "whole" / name))


@pytest.mark.nightly
def test_it_is_one_run_in_mlflow_with_each_step_once(gone_on: GoneOn) -> None:
    assert gone_on.query("SELECT name FROM runs") == [("stopped",)]
    steps = gone_on.query("SELECT step FROM metrics WHERE key = 'train/loss/total' ORDER BY step")
    assert [step for (step,) in steps] == list(range(1, TOTAL_STEPS + 1))


@pytest.mark.nightly
def test_a_refused_start_leaves_the_finished_run_as_it_is(gone_on: GoneOn) -> None:
    code, said = gone_on.refused
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (2, 1), said
    assert errors[0].startswith("error: run 'stopped' was begun with seed=0, now it is 1; ")
    assert gone_on.query("SELECT status FROM runs") == [("FINISHED",)]
