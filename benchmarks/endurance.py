"""A training that is killed and disturbed for minutes or hours, and what is seen of it meanwhile.

The run is a real one: two Ray workers, DeepSpeed, shards and checkpoints in a real S3 server behind a proxy that breaks
requests at a rate, MLflow; `hmtl-dist train` in a process of its own, started again when its driver was killed.
"""

import random
import signal
import statistics
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import yaml

from hmtl_dist.data.dataset.build import BuildSettings, build
from hmtl_dist.data.drawn.faces import SyntheticAdapter, SyntheticSettings
from tests.faults import proxy as faults
from tests.faults.chaos import Command, Servers, Victim, events
from tests.servers import S3Server

LOOK_SECONDS = 0.5
SAMPLE_SECONDS = 10.0
STOP_SECONDS = 180.0
FAULTS = (faults.reset(), faults.cut(900), faults.status(503, "SlowDown"), faults.flip(600), faults.delay(1.0))
"""What the proxy does to requests: all of it passes, and may change nothing."""


@dataclass(frozen=True)
class Torment:
    """What a run has to endure."""

    minutes: float
    kill_every: float
    """Seconds between two kills."""
    victims: Sequence[Victim]
    fault_rate: float
    """Share of the requests to S3 that meet a fault."""
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    """What is trained."""

    backbone: str
    image_size: int
    batch_size: int
    checkpoint_every_steps: int


@dataclass
class Sample:
    """One look at one process."""

    seconds: float
    pss: int
    """Bytes, shared ones by the share."""
    handles: int


@dataclass
class Endured:
    """What was seen."""

    wall_seconds: float = 0.0
    """From the first start until the run was asked to stop."""
    useful_seconds: float = 0.0
    """Time of the steps that stand in the record at the end, each once."""
    steps: int = 0
    starts: int = 0
    step_seconds: float = 0.0
    """Median time of a step."""
    kills: list[tuple[str, float, int]] = field(default_factory=list[tuple[str, float, int]])
    """Victim, seconds until a new step was recorded, steps that had to be taken again."""
    requests: int = 0
    hits: int = 0
    """Requests to S3, and those that met a fault."""
    processes: dict[str, list[Sample]] = field(default_factory=dict[str, list[Sample]])
    """Samples by role and process id."""
    left: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """What is there at the end and was not at the beginning."""

    @property
    def goodput(self) -> float:
        """Share of the wall time that went into steps that count."""
        return self.useful_seconds / self.wall_seconds


def endure(torment: Torment, recipe: Recipe) -> Endured:
    """Train for some minutes through kills and faults, then stop in order."""
    found = Endured()
    with _stage(torment, recipe) as (folder, servers, proxy, command):
        before = _lying_about()
        journal = folder / "home" / "runs" / "endured" / "rank-0" / "journal.jsonl"
        begun = time.monotonic()
        command.start()
        _watch(command, servers, torment, journal, found)
        found.wall_seconds = time.monotonic() - begun
        stopped = _stop(command)
        found.starts = command.starts
        found.requests, found.hits = len(proxy.requests), proxy.hits
        _account(journal, recipe.batch_size, found)
        after = _lying_about()
        found.left = {name: sorted(after[name] - before[name]) for name in after}
        found.left["processes"] = [" ".join(process.cmdline())[:120] for process in command.marked()]
        if not stopped:
            found.left["the run itself"] = [f"did not stop in {STOP_SECONDS:.0f} s"]
    return found


