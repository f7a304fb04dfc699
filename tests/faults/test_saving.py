"""Faults while a run saves, or stops: nothing but the steps since the last checkpoint is lost, and the end is the same.

Whole runs in this process, on a real S3 server behind a proxy or on a real small disk.
"""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from hmtl_dist.data.storage import open_storage
from hmtl_dist.engine.checkpoint import load_checkpoint, newest_manifest
from hmtl_dist.errors import UserError
from hmtl_dist.launch.driver import Finished, drive
from hmtl_dist.train.base import Progress
from tests.e2e.drawn import config, draw, tree, weights
from tests.faults import proxy as faults
from tests.faults.proxy import Proxy, Rule, Rules, wait_until
from tests.servers import S3Server

pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("own_home")]

STEPS, EVERY = 20, 5
SAVES = {
    "epochs": 5,
    "evaluate_every_epochs": 5,
    "checkpoint_every_epochs": 5,
    "checkpoint_every_steps": EVERY,
    "report_every_steps": 1,
}
TASKS = {"inpainting": None}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return draw(str(tmp_path_factory.mktemp("drawn") / "set"))


@pytest.fixture(scope="module")
def whole(url: str) -> dict[str, bytes]:
    """The weights of the run that nothing happened to."""
    return weights(run("whole", url).outcome.checkpoint)


def nothing(step: int) -> None:
    pass


def run(
    name: str,
    url: str,
    at_step: Callable[[int], object] = nothing,
    storage: str | None = None,
    patience_minutes: float = 10.0,
) -> Finished:
    """Trains in this process, to the end unless something happens."""

    def show(progress: Progress) -> None:
        if progress.phase == "train":
            at_step(progress.global_step)

    launch = {"kind": "local"} | ({"storage": storage} if storage else {})
    patience = {"patience_minutes": patience_minutes}
    return drive(config(name, url, tasks=TASKS, train=SAVES, launch=launch, storage=patience), show)


def at(step: int, action: Callable[[], object]) -> Callable[[int], object]:
    return lambda reached: action() if reached == step else None


def stored(storage: str, name: str) -> dict[str, bytes]:
    """The tensor files of a run's last checkpoint, wherever it is stored."""
    folder = open_storage(f"{storage}/{name}/checkpoints/step-{STEPS:08d}")
    return {info.key: folder.read(info.key) for info in folder.list() if info.key.endswith(".safetensors")}


@pytest.fixture
def proxy(s3_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> Generator[Proxy]:
    with faults.serve(s3_env.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


# --- stopped or killed while it saves ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_during_a_checkpoint_leaves_that_one_and_its_own_whole(
    url: str, whole: dict[str, bytes], proxy: Proxy, s3: S3Server, number: signal.Signals
) -> None:
    storage = f"{s3.bucket()}/runs"
    slow = [Rule(faults.delay(1.0), f"step-{EVERY:08d}/", "PUT", times=3)]
    slow += [Rule(faults.delay(2.0), f"step-{EVERY + later:08d}/", "PUT", times=1) for later in (1, 2)]
    proxy.plan = Rules(*slow)
    unfinished: list[bool] = []

    def stop() -> None:
        unfinished.append(newest_manifest(f"{storage}/stopped/checkpoints") is None)
        signal.raise_signal(number)

    stopped = run("stopped", url, at(EVERY + 1, stop), storage)
    assert unfinished == [True]
    assert stopped.outcome.status == "STOPPED"
    for step in (EVERY, stopped.outcome.global_step):
        load_checkpoint(f"{storage}/stopped/checkpoints/step-{step:08d}")
    assert run("stopped", url, storage=storage).outcome.status == "FINISHED"
    assert stored(storage, "stopped") == whole


def command(folder: Path, name: str, url: str, storage: str, *before: str) -> list[str]:
    """The command line of such a run; its recipe lies in the folder."""
    sections = tree(url, tasks=TASKS, train=SAVES, launch={"kind": "local", "storage": storage})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(sections, sort_keys=False))
    return [*before, sys.executable, "-m", "hmtl_dist", "train", str(folder / "recipe.yaml"), f"name={name}"]


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"HMTL_HOME": str(folder / "home")}


