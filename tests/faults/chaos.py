"""A small chaos runner: kills what a run consists of, at seeded moments of its life, and starts again what died.

    python -m tests.faults.chaos --kills 20 --seed 4

trains one run undisturbed and one through the kills, and says how the second compares with the first.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import psutil
import pytest
import torch
import yaml
from mlflow import MlflowClient

from hmtl_dist.engine.checkpoint import checkpoint_at, load_checkpoint
from hmtl_dist.run_config import RunConfig
from hmtl_dist.services import mlflow, seaweedfs
from hmtl_dist.services.process import Server, stop
from hmtl_dist.tracking.jsonl import read_events
from tests.e2e.drawn import draw, tree
from tests.faults.ledger import planned, read_ledger
from tests.faults.proxy import wait_until
from tests.processes import kill_all
from tests.servers import ADMIN, S3Server, await_server

Victim = Literal["worker", "workers", "driver", "s3", "mlflow"]
SERVERS = ("s3", "mlflow")
MARK = "HMTL_TEST_MARK"
AWAY_SECONDS = 2.0
"""How long a killed server is away."""


@dataclass(frozen=True)
class Kill:
    """Somebody dies by SIGKILL when a step has been recorded for the first time."""

    step: int
    victim: Victim


def plan_kills(seed: int, victims: list[Victim], total_steps: int) -> list[Kill]:
    """Spread the victims, in an order of chance, over a run: one in each equal part of it, anywhere in that part."""
    draw = random.Random(seed)
    order = draw.sample(victims, len(victims))
    part = total_steps // (len(order) + 1)
    return [Kill(part * number + draw.randint(1, part), victim) for number, victim in enumerate(order, start=0)]


class Servers:
    """An S3 and an MLflow server of the test's own, which die and come back at the same ports."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.s3 = self._start_s3()
        self.mlflow = self._start_mlflow()

    def kill(self, victim: Victim) -> None:
        server = self.s3 if victim == "s3" else self.mlflow
        stop(server.process, grace_seconds=0.0)
        time.sleep(AWAY_SECONDS)
        if victim == "s3":
            self.s3 = self._start_s3(server.ports)
        else:
            self.mlflow = self._start_mlflow(server.ports)

    def close(self) -> None:
        for server in (self.s3, self.mlflow):
            stop(server.process, grace_seconds=0.0)
        seaweedfs.clean_up(self.s3)

    def environment(self) -> dict[str, str]:
        return S3Server(self.s3.url).env() | {"MLFLOW_TRACKING_URI": self.mlflow.url}

    def _start_s3(self, ports: tuple[int, ...] = ()) -> Server:
        data, log = self._folder / "s3", self._folder / "s3.log"
        return await_server(
            lambda: seaweedfs.start(data, (ADMIN,), log=log, wanted_ports=ports),
            lambda server: seaweedfs.is_ready(server, ADMIN, "probe"),
            log,
        )

    def _start_mlflow(self, ports: tuple[int, ...] = ()) -> Server:
        log = self._folder / "mlflow.log"
        return await_server(
            lambda: mlflow.start(self._folder / "mlflow", log=log, wanted_ports=ports), mlflow.is_ready, log
        )


@dataclass
class Command:
    """`hmtl-dist`, with a note of the samples it takes, in a session of its own, and everything that it starts."""

    arguments: tuple[str, ...]
    environment: dict[str, str]
    log: Path
    starts: int = 0
    _mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    _process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        self.starts += 1
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.ledger", *self.arguments],
                env=os.environ | self.environment | {MARK: self._mark},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def interrupt(self) -> None:
        """Ask for an orderly stop, as Ctrl-C does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)

    def kill(self, victim: Victim) -> None:
        """Kill the driver, a worker, or all workers."""
        if victim == "driver":
            assert self._process is not None
            self._process.kill()
            self._process.wait()
            return
        workers = self.workers()
        kill_all(workers if victim == "workers" else workers[-1:])

    def workers(self) -> list[psutil.Process]:
        """The processes of the ranks."""
        return self.marked("RayTrainWorker")

    def marked(self, word: str = "") -> list[psutil.Process]:
        """Everything that was started and still runs, with this word in its command line."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            try:
                marked = process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE
                if marked and word in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def close(self) -> None:
        kill_all(self.marked())
        if self._process is not None:
            self._process.wait()