@contextmanager
def _stage(torment: Torment, recipe: Recipe) -> Generator[tuple[Path, Servers, faults.Proxy, Command]]:
    """Set up servers, proxy, data and recipe."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        servers = Servers(folder)
        try:
            with faults.serve(servers.s3.url) as proxy:
                environment = servers.environment() | {"AWS_ENDPOINT_URL": proxy.url}
                for variable, value in environment.items():
                    patch.setenv(variable, value)
                bucket = S3Server(servers.s3.url).bucket()
                adapter = SyntheticAdapter(SyntheticSettings(1600, 400, recipe.image_size))
                build(adapter, f"{bucket}/faces", BuildSettings(dataset="x", splits={"train": 0.9, "val": 0.1}))
                (folder / "recipe.yaml").write_text(yaml.safe_dump(_sections(bucket, recipe)))
                proxy.plan = faults.Chaos(torment.seed, torment.fault_rate, FAULTS)
                proxy.requests.clear()
                arguments = ("train", str(folder / "recipe.yaml"), "name=endured")
                command = Command(arguments, environment | {"HMTL_HOME": str(folder / "home")}, folder / "run.log")
                try:
                    yield folder, servers, proxy, command
                finally:
                    command.close()
        finally:
            servers.close()


def _sections(bucket: str, recipe: Recipe) -> Mapping[str, object]:
    return {
        "data": {
            "url": f"{bucket}/faces",
            "image_size": recipe.image_size,
            "batch_size": recipe.batch_size,
            "lanes": 4,
            "num_workers": 1,
        },
        "tasks": {
            "expression": {"type": "classification"},
            "gender": {"type": "classification"},
            "puzzling": {"type": "puzzling"},
        },
        "model": {"backbone": recipe.backbone},
        "train": {
            "epochs": 1000,
            "report_every_steps": 1,
            "evaluate_every_epochs": 10,
            "checkpoint_every_epochs": 1000,
            "checkpoint_every_steps": recipe.checkpoint_every_steps,
        },
        "launch": {"kind": "ray", "num_workers": 2, "max_failures": 1000, "storage": f"{bucket}/runs"},
        "tracking": {"experiment": "endured", "system_metrics": False, "pictures": False},
    }


@dataclass
class _Struck:
    victim: str
    at: float
    reached: int
    """Last step recorded before."""
    lowest: int
    """The step that the record was taken back to."""


def _watch(command: Command, servers: Servers, torment: Torment, journal: Path, found: Endured) -> None:
    """Look at the run, and kill what is due, until the time is over."""
    draw = random.Random(torment.seed)
    begun = time.monotonic()
    next_kill, next_sample = begun + torment.kill_every, begun
    struck: _Struck | None = None
    while time.monotonic() < begun + 60 * torment.minutes:
        now = time.monotonic()
        code = command.code()
        if code not in (None, -signal.SIGKILL):
            raise RuntimeError(f"the run ended with {code}: {command.log.read_text()[-3000:]}")
        reached = _reached(journal)
        if struck is not None and reached > struck.reached:
            found.kills.append((struck.victim, now - struck.at, struck.reached - struck.lowest))
            struck = None
        elif struck is not None and reached:
            struck.lowest = min(struck.lowest, reached)
        if now >= next_kill and struck is None and reached > 0:
            victim = draw.choice(list(torment.victims))
            struck, next_kill = _Struck(victim, now, reached, reached), now + torment.kill_every
            if victim in ("s3", "mlflow"):
                servers.kill(victim)
            else:
                command.kill(victim)
            if victim == "driver":
                command.start()
        if now >= next_sample:
            next_sample = now + SAMPLE_SECONDS
            _sample(command, servers, now - begun, found)
        time.sleep(LOOK_SECONDS)


def _reached(journal: Path) -> int:
    """Return the last step recorded; the end of the journal is enough to look at."""
    if not journal.exists():
        return 0
    with journal.open("rb") as file:
        file.seek(max(0, journal.stat().st_size - 65536))
        lines = file.read().splitlines()
    steps = [line.partition(b'"step":')[2].partition(b",")[0] for line in lines if b'"event":"metrics"' in line]
    return int(steps[-1]) if steps and steps[-1].isdigit() else 0


def _stop(command: Command) -> bool:
    """Ask for an orderly stop and wait for it."""
    if command.code() is None:
        command.interrupt()
    deadline = time.monotonic() + STOP_SECONDS
    while command.code() is None and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
    return command.code() is not None


def _account(journal: Path, batch_size: int, found: Endured) -> None:
    """Add up the steps that stand in the journal in the end."""
    seconds: dict[int, float] = {}
    for event in events(journal):
        values = event.get("values", {})
        if event["event"] == "metrics" and "train/samples_per_second" in values:
            seconds[event["step"]] = batch_size / values["train/samples_per_second"]
    found.steps = len(seconds)
    if seconds:
        found.step_seconds = statistics.median(seconds.values())
        found.useful_seconds = sum(seconds.values())


# --- what is there ------------------------------------------------------------------------------------------------


def _role(process: psutil.Process) -> str:
    line = " ".join(process.cmdline())
    names = {
        "gcs_server": "gcs_server",
        "raylet/raylet": "raylet",
        "ray::RayTrainWorker": "worker",
        "ray::TrainController": "controller",
        "ray::": "other actors",
        "forkserver": "data loader",
        "hmtl_dist": "driver",
        "ledger": "driver",
        "weed": "S3 server",
        "mlflow": "MLflow server",
    }
    return next((role for text, role in names.items() if text in line), "others")


def _sample(command: Command, servers: Servers, seconds: float, found: Endured) -> None:
    served = [psutil.Process(server.process.pid) for server in (servers.s3, servers.mlflow)]
    children = [child for process in served for child in process.children(recursive=True)]
    for process in [psutil.Process(), *command.marked(), *served, *children]:
        try:
            role = "proxy" if process.pid == psutil.Process().pid else _role(process)
            sample = Sample(seconds, process.memory_full_info().pss, process.num_fds())
        except psutil.Error:
            continue
        found.processes.setdefault(f"{role} {process.pid}", []).append(sample)


def _lying_about() -> dict[str, set[str]]:
    """Return what runs may leave behind on this machine, by kind."""
    temporary = Path(tempfile.gettempdir())
    return {
        "shared memory": {path.name for path in Path("/dev/shm").iterdir()},
        "temporary files": {path.name for pattern in ("hmtl*", "pymp-*") for path in temporary.glob(pattern)},
    }


def slope_per_hour(samples: Sequence[Sample]) -> float:
    """Return the least-squares slope of PSS in bytes per hour."""
    times = [sample.seconds / 3600 for sample in samples]
    return statistics.linear_regression(times, [float(sample.pss) for sample in samples]).slope
