"""Images a second of `hmtl-dist train`, whole and with one part left out, and of a loop written by hand.

    python -m benchmarks.trainers --rounds 5

The same supervised task (expression), network, shards in a real S3 server, decoder, batch and two worker processes:

- `whole`: Ray Train, DeepSpeed, MLflow, checkpoints, a loader process for each worker;
- `no checkpoints`, `no tracking`, `no DeepSpeed` (torch's own DDP and optimizer), `no Ray` (the same under torchrun);
- `by hand`: `benchmarks.ddp_loop` under torchrun.

In a round, all variants are started one after another, each a command of its own. Then they run in turn for some
seconds, again and again: all processes of the others, Ray's too, are halted meanwhile, so that a change of the
machine's speed falls on all of them (the S3 and MLflow servers are shared and run on). A variant's images a second are
those between the first and the last report (every ten steps) of each turn: what Ray's many processes catch up with
after a halt falls before. Start-up is measured by `benchmarks.start_up`.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from benchmarks.loader import draw_faces
from benchmarks.machine import describe, spread
from hmtl_dist.services.registry import start_services, stop_services
from hmtl_dist.tracking.jsonl import read_events

FIRST_STEP = 20
"""Where a variant is taken for started."""
CHANGES = {
    "whole": (),
    "no checkpoints": ("train.checkpoint_every_steps=null",),
    "no tracking": ("tracking.enabled=false",),
    "no DeepSpeed": ("engine.kind=plain",),
    "no Ray": ("launch.kind=local",),
    "by hand": (),
}


def main() -> None:
    """Run the benchmark and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=5, help="of each variant in a round")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a turn")
    parser.add_argument("--model", default="efficientnet_b0")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--picture-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=32, help="over both workers")
    parser.add_argument("--num-workers", type=int, default=1, help="loader processes of each worker")
    parser.add_argument("--checkpoint-steps", type=int, default=50)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--variants", nargs="+", choices=CHANGES, default=list(CHANGES), help="`whole` among them")
    options = parser.parse_args()
    if "whole" not in options.variants:
        parser.error("--variants: `whole` must be among them, which the others are compared with")
    rates: dict[str, list[float]] = {name: [] for name in options.variants}
    with tempfile.TemporaryDirectory(prefix="b-") as home:  # short: Ray's sockets lie in it
        os.environ["HMTL_HOME"] = home
        services = start_services(Path(home))
        try:
            os.environ.update(services.env())
            os.environ["HMTL_BENCH_URL"] = url = f"{services.bucket_url}/bench"
            draw_faces(url, options)
            print(describe())
            for number in range(options.rounds):
                found = run_round(number, Path(home), url, options)
                print(f"round {number}: " + ", ".join(f"{name} {rate:.1f}" for name, rate in found.items()), flush=True)
                for name, rate in found.items():
                    rates[name].append(rate)
        finally:
            stop_services(Path(home))
    print("\nMin, median and max of the rounds:\n")
    beside = ["whole", *(["by hand"] if "by hand" in rates else [])]
    print(f"| {'variant':14} | images/s | " + " | ".join(f"it / {other}" for other in beside) + " |")
    print("|---|---|" + "---|" * len(beside))
    for variant, its in rates.items():
        ratios = [[one / two for one, two in zip(its, rates[other], strict=True)] for other in beside]
        print(f"| {variant:14} | {spread(its, 1)} | " + " | ".join(map(spread, ratios)) + " |")
    print(json.dumps({"arguments": vars(options), "images_per_second": rates}))


@dataclass
class Trainer:
    """A variant that runs, or is halted."""

    name: str
    process: psutil.Popen
    log: Path
    reports: Callable[[], list[tuple[int, float]]]
    """Returns the reported steps and when each ended, in seconds since the epoch."""
    turns: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])

    def turn(self, seconds: float) -> None:
        """Let it run for a while."""
        begun = time.time()
        self.send(signal.SIGCONT, processes := self.processes())
        time.sleep(seconds)
        self.send(signal.SIGSTOP, processes)
        self.turns.append((begun, time.time()))
        self.halt()
        self.check()

    def halt(self) -> None:
        """Stop it with all that it has started, until nothing new shows."""
        stopped: set[psutil.Process] = set()
        while new := set(self.processes()) - stopped:
            self.send(signal.SIGSTOP, new)
            stopped |= new

    def processes(self) -> list[psutil.Process]:
        """Return it and all that it has started; nothing once it has ended."""
        with suppress(psutil.NoSuchProcess):
            return [self.process, *self.process.children(recursive=True)]
        return []

    def send(self, number: signal.Signals, processes: Iterable[psutil.Process]) -> None:
        """Send a signal."""
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def check(self) -> None:
        """See that it lives.

        Raises:
            RuntimeError: It has ended; with what it said last.
        """
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended: {self.log.read_text()[-4000:]}")

    def rate(self, batch_size: int) -> float:
        """Return its images a second between the first and the last report of each turn.

        Raises:
            RuntimeError: It stood still, or took steps twice: Ray has started its workers again.
        """
        steps, seconds = 0, 0.0
        for begun, ended in self.turns:
            reports = [(step, moment) for step, moment in self.reports() if begun <= moment <= ended]
            if [step for step, _ in reports] != sorted({step for step, _ in reports}):
                raise RuntimeError(f"{self.name} took steps twice: {self.log.read_text()[-4000:]}")
            if reports:
                steps += reports[-1][0] - reports[0][0]
                seconds += reports[-1][1] - reports[0][1]
        if not steps:
            raise RuntimeError(f"{self.name} came too seldom to two reports in a turn: raise --seconds")
        return steps * batch_size / seconds


