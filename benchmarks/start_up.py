"""From a command to the first optimizer step: how long, and what of it the imports and Ray take by themselves.

    python -m benchmarks.start_up --rounds 5

Beside the commands run, in turn: a process that imports what the command's process has imported by its first step (our
own modules left out), and one that imports what a run's driver has, starts a local Ray and has a plain Ray Train run
call a function that imports what a run in one process has (so the driver's again too). Both are over when the last
import is. A run has started when its first step is reported (every step is, here). `resume` is the same command again
after a run of that kind was stopped. A drawn data set lies in a real S3 server, MLflow answers; both run already.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.loader import draw_faces
from benchmarks.machine import describe, spread
from benchmarks.trainers import reports_of
from hmtl_dist.services.registry import start_services, stop_services

WATCHED = """
import json, sys, threading, time
from pathlib import Path
file, journal = Path(sys.argv.pop(1)), Path(sys.argv.pop(1))
def watch():
    while not journal.exists() or b"samples_per_second" not in journal.read_bytes():
        time.sleep(0.05)
    file.write_text(json.dumps(list(sys.modules)))
threading.Thread(target=watch, daemon=True).start()
from hmtl_dist.__main__ import main
sys.exit(main())
"""
"""Runs the command of its further arguments; writes what it has imported when its first step is reported."""
LOADING = """
import contextlib, importlib, json, time
def load(file):
    for name in json.load(open(file)):
        if name.partition(".")[0] not in ("hmtl_dist", "__main__", "__mp_main__"):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
def done():
    with open({done!r}, "w") as file:
        file.write(str(time.time()))
"""
"""A module that the processes compared with find beside the data."""
RAY = """
import os, sys
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"
import ray
from loading import load
load({driver!r})
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[1])
import ray.train.torch
def train():
    from loading import done, load
    load({worker!r})
    import deepspeed
    done()
ray.train.torch.TorchTrainer(
    train,
    torch_config=ray.train.torch.TorchConfig(backend="gloo"),
    scaling_config=ray.train.ScalingConfig(num_workers=1),
    run_config=ray.train.RunConfig(name="bare", storage_path=sys.argv[1]),
).fit()
"""
FLOORS = {"local": "imports", "Ray": "imports and Ray Train"}


def main() -> None:
    """Measure and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="b-") as home:  # short: Ray's sockets lie in it
        os.environ["HMTL_HOME"] = home
        services = start_services(Path(home))
        try:
            os.environ.update(services.env())
            url = f"{services.bucket_url}/bench"
            draw_faces(url, argparse.Namespace(samples=640, picture_size=64))
            lists = {kind: imported(kind, url, Path(home)) for kind in FLOORS}
            done = Path(home) / "done"
            (Path(home) / "loading.py").write_text(LOADING.format(done=str(done)))
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
            alone = f"from loading import done, load; load({lists['local']!r}); done()"
            with_ray = RAY.format(driver=lists["Ray"], worker=lists["local"])
            for number in range(1 + options.rounds):
                seconds = {
                    "help": seconds_of(["-m", "hmtl_dist", "--help"]),
                    "imports": seconds_of(["-c", alone], done),
                    "imports and Ray Train": seconds_of(["-c", with_ray, f"{home}/r{number}"], done),
                }
                for kind in FLOORS:
                    name = f"{kind}-{number}".lower()
                    command = ["-m", "hmtl_dist", *train(name, url, kind)]
                    seconds[f"{kind}: first step"] = first_step(command, Path(home) / "runs" / name)
                    seconds[f"{kind}: first step of a resume"] = first_step(command, Path(home) / "runs" / name)
                if number:  # the first round fills caches
                    for part, value in seconds.items():
                        found.setdefault(part, []).append(value)
                    print(f"round {number}: {json.dumps(seconds)}", flush=True)
        finally:
            stop_services(Path(home))
    print(describe())
    print("\n| | seconds: min, median, max |\n|---|---|")
    for part, values in found.items():
        print(f"| {part} | {spread(values, 2)} |")
    for kind, floor in FLOORS.items():
        over = [one - other for one, other in zip(found[f"{kind}: first step"], found[floor], strict=True)]
        print(f"| {kind}: first step, over {floor} | {spread(over, 2)} |")
    medians = {part: statistics.median(values) for part, values in found.items()}
    print(json.dumps({"arguments": vars(options), "seconds": found, "medians": medians}))


def imported(kind: str, url: str, home: Path) -> str:
    """Return a file with the modules that a run's first process has imported when its first step is reported."""
    file, name = home / f"{kind}.json", f"modules-{kind.lower()}"
    folder = home / "runs" / name
    journal = folder / "rank-0" / "journal.jsonl"
    first_step(["-c", WATCHED, str(file), str(journal), *train(name, url, kind)], folder)
    return str(file)


def train(name: str, url: str, kind: str) -> list[str]:
    """Return a run's arguments: it would go on for long, and saves every step."""
    changes = [
        "train",
        "synthetic_sl",
        f"name={name}",
        f"data.url={url}",
        "data.eval_split=train",
        "data.num_workers=1",
        "train.monitor=null",
        "train.epochs=1000",
        "train.report_every_steps=1",
        "train.checkpoint_every_steps=1",
        "train.evaluate_every_epochs=1000",
        "train.checkpoint_every_epochs=1000",
        f"launch.kind={kind.lower()}",
    ]
    return [*changes, "engine.kind=deepspeed", "launch.num_workers=1"] if kind == "Ray" else changes


def seconds_of(arguments: list[str], done: Path | None = None) -> float:
    """Return how long a Python process took, or until it wrote the time to a file."""
    begun = time.time()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return (float(done.read_text()) if done else time.time()) - begun


def first_step(arguments: Sequence[str], folder: Path) -> float:
    """Return the seconds until a run's first new step, as its journal dates it; then stop the run in order."""
    begun = time.time()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        while True:
            taken = [moment for _, moment in reports_of(folder) if moment > begun]
            if taken and list((folder / "checkpoints").glob("*/manifest.json")):
                return min(taken) - begun
            if process.poll() is not None:
                said, _ = process.communicate()
                raise RuntimeError(said.decode()[-3000:])
            time.sleep(0.1)
    finally:
        process.terminate()
        process.communicate()


if __name__ == "__main__":
    main()
