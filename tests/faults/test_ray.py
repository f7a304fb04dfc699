"""Faults of Ray itself and of its machines, under whole runs of the command line on two workers."""

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import psutil
import pytest
import yaml

from hmtl_dist.train.watchdog import STACKS
from tests.e2e.drawn import STEPS_PER_EPOCH, draw, tree, weights
from tests.faults.chaos import Command, progress
from tests.faults.proxy import wait_until
from tests.processes import kill_all, session_of

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]

EPOCHS = 25
TOTAL_STEPS = EPOCHS * STEPS_PER_EPOCH
HANG_SECONDS = 15


class Run:
    """A run on two Ray workers, its files in a folder of its own."""

    def __init__(
        self, folder: Path, url: str, name: str, num_loaders: int = 0, changes: Sequence[str] = (), **launch: object
    ) -> None:
        sections = tree(
            url,
            data={"num_workers": num_loaders},
            tasks={"inpainting": None},
            train={
                "epochs": EPOCHS,
                "evaluate_every_epochs": EPOCHS,
                "checkpoint_every_epochs": EPOCHS,
                "checkpoint_every_steps": 10,
                "keep_checkpoints": 100,
            },
            launch={"kind": "ray", "num_workers": 2, **launch},
        )
        recipe = folder / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump(sections, sort_keys=False))
        self.folder = folder / "home" / "runs" / name
        self.command = Command(
            ("train", str(recipe), f"name={name}", *changes),
            {"HMTL_HOME": str(folder / "home")},
            folder / f"{name}.said",
        )

    def start(self, to_step: int = 15) -> None:
        """Start and wait for a step."""
        journal = self.folder / "rank-0" / "journal.jsonl"
        self.command.start()
        wait_until(lambda: self.command.code() is not None or progress(journal)[1] >= to_step, 300)
        assert progress(journal)[1] >= to_step, self.command.log.read_text()

    def ends(self, seconds: float = 300) -> int:
        wait_until(lambda: self.command.code() is not None, seconds)
        code = self.command.code()
        assert code is not None
        return code

    def errors(self) -> list[str]:
        return [line for line in self.command.log.read_text().splitlines() if line.startswith("error: ")]

    def weights(self) -> dict[str, bytes]:
        return weights(str(self.folder / "checkpoints" / f"step-{TOTAL_STEPS:08d}"))

    def find(self, name: str) -> psutil.Process:
        """One of its processes, by a part of its command line."""
        return self.command.marked(name)[0]


Make = Callable[..., Run]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Generator[Make]:
    folder = tmp_path_factory.mktemp("ray")
    url = draw(str(folder / "set"))
    made: list[Run] = []

    def run(name: str, num_loaders: int = 0, changes: Sequence[str] = (), **launch: object) -> Run:
        made.append(Run(folder, url, name, num_loaders, changes, **launch))
        return made[-1]

    yield run
    for each in made:
        each.command.close()


@pytest.fixture(scope="module")
def whole(make: Make) -> dict[str, bytes]:
    """The weights of the run that nothing happened to."""
    run = make("whole")
    run.start()
    assert run.ends() == 0, run.command.log.read_text()
    return run.weights()


SHORT = 8
SHORTER = [f"train.{name}={SHORT}" for name in ("epochs", "evaluate_every_epochs", "checkpoint_every_epochs")]


@pytest.mark.slow
def test_a_killed_worker_is_started_again_and_ends_with_the_weights_of_a_run_without_ray(make: Make) -> None:
    last = f"checkpoints/step-{SHORT * STEPS_PER_EPOCH:08d}"
    plain = make("plain", changes=SHORTER, kind="local", num_workers=1)
    plain.command.start()
    assert plain.ends() == 0, plain.command.log.read_text()

    run = make("killed", changes=SHORTER, num_workers=1, max_failures=3)
    run.start()
    run.command.workers()[0].kill()
    assert run.ends() == 0, run.command.log.read_text()

    assert progress(run.folder / "rank-0" / "journal.jsonl")[0] == 2  # Ray's own second start, in the same run
    assert weights(str(run.folder / last)) == weights(str(plain.folder / last))


@pytest.mark.parametrize("server", ["raylet", "gcs_server"])
def test_a_killed_server_of_ray_ends_the_run_in_one_line_and_it_goes_on_by_the_same_command(
    make: Make, whole: dict[str, bytes], server: str
) -> None:
    run = make(f"without-{server}")
    run.start()
    run.find(f"/{server}/{server}" if server == "raylet" else f"/{server}").kill()
    begun = time.monotonic()
    assert run.ends(60) == 1
    print(f"{server}: ended {time.monotonic() - begun:.1f} s after it was killed")  # noqa: T201
    (line,) = run.errors()
    assert re.match(rf"error: TrainingError: Ray's {server} died \(.*the same command again goes on", line), line
    wait_until(lambda: not run.command.marked(), 120)
    run.start()
    assert run.ends() == 0
    assert run.weights() == whole