Start = Callable[[Path, str, str, str], "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Generator[Start]:
    """Starts such a run in a session of its own; nothing of it outlives the test."""
    started: list[subprocess.Popen[bytes]] = []

    def launch(folder: Path, name: str, url: str, storage: str) -> "subprocess.Popen[bytes]":
        words = command(folder, name, url, storage)
        started.append(
            subprocess.Popen(words, env=environment(folder), stdout=subprocess.DEVNULL, start_new_session=True)
        )
        return started[-1]

    yield launch
    for process in started:
        process.kill()
        process.wait()


def test_a_second_ctrl_c_during_a_checkpoint_ends_at_once_and_costs_that_checkpoint(
    url: str, whole: dict[str, bytes], proxy: Proxy, s3: S3Server, start: Start, tmp_path: Path
) -> None:
    storage = f"{s3.bucket()}/runs"
    proxy.plan = Rules(Rule(faults.stall(), f"step-{2 * EVERY:08d}/", "PUT", times=1000))
    process = start(tmp_path, "twice", url, storage)
    wait_until(lambda: proxy.hits > 0, 120)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(5.0)  # the first one waits for the checkpoint
    process.send_signal(signal.SIGINT)
    assert process.wait(15.0) == 130
    proxy.plan = Rules()
    steps: list[int] = []
    run("twice", url, steps.append, storage)
    assert steps[0] == EVERY + 1
    assert stored(storage, "twice") == whole


def test_a_run_killed_during_a_checkpoint_goes_on_from_the_one_before(
    url: str, whole: dict[str, bytes], proxy: Proxy, s3: S3Server, start: Start, tmp_path: Path
) -> None:
    storage = f"{s3.bucket()}/runs"
    proxy.plan = Rules(Rule(faults.stall(), rf"step-{2 * EVERY:08d}/manifest", "PUT", times=1000))
    process = start(tmp_path, "torn", url, storage)
    wait_until(lambda: proxy.hits > 0, 120)
    process.kill()
    process.wait()
    proxy.plan = Rules()
    left = {info.key.split("/")[0] for info in open_storage(f"{storage}/torn/checkpoints").list()}
    assert f"step-{2 * EVERY:08d}" in left
    steps: list[int] = []
    run("torn", url, steps.append, storage)
    assert steps[0] == EVERY + 1
    assert stored(storage, "torn") == whole


def test_a_run_killed_before_its_first_checkpoint_goes_on_in_its_mlflow_run(
    url: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    recorded = {"enabled": True, "uri": store, "system_metrics": False, "model": False}
    late = SAVES | {"checkpoint_every_steps": None, "checkpoint_every_epochs": 5}
    sections = tree(url, tasks=TASKS, train=late, launch={"kind": "local"}, tracking=recorded)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(sections, sort_keys=False))
    words = [sys.executable, "-m", "hmtl_dist", "train", str(tmp_path / "recipe.yaml"), "name=early"]
    folder = tmp_path / "home" / "runs" / "early"
    journal = folder / "rank-0" / "journal.jsonl"
    with subprocess.Popen(words, env=environment(tmp_path), stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: journal.exists() and "train/loss/total" in journal.read_text(), 120)
        process.kill()
    assert not [*folder.glob("checkpoints/*/manifest.json")]
    subprocess.run(words, env=environment(tmp_path), stdout=subprocess.DEVNULL, check=True)

    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("hmtl_dist")
    assert experiment is not None
    (recorded_run,) = client.search_runs([experiment.experiment_id])
    assert recorded_run.info.status == "FINISHED"
    history = client.get_metric_history(recorded_run.info.run_id, "train/loss/total")
    assert sorted(metric.step for metric in history) == list(range(1, STEPS + 1))
    assert weights(str(folder / "checkpoints" / f"step-{STEPS:08d}")) == whole


# --- storage that fails ------------------------------------------------------------------------------------------


def test_storage_that_stays_away_ends_the_run_in_one_line_and_costs_no_checkpoint(
    url: str, whole: dict[str, bytes], proxy: Proxy, s3: S3Server
) -> None:
    storage = f"{s3.bucket()}/runs"
    away = proxy.away()
    with pytest.raises(UserError, match="does not answer") as caught:
        run("away", url, at(2 * EVERY + 2, away.__enter__), storage, patience_minutes=5 / 60)
    assert "\n" not in str(caught.value)
    away.__exit__(None, None, None)
    steps: list[int] = []
    run("away", url, steps.append, storage)
    assert steps[0] in (EVERY + 1, 2 * EVERY + 1)  # the checkpoint under way may have been quicker
    assert stored(storage, "away") == whole


UPLOADS = {
    "reset": faults.reset(),
    "500": faults.status(500, "InternalError"),
    "503 SlowDown": faults.status(503, "SlowDown"),
    "answer lost": faults.reset(0),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "answer lost" else name for name in UPLOADS]
)
def test_an_upload_that_fails_at_first_is_repeated(
    url: str, whole: dict[str, bytes], proxy: Proxy, s3: S3Server, name: str
) -> None:
    storage = f"{s3.bucket()}/runs"
    proxy.plan = Rules(Rule(UPLOADS[name], "checkpoints/step-", "PUT", times=2))
    assert run("repeated", url, storage=storage).outcome.status == "FINISHED"
    assert proxy.hits == 2
    assert stored(storage, "repeated") == whole


