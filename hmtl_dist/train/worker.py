"""One rank of a run: everything it trains with, put together and run to the end."""

import logging
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import cast

import numpy as np
import torch
import torch.distributed as dist

from hmtl_dist import garbage
from hmtl_dist.augment import GeometricTransform
from hmtl_dist.data.storage.config import settings as storage_settings
from hmtl_dist.data.stream.batches import Batch, Stream, preload_workers
from hmtl_dist.data.stream.selection import open_training
from hmtl_dist.engine import build_engine
from hmtl_dist.engine.base import Engine
from hmtl_dist.engine.ranks import TorchRanks, read_by_first
from hmtl_dist.model.hmtl import HMTLModel
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tasks.base import Ranks, SingleRank
from hmtl_dist.tasks.objective import Objective
from hmtl_dist.tracking.base import RunStatus, SilentTracker, Tracker
from hmtl_dist.tracking.jsonl import Journal
from hmtl_dist.train.base import Listener, Outcome, Progress, RankContext, StopNow
from hmtl_dist.train.best import EMA, LAST, renamed, with_best
from hmtl_dist.train.data_report import DataReport
from hmtl_dist.train.evaluate import Evaluation
from hmtl_dist.train.groups import check_monitored
from hmtl_dist.train.guard import Guard
from hmtl_dist.train.initial import initialise
from hmtl_dist.train.inputs import Feed, InputMaker, copier_of
from hmtl_dist.train.loop import RankBatch, Run, train
from hmtl_dist.train.nodes import Nodes
from hmtl_dist.train.parts import build_evaluator, build_parts, counted, reseed
from hmtl_dist.train.recording import Recorder
from hmtl_dist.train.saving import Restored, Saver
from hmtl_dist.train.streams import evaluation_of, make_plan, make_schedule, open_stream
from hmtl_dist.train.watchdog import Watchdog

TELL_SECONDS = 2.0
"""Time between two words on how far an evaluation is."""

logger = logging.getLogger(__name__)


def train_rank(config: RunConfig, rank_context: RankContext, listener: Listener) -> Outcome:
    """Train one rank to the end of the run, going on from the run's last checkpoint.

    Args:
        config: The resolved configuration.
        rank_context: Where this rank runs; with several ranks `torch.distributed` is initialised.
        listener: Who is told of progress, and who may ask to stop.

    Raises:
        UserError: What the configuration names cannot be used: data, labels, model, checkpoint.
    """
    if rank_context.rank == 0:
        listener.note(f"reading the index of {config.data.url}, building the model")
    with storage_settings(config.storage):
        trainer = Trainer(config, rank_context)
        garbage.collect_as_usual()
        with closing(trainer.engine):
            return _train(trainer, listener)


def _train(trainer: "Trainer", listener: Listener) -> Outcome:
    rank_context = trainer.rank_context

    def warn(line: str) -> None:
        logger.warning(line)
        listener.note(line)

    restored = trainer.saver.restore(warn)
    if restored is not None and rank_context.rank == 0:
        listener.note(f"goes on from step {trainer.engine.global_step}")
    tracker = SilentTracker() if rank_context.rank else trainer.open_journal(restored)
    status: RunStatus = "FAILED"
    try:
        with (
            Watchdog(trainer.config.train.hang_minutes, rank_context.scratch, listener.hung) as trainer.watchdog,
            trainer.open_train_stream() as stream,
            trainer.data_report(stream, tracker) as data_metrics,
        ):
            run = trainer.make_run(stream, tracker, listener, restored)
            batches = trainer.watchdog.each(run.batches)
            if rank_context.rank == 0:
                listener.note("the first steps follow")

            def more_metrics(step: int) -> dict[str, float]:
                return data_metrics(step) | trainer.saver.metrics()

            outcome = train(replace(run, batches=batches, more_metrics=more_metrics))
        if outcome.status == "FINISHED" and isinstance(tracker, Journal) and trainer.config.tracking.model:
            listener.note("recording the model")
            weights = trainer.engine.evaluation_module().state_dict()
            trainer.recorder.model(tracker, weights, trainer.engine.global_step, outcome.metrics)
        status = "FINISHED" if outcome.status == "FINISHED" else "KILLED"
    except StopNow:
        status = "KILLED"
        trainer.saver.close()  # this process goes on, and may come back to the run's folder
        raise
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except Exception:
        trainer.saver.close()
        raise
    finally:
        tracker.close(status)
    return outcome


