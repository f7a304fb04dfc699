"""Images per second of a whole training run over those of its bare step, in one run on the same workers.

Ray Train workers train through DeepSpeed from a real S3 server with decoding, augmentation, all tasks, reports and
MLflow (the whole run), and take the same steps on one resident batch without data, reports and tracking (the bare
step). The two alternate round by round, so that a change of the machine's speed falls on both.

    python -m benchmarks.whole_run --rounds 9 --steps 12 --num-workers 1
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

from hmtl_dist.config.io import load_tree
from hmtl_dist.data.dataset.build import BuildSettings, build
from hmtl_dist.data.drawn.faces import SyntheticAdapter, SyntheticSettings
from hmtl_dist.launch.folders import run_folder
from hmtl_dist.run_config import RunConfig
from hmtl_dist.services.registry import start_services, stop_services
from hmtl_dist.tracking.config import resolve
from hmtl_dist.tracking.runs import create_run
from hmtl_dist.train.base import Listener, Outcome, RankContext, RunContext

RESULT = "whole_run.json"


def measure(config: RunConfig, rank_context: RankContext, listener: Listener) -> Outcome:
    """Alternate the whole run and the bare step on one rank; rank 0 writes the seconds of each round."""
    from hmtl_dist.tracking.base import SilentTracker
    from hmtl_dist.train.loop import train
    from hmtl_dist.train.worker import Trainer

    rounds, steps = (int(os.environ[name]) for name in ("HMTL_BENCH_ROUNDS", "HMTL_BENCH_STEPS"))
    trainer = Trainer(config, rank_context)
    tracker = SilentTracker() if rank_context.rank else trainer.open_journal(None)
    objective, engine = trainer.objective, trainer.engine
    seconds: dict[str, list[float]] = {"whole": [], "bare": []}
    with trainer.open_train_stream() as stream:
        batches = trainer.rank_batches(stream)
        resident = [replace(inputs, images=inputs.images.clone()) for inputs in next(batches).micro_batches]
        run = replace(
            trainer.make_run(stream, tracker, listener, None),
            batches=[],
            schedule=replace(trainer.schedule, evaluate_every_epochs=10**6, checkpoint_every_epochs=10**6),
            due=lambda: False,
            saved=lambda: None,
        )
        outcome = train(run)
        for _ in range(rounds + 1):
            begin = time.perf_counter()
            outcome = train(replace(run, batches=islice(batches, steps)))
            seconds["whole"].append(time.perf_counter() - begin)
            begin = time.perf_counter()
            for _ in range(steps):
                for inputs in resident:
                    views, prepared = objective.prepare(inputs)
                    losses = objective.losses(engine.forward(views), prepared, inputs)
                    engine.backward(losses.total)
                    engine.step()
                objective.after_step()
            seconds["bare"].append(time.perf_counter() - begin)
    if rank_context.rank == 0:
        (rank_context.scratch / RESULT).write_text(json.dumps(seconds))
    engine.close()
    tracker.close("FINISHED")
    return outcome


def main() -> None:
    """Run the benchmark and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds, after one that is not")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps of a round")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=32, help="samples of a step over all workers")
    parser.add_argument("--num-workers", type=int, default=2, help="training workers")
    arguments = parser.parse_args()

    from hmtl_dist.launch.ray_train import run_ray

    with tempfile.TemporaryDirectory(prefix="hmtl-bench-") as home:
        os.environ["HMTL_HOME"] = home
        os.environ["HMTL_BENCH_ROUNDS"], os.environ["HMTL_BENCH_STEPS"] = str(arguments.rounds), str(arguments.steps)
        services = start_services(Path(home))
        try:
            os.environ.update(services.env())
            url = f"{services.bucket_url}/bench"
            adapter = SyntheticAdapter(SyntheticSettings(1600, 400, arguments.image_size * 5 // 4))
            build(adapter, url, BuildSettings(dataset="bench", splits={"train": 0.8, "val": 0.2}), num_workers=2)
            config = load_tree(
                RunConfig,
                "demo",
                [
                    "name=bench",
                    f"data.url={url}",
                    f"data.image_size={arguments.image_size}",
                    f"data.batch_size={arguments.batch_size}",
                    f"launch.num_workers={arguments.num_workers}",
                    "augment=weak",
                    "tasks.puzzling.every=1",
                    "tasks.inpainting.every=1",
                    "train.epochs=1000",
                ],
            )
            recording = resolve(config.tracking, create_run(config.tracking, name=config.name))
            run_ray(config, lambda _: None, train=measure, run=RunContext(run_folder(config), recording))
            seconds = json.loads((Path(home) / "runs" / "bench" / "rank-0" / RESULT).read_text())
        finally:
            stop_services(Path(home))

    samples = arguments.batch_size * arguments.steps
    rates = {kind: [samples / value for value in values[1:]] for kind, values in seconds.items()}
    ratios = [whole / bare for whole, bare in zip(rates["whole"], rates["bare"], strict=True)]
    figures = {"whole": rates["whole"], "bare": rates["bare"], "ratio": ratios}
    print(f"{'':>8} {'min':>8} {'median':>8} {'max':>8}")
    for name, values in figures.items():
        print(f"{name:>8} {min(values):8.3f} {statistics.median(values):8.3f} {max(values):8.3f}")
    print(json.dumps({"arguments": vars(arguments), **figures}))


if __name__ == "__main__":
    main()
