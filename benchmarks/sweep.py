"""What successive halving saves and loses, and what a sweep costs over plain runs: drawn faces, S3 and MLflow.

    python -m benchmarks.sweep halving --trials 12     # the same trials stopped early, and all of them to the end
    python -m benchmarks.sweep overhead --trials 4     # a sweep, and its trials as runs one after another

`halving` draws the trials at random, so that both sweeps have the same ones, and compares the best figures (with the
binomial standard error of an accuracy on the evaluated pictures) and the pictures trained on. `overhead` alternates
sweeps and plain runs, one trial at a time on one core either way, each run a command of its own; every trial has the
same steps.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hmtl_dist.data.dataset.build import BuildSettings, build
from hmtl_dist.data.drawn.faces import SyntheticAdapter, SyntheticSettings
from hmtl_dist.services.registry import start_services, stop_services

METRIC = "eval/expression/accuracy"
RECIPE = (
    "synthetic_inpainting",
    "tasks.puzzling={type: puzzling, supervise: clean}",
    "tracking.experiment=benchmark",
    "train.monitor=null",
    "train.checkpoint_every_epochs=100",
)


def hmtl_dist(*arguments: str) -> tuple[str, float]:
    """Run a command; return its output and the seconds it took."""
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "hmtl_dist", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"hmtl-dist {' '.join(arguments)}: {done.stderr}")
    return done.stdout, time.monotonic() - begun


def sweep(name: str, url: str, epochs: int, trials: int, *settings: str) -> tuple[dict[str, Any], float]:
    """Run a sweep of random trials over the task weights; return its answer and the seconds it took."""
    own = [f"budget.trials={trials}", f"budget.epochs={epochs}", "search=random", "points=[]", *settings]
    flags = [part for setting in own for part in ("--set", setting)]
    recipe = [*RECIPE, f"data.url={url}", "train.evaluate_every_epochs=1", "launch.kind=ray"]
    out, seconds = hmtl_dist("tune", "task_weights", *recipe, "--name", name, "--json", *flags)
    return json.loads(out), seconds


def halving(url: str, arguments: argparse.Namespace, evaluated: int) -> dict[str, Any]:
    """Compare successive halving with the same trials trained to their ends, on so many evaluated pictures."""
    found: dict[str, Any] = {}
    for name, schedule in (
        ("asha", "schedule={type: asha, grace_epochs: 1, reduction: 3}"),
        ("whole", "schedule=fifo"),
    ):
        answer, seconds = sweep(name, url, arguments.epochs, arguments.trials, schedule)
        trials = answer["trials"]
        found[name] = {
            "seconds": seconds,
            "images": sum(trial["images"] for trial in trials),
            "best": answer["best"]["reports"][-1]["figures"][METRIC],
            "ended": sorted(trial["status"] for trial in trials),
            "figures": [round(trial["reports"][-1]["figures"][METRIC], 4) for trial in trials],
        }
        best = found[name]["best"]
        found[name]["standard error"] = math.sqrt(best * (1 - best) / evaluated)
        told = f"{best:.4f} best (standard error {found[name]['standard error']:.4f})"
        print(f"{name:6} {told}, {found[name]['images']:,} pictures, {seconds:.0f} s")
    found["images ratio"] = found["asha"]["images"] / found["whole"]["images"]
    found["points lost"] = 100 * (found["whole"]["best"] - found["asha"]["best"])
    print(f"pictures {found['images ratio']:.2f} of the whole trials', {found['points lost']:.2f} points lost")
    return found


def overhead(url: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare a sweep with as many plain runs of the same steps, one at a time."""
    took: dict[str, list[float]] = {"sweep": [], "plain": []}
    for number in range(arguments.rounds):
        seconds = 0.0
        for trial in range(arguments.trials):
            names = [f"name=plain-{number}-{trial}", f"train.epochs={arguments.epochs}"]
            seconds += hmtl_dist(
                "train", *RECIPE, f"data.url={url}", "train.evaluate_every_epochs=1", "launch=local", *names
            )[1]
        took["plain"].append(seconds)
        took["sweep"].append(
            sweep(f"sweep-{number}", url, arguments.epochs, arguments.trials, "schedule=fifo", "concurrency=1")[1]
        )
        print(f"plain {took['plain'][-1]:.1f} s, sweep {took['sweep'][-1]:.1f} s")
    ratios = [one / other for one, other in zip(took["sweep"], took["plain"], strict=True)]
    print(f"sweep over plain runs {min(ratios):.3f} {statistics.median(ratios):.3f} {max(ratios):.3f}")
    return {**took, "ratio": ratios}


def main() -> None:
    """Run one of the two and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("halving", "overhead"))
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=9, help="epochs of a trial that trains to its end")
    parser.add_argument("--rounds", type=int, default=3, help="pairs, of `overhead`")
    parser.add_argument("--samples", type=int, default=2000, help="drawn faces")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hmtl-bench-") as home:
        os.environ["HMTL_HOME"] = home
        services = start_services(Path(home))
        try:
            os.environ.update(services.env())
            url = f"{services.bucket_url}/bench"
            adapter = SyntheticAdapter(SyntheticSettings(arguments.samples, arguments.samples // 4, 56))
            built = build(
                adapter, url, BuildSettings(dataset="bench", splits={"train": 0.7, "val": 0.3}), num_workers=2
            )
            evaluated = built.headers["val"].num_samples
            figures = halving(url, arguments, evaluated) if arguments.what == "halving" else overhead(url, arguments)
        finally:
            stop_services(Path(home))
    print(json.dumps({"arguments": vars(arguments), **figures}))


if __name__ == "__main__":
    main()
