"""Jobs on a cluster of two nodes that asks for a token, by plain `ray job submit` and by `hmtl-dist submit`."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from hmtl_dist.data.storage import S3Storage
from tests.e2e.nodes import REPOSITORY, SECRET, TINY, Cluster, draw, get, outcome, plain, run, two_nodes
from tests.faults.leaks import files_under
from tests.servers import S3Server

pytestmark = pytest.mark.nightly

ON_THE_HEAD = ["launch.kind=local", "launch.num_workers=1"]
"""Trains in the job's own process: it starts faster, where it does not matter who trains."""


@pytest.fixture(scope="module")
def cluster(s3: S3Server) -> Generator[Cluster]:
    with two_nodes(s3.env(), s3.bucket()) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def data(cluster: Cluster, s3: S3Server) -> str:
    return draw(f"{cluster.bucket}/faces", s3.env())


def ours(cluster: Cluster, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "hmtl_dist", "submit", f"--address={cluster.dashboard}", *arguments]


def test_what_a_process_talks_through_is_on_its_own_node(cluster: Cluster) -> None:
    job = plain(cluster, "python", "-m", "tests.e2e.beside")
    assert job.returncode == 0, job.stdout + job.stderr
    (answer,) = [line for line in job.stdout.splitlines() if line.startswith("{")]
    nodes = json.loads(answer)
    assert len(nodes) == 2
    assert all(actors == [node] * 4 for node, actors in nodes.items()), nodes


def test_a_plain_job_trains_on_as_many_workers_as_there_is_room_for(cluster: Cluster, data: str, s3: S3Server) -> None:
    settings = [f"data.url={data}", f"launch.storage={cluster.bucket}/runs", "name=plain", *TINY[:-1]]
    settings += ["launch.num_workers=auto"]
    job = plain(cluster, "python", "-m", "hmtl_dist", "train", "demo", "--json", *settings)

    assert job.returncode == 0, job.stdout + job.stderr
    assert "succeeded" in job.stdout
    assert (outcome(job.stdout)["status"], outcome(job.stdout)["global_step"]) == ("FINISHED", 2)
    manifest = S3Storage(f"{cluster.bucket}/runs/plain/checkpoints", s3.access).read("step-00000002/manifest.json")
    assert json.loads(manifest)["content"]["entries"]["world_size"] == 2


def test_a_type_of_gpu_that_is_not_there_is_one_line(cluster: Cluster) -> None:
    command = [sys.executable, "-m", "hmtl_dist", "train", "demo", "name=typed", f"launch.address={cluster.head}"]
    command += ["tracking.enabled=false", f"launch.storage={cluster.folder}/runs", "launch.gpus_per_worker=1"]
    driver = run(cluster, [*command, "launch.accelerator_type=A100"])

    assert (driver.returncode, driver.stderr.count("\n")) == (2, 1), driver.stderr
    assert "launch.accelerator_type: given 'A100', but no machine of this cluster says" in driver.stderr


def scraped(cluster: Cluster) -> str:
    """What Prometheus would get: Ray writes down where its nodes export their metrics."""
    (targets,) = json.loads((cluster.folder / "ray" / "prom_metrics_service_discovery.json").read_text())
    return "\n".join(get(f"http://{target}/metrics")[1] for target in targets["targets"])