class Trainer:
    """One rank's data, tasks, model and engine."""

    def __init__(self, config: RunConfig, rank_context: RankContext) -> None:
        self.config = config
        self.rank_context = rank_context
        self.device = torch.device(rank_context.device)
        self.watchdog: Watchdog | None = None
        """Told of every batch, where the run is watched."""
        self._evaluated_at: int | None = None
        self._evaluating: Callable[[int, int], None] = lambda done, total: None
        """Told how far an evaluation is."""
        if config.data.num_workers:
            urls = [config.data.url, config.data.eval_url or "", *(one.url for one in config.data.mix)]
            preload_workers(urls, [GeometricTransform.__module__])
        self._ranks: Ranks = TorchRanks() if dist.is_initialized() else SingleRank()
        ranks = self._ranks
        self._training = open_training(config.data)
        header = self._training.header
        evaluation = evaluation_of(config, header.fields)
        self._plan = make_plan(config, self._training, shuffle=True)
        self.schedule = make_schedule(config, self._plan.steps_per_epoch)

        parts = build_parts(config, header, ranks)
        if config.train.monitor is not None:
            check_monitored("train.monitor", config.train.monitor, parts.objective.tasks)
        # the engine then gives all ranks the weights of the first
        self._initial = read_by_first(lambda: initialise(parts.model, config.model))
        self.objective = parts.objective
        self.engine: Engine = build_engine(
            parts.model,
            config.optim,
            config.engine,
            device=self.device,
            total_steps=self.schedule.total_steps,
            steps_per_epoch=self.schedule.steps_per_epoch,
        )
        parts.follow(self.device)
        self.saver = Saver(config, rank_context, self.engine, self.objective, data=header)
        self._inputs = InputMaker(
            self.device,
            config.seed,
            micro_batches=config.engine.accumulation_steps,
            augment=config.augment,
            per_lane=self._plan.per_lane,
        )
        self.recorder = Recorder(config, rank_context, self._training, evaluation, self.objective)

        share = math.ceil(evaluation.num_draws / rank_context.world_size)

        @contextmanager
        def batches() -> Generator[Iterable[Batch]]:
            with open_stream(config, evaluation, rank_context) as stream:
                told = counted(stream, share, self._evaluating)
                yield told if self.watchdog is None else self.watchdog.each(told)

        self._evaluator = build_evaluator(config, self.objective, evaluation, batches, device=self.device, ranks=ranks)

    def open_journal(self, restored: Restored | None) -> Journal:
        """Open the run's record, on its first rank."""
        return self.recorder.open_journal(restored, self.engine.global_step, self._initial)

    def open_train_stream(self) -> Stream:
        """Open the endless stream of this rank's training batches, at the cursor."""
        cursor = divmod(self.engine.global_step, self._plan.steps_per_epoch)
        return open_stream(self.config, self._training, self.rank_context, self._plan, cursor)

    @contextmanager
    def data_report(self, stream: Stream, tracker: Tracker) -> Generator[DataReport]:
        """Report what the stream meets; what a run that breaks has not reported yet is named at its end."""
        report = DataReport(stream.stats, self._ranks, self.device, tracker, Nodes(self.rank_context))
        try:
            yield report
        finally:
            report.close(self.engine.global_step)

    def make_run(self, stream: Stream, tracker: Tracker, listener: Listener, restored: Restored | None) -> Run:
        """Put together what the loop runs on, going on from where the run was restored."""
        seed, rank = self.config.seed, self.rank_context.rank
        self._evaluated_at = restored.evaluated_at if restored else None
        guard = Guard(
            policy=self.config.train.on_nonfinite,
            max_skipped=self.config.train.max_skipped,
            probe=Objective(self.objective.tasks, self.config.weighting, SingleRank()),
            ranks=self._ranks,
            name=self._name_samples,
            skipped=restored.skipped if restored else 0,
        )
        feed = Feed(stream, copier_of(self.device))
        return Run(
            batches=self.rank_batches(feed),
            ahead=feed.ahead,
            objective=self.objective,
            engine=self.engine,
            ranks=self._ranks,
            guard=guard,
            schedule=self.schedule,
            tracker=tracker,
            listener=listener,
            callbacks=self.rank_context.run.callbacks,
            shows=rank == 0,
            reseed=lambda micro_step: reseed(seed, rank, micro_step, self.device),
            evaluate=lambda step, known: self.evaluate(step, known, tracker, listener),
            save=lambda step, metrics: self.saver.save(step, metrics, guard.skipped, self._evaluated_at),
            saved=self.saver.saved,
            due=lambda: self.saver.due() or listener.should_save(),
            waited=lambda: stream.stats.wait_seconds,
            metrics=restored.metrics if restored else {},
            evaluated_at=self._evaluated_at,
            checkpoint=restored.checkpoint if restored else None,
        )

    def rank_batches(self, batches: Iterable[Batch]) -> Iterator[RankBatch]:
        """Yield this rank's part of each global batch, until the schedule ends."""
        if self.schedule.ends(self.engine.global_step):
            return
        for batch in batches:
            yield RankBatch(self._plan.batch_size, self._inputs(batch), batch.sample_ids)

    def _name_samples(self, ids: Sequence[int]) -> list[str]:
        shards, rows = self._plan.locate(np.array(ids, dtype=np.int64))
        index = self._training.index
        return [
            f"{index.samples(shard).key[row]} in {index.shard_url(shard)}"
            for shard, row in zip(shards.tolist(), rows.tolist(), strict=True)
        ]

    def evaluate(self, step: int, known: Mapping[str, float], tracker: Tracker, listener: Listener) -> dict[str, float]:
        """Evaluate, record pictures and confusion matrices, and return the figures; collective.

        Where the run averages its weights or monitors a figure, the end of the run tells the last weights' figures
        (`last/...`) from the average's (`ema/...`), and every evaluation tells the best one's so far (`best/...`).
        """
        self._evaluated_at = step
        if self.rank_context.rank == 0:
            self._evaluating = self._teller(step, listener)
        pictures = self.rank_context.rank == 0 and self.config.tracking.pictures
        evaluation: Evaluation = self._evaluator(cast("HMTLModel", self.engine.evaluation_module()), pictures=pictures)
        for name, picture in evaluation.pictures.items():
            tracker.picture(name, picture, step)
        if self.rank_context.rank == 0:
            self.recorder.confusions(evaluation, step, tracker)
        return with_best(
            evaluation.metrics | self._by_weights(step, evaluation.metrics), known, step, self.config.train
        )

    def _teller(self, step: int, listener: Listener) -> Callable[[int, int], None]:
        """Return what tells a listener now and then how far the evaluation at a step is."""
        begun = last = time.monotonic()

        def tell(done: int, total: int) -> None:
            nonlocal begun, last
            now = time.monotonic()
            if done == 0:
                begun = last = now
            elif now - last >= TELL_SECONDS:
                last = now
                listener.progress(
                    Progress(
                        phase="evaluating",
                        global_step=step,
                        total_steps=self.schedule.total_steps,
                        epoch=step / self.schedule.steps_per_epoch,
                        samples_per_second=0.0,
                        wait_share=0.0,
                        learning_rate=self.engine.learning_rate,
                        eta_seconds=(now - begun) / done * (total - done),
                        share=done / total,
                    )
                )

        return tell

    def _by_weights(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the figures of the last and of the averaged weights by name, at the end of the run; collective."""
        averages = self.config.engine.ema_decay > 0
        if not self.schedule.ends(step) or not (averages or self.config.train.monitor):
            return {}
        if not averages:
            return renamed(metrics, LAST)
        last = self._evaluator(cast("HMTLModel", self.engine.module.eval()))
        return renamed(last.metrics, LAST) | renamed(metrics, EMA)