def losses(journal: Path) -> list[tuple[int, float]]:
    """Every recorded step with its total loss, in order."""
    return [
        (event["step"], event["values"]["train/loss/total"])
        for event in events(journal)
        if "train/loss/total" in event.get("values", {})
    ]


def events(journal: Path) -> list[dict[str, Any]]:
    """What the journal holds now; its last line may be half written."""
    return [event for event, _ in read_events(journal)] if journal.exists() else []


def progress(journal: Path) -> tuple[int, int]:
    """How often the run was begun, and the last step recorded since."""
    found = events(journal)
    begun = [number for number, event in enumerate(found) if event["event"] == "start"]
    steps = [event["step"] for event in found[begun[-1] :] if event["event"] == "metrics"] if begun else []
    return len(begun), max(steps, default=0)


def torment(
    command: Command, servers: Servers, kills: list[Kill], journal: Path, seconds: float, say: Callable[[str], None]
) -> list[tuple[Kill, float]]:
    """Run a command to its end through all kills.

    Returns:
        The kills, each with the seconds until the next step was recorded, by new processes where the old ones died.
    """
    deadline = time.monotonic() + seconds
    waiting, done = list(kills), list[tuple[Kill, float]]()
    struck: tuple[Kill, int, int, float] | None = None
    command.start()
    while command.code() != 0:
        assert time.monotonic() < deadline, f"not over after {seconds} s: {command.log.read_text()[-3000:]}"
        assert command.code() in (None, -9), command.log.read_text()[-3000:]
        begun, reached = progress(journal)
        again = struck is None or struck[0].victim in SERVERS or begun > struck[1]
        if struck is not None and again and reached > 0 and (begun > struck[1] or reached > struck[2]):
            done.append((struck[0], time.monotonic() - struck[3]))
            say(f"{struck[0]}: {done[-1][1]:.1f} s")
            struck = None
        if struck is None and waiting and reached >= waiting[0].step:
            kill = waiting.pop(0)
            struck = (kill, begun, reached, time.monotonic())
            if kill.victim in SERVERS:
                servers.kill(kill.victim)
            else:
                command.kill(kill.victim)
                if kill.victim == "driver":
                    command.start()
        time.sleep(0.05)
    return done


# --- a whole trial -----------------------------------------------------------------------------------------------

VICTIMS: list[Victim] = ["worker", "workers", "driver", "s3", "mlflow"]
BATCH_SIZE = 8
"""It divides the set of 72 samples: an epoch takes every one of them once."""
STEPS_PER_EPOCH = 72 // BATCH_SIZE


@dataclass(frozen=True)
class Trial:
    """A run that was left alone and one that was not."""

    config: RunConfig
    whole: Path
    killed: Path
    done: list[tuple[Kill, float]]
    storage: str
    servers: Servers
    left_over: int
    seconds: tuple[float, float]
    """How long each took."""

    def checkpoint(self, name: str) -> str:
        return checkpoint_at(f"{self.storage}/{name}/checkpoints", self.config.train.epochs * STEPS_PER_EPOCH)

    def differences(self) -> list[str]:
        """The tensors of the last checkpoint whose bits differ: model, optimizer, average, tasks and weighting."""
        whole, killed = (load_checkpoint(self.checkpoint(name)) for name in ("whole", "killed"))
        found: list[str] = []
        for part, mine, theirs in (
            *((part, getattr(whole[0], part), getattr(killed[0], part)) for part in ("model", "optimizer", "ema")),
            ("objective", whole[1]["objective"], killed[1]["objective"]),
        ):
            assert mine
            names = sorted(mine.keys() | theirs.keys())
            found += [
                f"{part}/{name}"
                for name in names
                if name not in mine or name not in theirs or not torch.equal(mine[name], theirs[name])
            ]
        return found

    def delivered(self) -> tuple[str, list[tuple[int, float]]]:
        """Status of the killed run in MLflow, and its total loss by step, as it came."""
        client = MlflowClient(self.servers.mlflow.url)
        experiment = client.get_experiment_by_name("chaos")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'killed'")
        history: list[Any] = list(client.get_metric_history(run.info.run_id, "train/loss/total"))
        return run.info.status, [(metric.step, metric.value) for metric in history]