def run_round(number: int, home: Path, url: str, options: argparse.Namespace) -> dict[str, float]:
    """Run all variants and return the images a second of each."""
    with ExitStack() as stack:
        trainers = [stack.enter_context(started(name, number, home, url, options)) for name in options.variants]
        for turn in range(options.turns):
            first = turn % len(trainers)  # each goes first in its turn
            for trainer in trainers[first:] + trainers[:first]:
                trainer.turn(options.seconds)
        return {trainer.name: trainer.rate(options.batch_size) for trainer in trainers}


@contextmanager
def started(variant: str, number: int, home: Path, url: str, options: argparse.Namespace) -> Generator[Trainer]:
    """Start a variant and halt it after its first steps; its processes are killed in the end."""
    name = f"{variant.replace(' ', '-')}-{number}"
    folder, log = home / "runs" / name, home / f"{name}.log"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    if variant == "by hand":
        times = home / f"{name}.json"
        sizes = ("--model", options.model, "--image-size", options.image_size, "--batch-size", options.batch_size)
        rest = ("--num-workers", options.num_workers, "--times", times)
        command = [*torchrun, "-m", "benchmarks.ddp_loop", *map(str, (*sizes, *rest))]
        reports = partial(reports_by_hand, times)
    else:
        command = ["-m", "hmtl_dist", "train", "synthetic_sl", *settings(name, url, options), *CHANGES[variant]]
        command = [*torchrun, *command] if variant == "no Ray" else command
        reports = partial(reports_of, folder)
    before = ray_folders()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("w") as to:
        process = psutil.Popen([sys.executable, *command], stdout=to, stderr=to, env=environment)
    trainer = Trainer(variant, process, log, reports)
    mine = before
    try:
        while max((step for step, _ in reports()), default=0) < FIRST_STEP:
            trainer.check()
            time.sleep(0.1)
        mine = ray_folders()
        trainer.halt()
        yield trainer
    finally:
        trainer.send(signal.SIGKILL, trainer.processes())
        process.wait()
        for left in (folder, *(mine - before)):
            shutil.rmtree(left, ignore_errors=True)


def ray_folders() -> set[Path]:
    """Return where own Rays of runs lie, which outlive a SIGKILL."""
    return set(Path("/tmp").glob("hmtl_tmp-ray-*"))


def settings(name: str, url: str, options: argparse.Namespace) -> list[str]:
    """Return the settings of all variants but the loop by hand."""
    return [
        f"name={name}",
        f"data.url={url}",
        "data.eval_split=train",
        f"data.image_size={options.image_size}",
        f"data.batch_size={options.batch_size}",
        f"data.num_workers={options.num_workers}",
        "data.fields=[expression]",
        "augment=none",
        f"model.backbone={options.model}",
        "model.pretrained=false",
        "optim.warmup_epochs=0",
        "engine.kind=deepspeed",
        "engine.zero_stage=0",
        "train.epochs=1000",
        "train.report_every_steps=10",
        "train.evaluate_every_epochs=1000",
        "train.checkpoint_every_epochs=1000",
        f"train.checkpoint_every_steps={options.checkpoint_steps}",
        "train.monitor=null",
        "launch.kind=ray",
        "launch.num_workers=2",
        "tracking.model=false",
    ]


def reports_of(folder: Path) -> list[tuple[int, float]]:
    """Return the reported steps and when each ended, from a run's journal; none while there is no journal."""
    journal = folder / "rank-0" / "journal.jsonl"
    events = (event for event, _ in read_events(journal)) if journal.exists() else ()
    told = (event for event in events if "train/samples_per_second" in event.get("values", {}))
    return [(event["step"], event["time"] / 1000) for event in told]


def reports_by_hand(file: Path) -> list[tuple[int, float]]:
    """Return the same of the loop by hand."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [tuple(json.loads(line)) for line in lines if line.endswith("\n")]


if __name__ == "__main__":
    main()