def test_every_metric_of_the_dashboard_is_exported_by_a_run(cluster: Cluster, data: str) -> None:
    settings = [f"data.url={data}", f"launch.storage={cluster.bucket}/runs", "name=scraped", *TINY]
    settings += ["train.epochs=100000", "train.max_steps=100000", "train.report_every_steps=1"]
    settings += ["train.checkpoint_every_steps=5"]
    sent = run(cluster, ours(cluster, "--no-wait", "train", "demo", *settings))
    assert sent.returncode == 0, sent.stdout + sent.stderr
    job_id = re.findall(r"hmtl-train-[\w-]+", sent.stdout)[0]
    dashboard = (REPOSITORY / "cluster" / "grafana" / "runs.json").read_text()
    shown = {*re.findall(r"\bray_\w+(?=\{|,)", dashboard)}
    assert len(shown) > 10

    missing, ranks, text, deadline = shown, set[str](), "", time.monotonic() + 600
    while (missing or ranks != {"0", "1"}) and time.monotonic() < deadline:
        time.sleep(1)
        text = scraped(cluster)
        missing = {name for name in shown if not re.search(rf"^{name}\{{", text, re.MULTILINE)}
        ranks = {*re.findall(r'^ray_hmtl_step_seconds\{.*?rank="(\d)"', text, re.MULTILINE)}
    assert run(cluster, ours(cluster, "--stop", job_id)).returncode == 0
    assert missing == set(), run(cluster, ours(cluster, "--follow", job_id)).stdout
    assert ranks == {"0", "1"}
    assert re.search(r'^ray_hmtl_bytes_read_total\{.*?run="scraped".*\} [1-9]', text, re.MULTILINE)
    assert run(cluster, ours(cluster, "--follow", job_id)).returncode == 130  # room for the next


def test_a_recipe_of_ones_own_is_sent_and_nothing_secret_with_it(cluster: Cluster, data: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"base: demo\nname: mine\ndata: {{url: {data}}}\n")
    settings = [f"launch.storage={cluster.bucket}/runs", *TINY]
    job = run(cluster, ours(cluster, "train", "mine.yaml", "--json", *settings), folder=tmp_path)

    assert job.returncode == 0, job.stdout + job.stderr
    told = outcome(job.stdout)
    assert (told["status"], told["global_step"], told["folder"]) == ("FINISHED", 2, f"{cluster.bucket}/runs/mine")
    token = cluster.token.read_text()
    _, shown = get(f"{cluster.dashboard}/api/jobs/", token)
    assert "hmtl_dist train mine.yaml" in shown
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    said = {"job": shown, "output": job.stdout + job.stderr, "processes": "\n".join(lines)}
    for path in files_under([cluster.folder / "ray"]):
        if path.suffix in (".log", ".out", ".err", ".txt", ".json"):
            with suppress(OSError):  # Ray takes files away as it goes
                said[str(path)] = path.read_text(errors="replace")
    assert len(said) > 10
    for secret in (SECRET, token, S3Server("").admin.secret_access_key):
        assert [where for where, text in said.items() if secret in text] == []


def test_exit_code_of_the_job_is_returned(cluster: Cluster) -> None:
    gone = [f"data.url={cluster.bucket}/gone", f"launch.storage={cluster.bucket}/runs", "name=gone"]
    job = run(cluster, ours(cluster, "train", "demo", *gone, *TINY, *ON_THE_HEAD))

    assert job.returncode == 2, job.stdout + job.stderr
    assert re.search(r"^error: .*/gone", job.stdout, re.MULTILINE)
    assert "failed with exit code 2" in job.stdout


def long_run(cluster: Cluster, data: str, name: str) -> list[str]:
    settings = [f"data.url={data}", f"launch.storage={cluster.bucket}/runs", f"name={name}", *TINY, *ON_THE_HEAD]
    return ["demo", *settings, "train.epochs=100000", "train.max_steps=100000", "train.report_every_steps=1"]


def steps_in(text: str) -> bool:
    return re.search(r"train \d+/100000", text) is not None


def interrupted(command: Sequence[str], cluster: Cluster, log: Path, answer: bytes | None) -> tuple[int, str]:
    """Runs a command until it shows progress, presses Ctrl-C, answers on a terminal (None: there is none)."""
    master, terminal = pty.openpty()
    environment = {**cluster.environment, "TERM": "dumb"}
    text = b""

    def read(until: Callable[[str], bool]) -> None:
        nonlocal text
        deadline = time.monotonic() + 600
        while not until(text.decode(errors="replace")):
            assert time.monotonic() < deadline, text.decode(errors="replace")
            if answer is None:
                text = log.read_bytes()
                time.sleep(0.2)
            else:
                try:
                    text += os.read(master, 4096)
                except OSError:  # the other side is closed
                    return

    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL if answer is None else terminal,
            stdout=file if answer is None else terminal,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        os.close(terminal)
        try:
            read(steps_in)
            process.send_signal(signal.SIGINT)
            if answer is not None:
                read(lambda shown: "detach and let it go on (d)?" in shown)
                os.write(master, answer)
                read(lambda shown: False)
            code = process.wait(timeout=600)
        finally:
            process.kill()
            process.wait()
            os.close(master)
    return code, (log.read_bytes() if answer is None else text).decode(errors="replace")