@contextmanager
def trial(folder: Path, victims: Sequence[Victim], *, seed: int, epochs: int, seconds: float) -> Generator[Trial]:
    """Train a run on two Ray workers through DeepSpeed from S3, undisturbed and again through seeded kills."""
    servers = Servers(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in servers.environment().items():
            patch.setenv(name, value)
        bucket = S3Server(servers.s3.url).bucket()
        sections = tree(
            draw(f"{bucket}/faces"),
            data={"batch_size": BATCH_SIZE},
            tasks={"inpainting": None},
            engine={"kind": "deepspeed", "ema_decay": 0.9, "zero_stage": 1},
            train={
                "epochs": epochs,
                "evaluate_every_epochs": epochs,
                "checkpoint_every_epochs": epochs,
                "checkpoint_every_steps": 5,
            },
            launch={"kind": "ray", "num_workers": 2, "max_failures": 2 * len(victims), "storage": f"{bucket}/runs"},
            tracking={"enabled": True, "system_metrics": False, "experiment": "chaos"},
        )
        recipe = folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(sections))
        home = folder / "home"

        def command(name: str) -> Command:
            arguments = ("train", str(recipe), f"name={name}")
            return Command(arguments, {"HMTL_HOME": str(home)}, folder / f"{name}.log")

        commands = {name: command(name) for name in ("whole", "killed")}
        kills = {"whole": [], "killed": plan_kills(seed, list(victims), epochs * STEPS_PER_EPOCH)}
        done: dict[str, list[tuple[Kill, float]]] = {}
        took: dict[str, float] = {}
        try:
            for name, each in commands.items():
                begun = time.monotonic()
                journal = home / "runs" / name / "rank-0" / "journal.jsonl"
                done[name] = torment(each, servers, kills[name], journal, seconds, print)
                took[name] = time.monotonic() - begun
            with suppress(AssertionError):  # Ray's workers end after their raylet
                wait_until(lambda: not commands["killed"].marked(), 120)
            yield Trial(
                config=RunConfig.model_validate(sections),
                whole=home / "runs" / "whole",
                killed=home / "runs" / "killed",
                done=done["killed"],
                storage=f"{bucket}/runs",
                servers=servers,
                left_over=len(commands["killed"].marked()),
                seconds=(took["whole"], took["killed"]),
            )
        finally:
            for each in commands.values():
                each.close()
            servers.close()


def report(found: Trial) -> None:
    """Print how the killed run compares with the undisturbed one."""
    expected = losses(found.whole / "rank-0" / "journal.jsonl")
    status, delivered = found.delivered()
    by_victim: dict[str, list[float]] = {}
    for kill, seconds in found.done:
        by_victim.setdefault(kill.victim, []).append(seconds)
    for victim, seconds in sorted(by_victim.items()):
        print(f"{victim}: {len(seconds)} kills, {min(seconds):.1f} to {max(seconds):.1f} s to the next step")
    print(f"undisturbed {found.seconds[0]:.0f} s, through {len(found.done)} kills {found.seconds[1]:.0f} s")
    print(f"tensors that differ: {len(found.differences())}")
    print(f"ledger is the plan: {read_ledger(found.killed) == planned(found.config)}")
    print(f"journal has every step once: {losses(found.killed / 'rank-0' / 'journal.jsonl') == expected}")
    print(f"MLflow has every step once, in order: {delivered == expected} ({status})")
    print(f"processes left: {found.left_over}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3600, help="longest time for either run")
    settings = parser.parse_args()
    victims = (VICTIMS * settings.kills)[: settings.kills]
    epochs = -(-12 * (settings.kills + 1) // STEPS_PER_EPOCH)
    with (
        TemporaryDirectory(prefix="hmtl-chaos-") as folder,
        trial(Path(folder), victims, seed=settings.seed, epochs=epochs, seconds=settings.seconds) as found,
    ):
        report(found)


if __name__ == "__main__":
    main()
