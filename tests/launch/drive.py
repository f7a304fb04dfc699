"""Runs toy trainings in a process of its own: `python -m tests.launch.drive KIND TOY...`, KIND local, ray or shared.

Prints a line of JSON for every line of progress and every end. With `shared` one Ray serves all of them.
"""

import json
import os
import sys
from dataclasses import asdict
from importlib import import_module
from typing import Any

from hmtl_dist.errors import UserError
from hmtl_dist.launch.failure import TrainingError
from hmtl_dist.launch.local import run_local
from hmtl_dist.launch.ray_train import run_ray
from hmtl_dist.run_config import RunConfig
from tests.launch import toy

MAX_FAILURES = "HMTL_TEST_MAX_FAILURES"


def config(**launch: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "toy",
            "seed": 5,
            "data": {"url": "nowhere"},
            "tasks": {"expression": {"type": "classification"}},
            "launch": {"kind": "local", "num_workers": 2, "max_failures": int(os.environ.get(MAX_FAILURES, "0"))}
            | launch,
        }
    )


def say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def run(name: str, tree: RunConfig) -> None:
    launcher = run_ray if tree.launch.kind == "ray" else run_local
    try:
        outcome = launcher(tree, lambda progress: say(progress=progress.global_step), getattr(toy, name))
    except (UserError, TrainingError) as error:
        say(toy=name, error=type(error).__name__, message=str(error))
    else:
        say(toy=name, outcome=asdict(outcome))


def main(kind: str, *names: str) -> None:
    if kind == "shared":
        import_module("ray").init(address="local", num_cpus=2, include_dashboard=False)
    for name in names:
        run(name, config(kind="local" if kind == "local" else "ray"))


if __name__ == "__main__":
    main(*sys.argv[1:])