def test_a_rank_that_hangs_is_ended_by_the_watchdog_and_started_again(make: Make, whole: dict[str, bytes]) -> None:
    run = make("hung", changes=[f"train.hang_minutes={HANG_SECONDS / 60}"], max_failures=3)
    run.start()
    (_, stopped) = run.command.workers()
    begun = time.monotonic()
    stopped.send_signal(signal.SIGSTOP)
    wait_until(lambda: progress(run.folder / "rank-0" / "journal.jsonl")[0] == 2, 240)
    wait_until(lambda: progress(run.folder / "rank-0" / "journal.jsonl")[1] > 0, 120)
    print(f"hung rank: {time.monotonic() - begun:.1f} s to the next step, {HANG_SECONDS} s of them patience")  # noqa: T201
    assert run.ends() == 0, run.command.log.read_text()
    assert "all_reduce" in next(iter(run.folder.glob(f"rank-*/{STACKS}"))).read_text()
    assert run.weights() == whole
    wait_until(lambda: not run.command.marked(), 120)  # Ray's workers end after their raylet


def test_a_killed_data_loader_costs_a_start_of_the_ranks(make: Make, whole: dict[str, bytes]) -> None:
    run = make("loaders", num_loaders=1, max_failures=3)
    run.start()
    begun = time.monotonic()
    (loader, *_) = [
        process for server in run.command.workers()[0].children() for process in server.children()
    ]  # under the fork server
    loader.kill()
    wait_until(lambda: progress(run.folder / "rank-0" / "journal.jsonl")[0] == 2, 240)
    wait_until(lambda: progress(run.folder / "rank-0" / "journal.jsonl")[1] > 0, 120)
    print(f"killed loader: {time.monotonic() - begun:.1f} s to the next step")  # noqa: T201
    assert run.ends() == 0, run.command.log.read_text()
    assert run.weights() == whole


def test_a_second_start_of_a_run_that_is_being_trained_is_refused_and_disturbs_nothing(
    make: Make, whole: dict[str, bytes]
) -> None:
    run = make("once")
    run.start(2)
    second = subprocess.run(
        [sys.executable, "-m", "hmtl_dist", *run.command.arguments],
        env=os.environ | run.command.environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (second.returncode, second.stderr.count("\n")) == (2, 1), second.stderr
    assert second.stderr.startswith("error: run 'once' is being trained by process ")
    assert run.ends() == 0
    assert run.weights() == whole


# --- a machine that will be taken away ---------------------------------------------------------------------------


@pytest.fixture
def cluster() -> Generator[tuple[str, dict[str, str]]]:
    """A head of the test's own: its address, and the environment of whoever has its token."""
    folder = Path(tempfile.mkdtemp(prefix="hmtl-ray-", dir="/tmp"))  # short: Ray's sockets are under it
    (folder / "token").write_text(secrets.token_hex(32))
    given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "GLOO_SOCKET_IFNAME": "lo"}
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=2", "--port=0"]
    options = ["--include-dashboard=false", "--object-store-memory=100000000", "--disable-usage-stats"]
    said = folder / "log"

    def launch() -> "subprocess.Popen[bytes]":
        with said.open("w") as log:
            return subprocess.Popen(
                [*ray, *options, "--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={folder}/ray"],
                env=os.environ | given,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def end(head: "subprocess.Popen[bytes]") -> None:
        below = [process for process in psutil.process_iter() if session_of(process) == head.pid]
        head.terminate()
        kill_all(psutil.wait_procs(below, timeout=10)[1])
        head.wait(timeout=30)

    head, deadline = launch(), time.monotonic() + 600
    try:
        while (address := re.search(r"--address='([^']+)'", said.read_text())) is None:
            assert time.monotonic() < deadline, said.read_text()
            if head.poll() is not None:  # Ray gives a start up when the machine is busy
                end(head)
                head = launch()
            time.sleep(0.2)
        yield address[1], given
    finally:
        end(head)
        shutil.rmtree(folder, ignore_errors=True)


NOTICE = """
import sys, time, ray
from ray._raylet import GcsClient
ray.init(address=sys.argv[1], log_to_driver=False)
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
deadline_ms = int((time.time() + 600) * 1000)
done = GcsClient(address=sys.argv[1]).drain_node(ray.nodes()[0]["NodeID"], reason, "spot", deadline_ms)
assert done[0], done
"""


def test_a_notice_that_a_machine_will_go_saves_at_once(make: Make, cluster: tuple[str, dict[str, str]]) -> None:
    address, given = cluster
    # it would go on for long, and by itself saves nothing
    long = ("epochs=100000", "evaluate_every_epochs=100000", "checkpoint_every_epochs=100000")
    never = ("checkpoint_every_steps=null", "checkpoint_every_minutes=null")
    run = make("noticed", changes=[f"train.{one}" for one in (*long, *never)], address=address)
    run.command.environment |= given | {"HMTL_HOME": os.environ["HMTL_HOME"]}  # the workers have that of the cluster
    run.folder = Path(os.environ["HMTL_HOME"]) / "runs" / "noticed"
    run.start(5)
    assert not list(run.folder.glob("checkpoints/*"))
    subprocess.run([sys.executable, "-c", NOTICE, address], env=os.environ | given, check=True, timeout=120)

    def saved() -> list[Path]:
        return list(run.folder.glob("checkpoints/*/manifest.json"))

    wait_until(lambda: bool(saved()) or run.command.code() is not None, 120)
    assert run.command.code() is None, run.command.log.read_text()
    assert len(saved()) == 1
    run.command.interrupt()
    assert run.ends() == 130, run.command.log.read_text()
