"""What benchmarks of the training share: ranks as `torchrun` would start them, over drawn faces, on this machine."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.local_s3 import local_s3
from hmtl_dist.config.io import load_tree
from hmtl_dist.data.dataset.build import BuildSettings, build
from hmtl_dist.data.drawn.faces import SyntheticAdapter, SyntheticSettings
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tracking.base import SilentTracker
from hmtl_dist.train.base import Progress, RankContext, RunContext
from hmtl_dist.train.loop import Run
from hmtl_dist.train.worker import Trainer

Figures = Mapping[str, Any]
Measure = Callable[[Trainer, Run], Figures]
"""Run on every rank with what it trains on and a run that neither reports, evaluates nor saves by itself."""


class Silent:
    """A listener that nobody stands behind."""

    def progress(self, progress: Progress) -> None:
        """Say nothing."""

    def note(self, line: str) -> None:
        """Say nothing."""

    def report(self, metrics: Mapping[str, float], checkpoint: str | None) -> None:
        """Report nothing."""

    def should_stop(self) -> bool:
        """Never."""
        return False

    def hung(self, said: str) -> None:
        """Say nothing."""

    def should_save(self) -> bool:
        """Never."""
        return False


def run_ranks(measure: Measure, overrides: Sequence[str], *, ranks: int, image_size: int, s3: bool) -> Figures:
    """Measure on some ranks with a thread each.

    Args:
        measure: A function of a module; what rank 0's returns, as JSON holds it, is returned.
        overrides: Over the recipe `demo`.
        ranks: Processes.
        image_size: Pixels of the pictures.
        s3: Keep data and checkpoints in a real S3 server on this machine instead of a folder.
    """
    with tempfile.TemporaryDirectory(prefix="hmtl-bench-") as name:
        folder = Path(name)
        with local_s3(folder) if s3 else nullcontext():
            root = "s3://bench" if s3 else str(folder / "bench")
            adapter = SyntheticAdapter(SyntheticSettings(1600, 400, image_size * 5 // 4))
            build(adapter, f"{root}/faces", BuildSettings(dataset="bench", splits={"train": 0.8, "val": 0.2}))
            keys = [
                *("name=bench", f"data.url={root}/faces", f"data.image_size={image_size}", "train.epochs=1000"),
                *(f"launch.storage={root}/runs", f"launch.num_workers={ranks}", "tracking.enabled=false"),
            ]
            config = load_tree(RunConfig, "demo", [*keys, *overrides])
            mp.spawn(_rank, (config, measure, ranks, str(folder)), nprocs=ranks)  # pyright: ignore[reportUnknownMemberType, reportPrivateImportUsage]
            return json.loads((folder / "figures.json").read_text())


def _rank(rank: int, config: RunConfig, measure: Measure, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=ranks)
    os.environ["LOCAL_RANK"] = str(rank)
    scratch = Path(folder) / f"rank-{rank}"
    run_folder = f"{config.launch.storage}/bench"
    trainer = Trainer(config, RankContext(rank, ranks, rank, "cpu", scratch, RunContext(run_folder)))
    with trainer.open_train_stream() as stream:
        run = replace(
            trainer.make_run(stream, SilentTracker(), Silent(), None),
            schedule=replace(
                trainer.schedule,
                report_every_steps=10**6,
                evaluate_every_epochs=10**6,
                checkpoint_every_epochs=10**6,
                checkpoint_every_steps=None,
            ),
            due=lambda: False,
            saved=lambda: None,
        )
        figures = measure(trainer, run)
    trainer.engine.close()
    if rank == 0:
        (Path(folder) / "figures.json").write_text(json.dumps(figures))
    dist.barrier()  # pyright: ignore[reportUnknownMemberType]  # partial in torch
    dist.destroy_process_group()
