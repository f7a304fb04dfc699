"""Runs a training whose every rank notes what it is told: `python -m tests.e2e.callbacks URL FOLDER`."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from hmtl_dist.launch.driver import drive
from hmtl_dist.train.base import Callback, Outcome
from tests.e2e.drawn import config


class Notes(Callback):
    """Notes what it is told in a file of its process."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def _note(self, what: str, step: int, metrics: Mapping[str, float]) -> None:
        with Path(self._folder, f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps([what, step, sorted(metrics)]) + "\n")

    def on_window(self, step: int, metrics: Mapping[str, float]) -> None:
        self._note("window", step, metrics)

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self._note("evaluation", step, metrics)

    def on_end(self, outcome: Outcome) -> None:
        self._note(outcome.status, outcome.global_step, outcome.metrics)


def main(url: str, folder: str) -> None:
    launch = {"kind": "ray", "num_workers": 2}
    tree = config("told", url, launch=launch, train={"max_steps": 3, "report_every_steps": 2})
    drive(tree, lambda progress: None, callbacks=[Notes(folder)])


if __name__ == "__main__":
    main(*sys.argv[1:])