def test_access_denied_to_the_bucket_ends_the_run_in_one_line(url: str, proxy: Proxy, s3: S3Server) -> None:
    storage = f"{s3.bucket()}/runs"
    proxy.plan = Rules(Rule(faults.status(403, "AccessDenied"), "checkpoints/step-", "PUT", times=1000))
    with pytest.raises(UserError, match=r"access to .*checkpoints/step-00000005.* is denied") as caught:
        run("denied", url, storage=storage)
    assert "\n" not in str(caught.value)


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A file system of its own, to be filled."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def resize(disk: Path, num_bytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={num_bytes}", str(disk)], check=True)


def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_costs_the_steps_since_the_last_checkpoint(
    url: str, whole: dict[str, bytes], small_disk: Path
) -> None:
    one = sum(len(data) for data in whole.values())
    resize(small_disk, one + one // 2 + (1 << 16))
    with pytest.raises(UserError, match=r"(?i)no (space|room)|disk is full|free some") as caught:
        run("full", url, storage=str(small_disk))
    assert "\n" not in str(caught.value)
    resize(small_disk, 8 * one)
    steps: list[int] = []
    run("full", url, steps.append, str(small_disk))
    assert steps[0] == EVERY + 1
    assert stored(str(small_disk), "full") == whole


def test_a_quota_met_in_mid_run_is_one_line_and_the_run_goes_on_when_it_is_raised(
    url: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """`ulimit -f` stands in for a quota: no file may grow beyond a limit that all but the largest file keep."""
    stopped = run("quota", url, at(EVERY + 1, lambda: signal.raise_signal(signal.SIGTERM)), str(tmp_path / "runs"))
    assert stopped.outcome.status == "STOPPED"
    limit = max(len(data) for data in whole.values()) // 1024 - 1
    words = command(tmp_path, "quota", url, str(tmp_path / "runs"), "bash", "-c", f'ulimit -f {limit}; exec "$@"', "-")
    ended = subprocess.run(words, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert ended.stderr.startswith("error: ")
    assert run("quota", url, storage=str(tmp_path / "runs")).outcome.status == "FINISHED"
    assert stored(str(tmp_path / "runs"), "quota") == whole


# --- what is stored is damaged -----------------------------------------------------------------------------------


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "flipped bit": lambda folder: flip(folder / "model.safetensors"),
    "cut file": lambda folder: (folder / "optimizer.safetensors").write_bytes(b"short"),
    "missing file": lambda folder: (folder / "objective.safetensors").unlink(),
    "torn manifest": lambda folder: (folder / "manifest.json").write_text("{"),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    url: str, whole: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    stopped = run("damaged", url, at(2 * EVERY + 1, lambda: signal.raise_signal(signal.SIGTERM)), str(tmp_path))
    assert stopped.outcome.checkpoint is not None
    DAMAGES[name](Path(stopped.outcome.checkpoint))
    steps: list[int] = []
    with caplog.at_level(logging.WARNING):
        run("damaged", url, steps.append, str(tmp_path))
    assert steps[0] == 2 * EVERY + 1
    assert f"passing over step-{stopped.outcome.global_step:08d}" in caplog.text
    assert stored(str(tmp_path), "damaged") == whole


def test_where_every_checkpoint_is_damaged_the_run_is_refused_and_begins_anew_on_request(
    url: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    launch = {"kind": "local", "storage": str(tmp_path)}
    tree_ = config("spoiled", url, tasks=TASKS, train=SAVES, launch=launch)
    stop = at(2 * EVERY + 1, lambda: signal.raise_signal(signal.SIGTERM))
    run("spoiled", url, stop, str(tmp_path))
    for file in tmp_path.glob("spoiled/checkpoints/*/model.safetensors"):
        flip(file)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("spoiled/checkpoints/*/*")}

    with pytest.raises(UserError, match=r"^no checkpoint in .* is whole: .*begin anew by `train` with --restart$"):
        drive(tree_, lambda progress: None)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("spoiled/checkpoints/*/*")}

    said: list[str] = []
    steps: list[int] = []
    drive(tree_, lambda progress: steps.append(progress.global_step), again="anew", say=said.append)
    assert steps[0] == 1
    assert not [line for line in said if line.startswith(("goes on", "passing over"))]
    assert stored(str(tmp_path), "spoiled") == whole


def test_of_all_checkpoints_the_last_ones_and_the_best_stay(url: str, tmp_path: Path) -> None:
    train = {"epochs": 6, "keep_checkpoints": 2, "monitor": "eval/age/mae_age", "monitor_mode": "max"}
    launch = {"kind": "local", "storage": str(tmp_path)}
    finished = drive(config("kept", url, tasks=TASKS, train=train, launch=launch), lambda progress: None)
    best = int(finished.outcome.metrics["best/step"])
    kept = {int(path.parent.name.removeprefix("step-")) for path in tmp_path.rglob("checkpoints/*/manifest.json")}
    assert best < 20, "the best is one of the last: this run says nothing about keeping it"
    assert kept == {best, 20, 24}
