"""From a worker's death to the next optimizer step: how long, and where that time goes.

Two Ray Train workers train the recipe `demo` (EfficientNet-B0, DeepSpeed) from a real S3 server, with MLflow. One of
them is killed by SIGKILL several times; every rank that Ray starts again notes when it reaches what.

    python -m benchmarks.recovery --kills 3

The split of a recovery, by the slower of the two ranks:

    detection    until the last process of the old group is gone
    restart      until the training function is entered: new processes, process group
    imports      torch, timm, DeepSpeed and our own modules
    building     index, plan, model, engine
    checkpoint   read, checked and restored
    data skip    until the first batch is there, at the cursor
    step         the first optimizer step
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil

from hmtl_dist.config.io import home, load_tree
from hmtl_dist.data.dataset.build import BuildSettings, build
from hmtl_dist.data.drawn.faces import SyntheticAdapter, SyntheticSettings
from hmtl_dist.data.stream.batches import Batch
from hmtl_dist.launch.folders import run_folder
from hmtl_dist.run_config import RunConfig
from hmtl_dist.services.registry import start_services, stop_services
from hmtl_dist.tracking.config import resolve
from hmtl_dist.tracking.runs import create_run
from hmtl_dist.train.base import Listener, Outcome, Progress, RankContext, RunContext
from hmtl_dist.train.loop import RankBatch

MARKS = "marks.jsonl"
PARTS = ("detection", "restart", "imports", "building", "checkpoint", "data skip", "step")
STEPS_BETWEEN = 15
"""Steps that a run takes between two kills."""


def measure(config: RunConfig, rank_context: RankContext, listener: Listener) -> Outcome:
    """Train one rank, noting the time at which it reaches each part of its start."""
    marks = [time.time()]
    from hmtl_dist.train.saving import Restored, Saver
    from hmtl_dist.train.worker import Trainer, train_rank

    marks.append(time.time())
    make, restore, rank_batches = Trainer.__init__, Saver.restore, Trainer.rank_batches

    def made(self: Trainer, config: RunConfig, rank_context: RankContext) -> None:
        make(self, config, rank_context)
        marks.append(time.time())

    def restored(self: Saver, say: Callable[[str], None] = print) -> Restored | None:
        found = restore(self, say)
        marks.append(time.time())
        return found

    def timed(self: Trainer, batches: Iterable[Batch]) -> Iterator[RankBatch]:
        for number, batch in enumerate(rank_batches(self, batches)):
            if number in (0, 1):  # the first batch is there; the first step is taken
                marks.append(time.time())
            if number == 1:
                with (rank_context.scratch / MARKS).open("a") as file:
                    file.write(json.dumps(marks) + "\n")
            yield batch

    Trainer.__init__, Saver.restore, Trainer.rank_batches = made, restored, timed
    return train_rank(config, rank_context, listener)


class Killer:
    """Shown every step, kills the last worker when it is time, and waits for the old group's end in a thread."""

    def __init__(self, kills: int) -> None:
        self._kills = kills
        self._next = STEPS_BETWEEN
        self.times: list[tuple[float, float]] = []
        """When a worker was killed, and when the last process of its group was gone."""

    def __call__(self, progress: Progress) -> None:
        """Kill if it is time."""
        if len(self.times) == self._kills or progress.global_step < self._next:
            return
        workers = [
            process
            for process in psutil.Process().children(recursive=True)
            if "RayTrainWorker" in " ".join(process.cmdline())
        ]
        self._next = progress.global_step + STEPS_BETWEEN
        killed = time.time()
        workers[-1].kill()
        threading.Thread(target=self._watch, args=(killed, workers), daemon=True).start()

    def _watch(self, killed: float, workers: list[psutil.Process]) -> None:
        psutil.wait_procs(workers)
        self.times.append((killed, time.time()))


def split(times: list[tuple[float, float]], ranks: list[list[list[float]]]) -> list[dict[str, float]]:
    """Return the seconds of every part of every recovery; `ranks` holds the marks of each start of each rank."""
    found: list[dict[str, float]] = []
    for number, (killed, gone) in enumerate(times, start=1):
        reached = [killed, gone, *(max(rank[number][mark] for rank in ranks) for mark in range(6))]
        parts = [after - before for before, after in itertools.pairwise(reached)]
        found.append(dict(zip(PARTS, parts, strict=True)) | {"all": reached[-1] - killed})
    return found


def main() -> None:
    """Run, kill, and print the split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=64)
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hmtl-recovery-") as folder:
        os.environ["HMTL_HOME"] = folder
        services = start_services(Path(folder))
        try:
            os.environ.update(services.env())
            from hmtl_dist.launch.ray_train import run_ray

            data = f"{services.bucket_url}/recovery"
            faces = SyntheticAdapter(SyntheticSettings(640, 80, settings.image_size))
            build(faces, data, BuildSettings(dataset="drawn", splits={"train": 0.9, "val": 0.1}, shard_samples=64))
            steps = STEPS_BETWEEN * (settings.kills + 1) + 10
            config = load_tree(
                RunConfig,
                "demo",
                [
                    *(f"data.url={data}", "name=recovery", f"train.max_steps={steps}", "train.epochs=1000"),
                    *("train.checkpoint_every_steps=10", "train.report_every_steps=1", "launch.num_workers=2"),
                    *(f"launch.max_failures={settings.kills}", f"launch.storage={services.bucket_url}/runs"),
                ],
            )
            recording = resolve(config.tracking, create_run(config.tracking, name=config.name))
            killer = Killer(settings.kills)
            run_ray(config, killer, measure, run=RunContext(run_folder(config), recording))
            ranks = [
                [json.loads(line) for line in file.read_text().splitlines()]
                for file in sorted((home() / "runs" / "recovery").glob(f"rank-*/{MARKS}"))
            ]
        finally:
            stop_services(Path(folder))
    found = split(killer.times, ranks)
    for part in (*PARTS, "all"):
        seconds = sorted(recovery[part] for recovery in found)
        print(f"{part:<12} {seconds[0]:6.1f} {statistics.median(seconds):6.1f} {seconds[-1]:6.1f} s")


if __name__ == "__main__":
    main()