def test_ctrl_c_on_a_terminal_may_stop_the_job_which_saves_first(
    cluster: Cluster, data: str, tmp_path: Path, s3: S3Server
) -> None:
    command = ours(cluster, "train", *long_run(cluster, data, "stopped"))
    code, shown = interrupted(command, cluster, tmp_path / "log", b"s\n")

    assert code == 130, shown
    assert "was stopped; the same command again goes on" in shown
    assert any("manifest" in info.key for info in S3Storage(f"{cluster.bucket}/runs/stopped", s3.access).list())


def test_ctrl_c_without_a_terminal_lets_the_job_go_on(cluster: Cluster, data: str, tmp_path: Path) -> None:
    command = ours(cluster, "train", *long_run(cluster, data, "detached"))
    code, shown = interrupted(command, cluster, tmp_path / "log", None)

    assert code == 130, shown
    job_id = re.findall(r"--stop (\S+)", shown)[0]
    stopped = run(cluster, ours(cluster, "--stop", job_id))
    assert (stopped.returncode, stopped.stdout) == (0, f"job {job_id} is asked to stop\n")
    followed = run(cluster, ours(cluster, "--follow", job_id))
    assert followed.returncode == 130, followed.stdout + followed.stderr
    assert steps_in(followed.stdout)


def test_doctor_looks_at_every_node(cluster: Cluster, data: str) -> None:
    command = [sys.executable, "-m", "hmtl_dist", "doctor", f"--address={cluster.dashboard}", "--json", data]
    looked = run(cluster, command)

    assert looked.returncode == 0, looked.stdout + looked.stderr
    checks = {check["name"]: (check["status"], check["detail"]) for check in json.loads(looked.stdout)}
    assert checks["token"] == ("ok", "asked for, and ours is taken")
    assert checks["nodes"] == ("ok", "2 of 2 answered")
    for name in ("cluster", "versions", "processors", "clocks", "gpu", "s3"):
        assert checks[name][0] == "ok", checks
    assert "MB/s" in checks["s3"][1]
    assert checks["mlflow"][0] == "warn"  # these nodes have none


def test_unknown_job_is_one_line(cluster: Cluster) -> None:
    refused = run(cluster, ours(cluster, "--follow", "no-such-job"))
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert "knows none of this name" in refused.stderr


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "asks for a token and none was found"),
        ({"RAY_AUTH_TOKEN": "wrong" * 8}, "does not take the token that was found"),
    ],
)
def test_submission_without_the_right_token_is_one_line(
    cluster: Cluster, environment: dict[str, str], said: str
) -> None:
    refused = run(cluster, ours(cluster, "train", "demo"), environment)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert said in refused.stderr


def test_nothing_is_run_for_somebody_without_the_token(cluster: Cluster) -> None:
    job = plain(cluster, "true", environment={"RAY_AUTH_MODE": "disabled"})

    assert job.returncode != 0
    assert get(f"{cluster.dashboard}/api/jobs/")[0] == 401


@pytest.mark.parametrize("environment", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "wrong" * 8}])
def test_a_driver_without_the_right_token_is_told_in_one_line(cluster: Cluster, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "hmtl_dist", "train", "demo", "name=refused", f"launch.address={cluster.head}"]
    driver = run(cluster, command, environment)

    assert (driver.returncode, driver.stderr.count("\n")) == (2, 1), driver.stderr
    assert "RAY_AUTH_TOKEN_PATH" in driver.stderr
