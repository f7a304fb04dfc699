"""Builds everything one rank trains with, from the configuration, and runs the loop."""

import logging
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hmtl_dist import garbage, rng
from hmtl_dist.augment import GeometricTransform
from hmtl_dist.config.io import flatten
from hmtl_dist.data.plan import Plan
from hmtl_dist.data.schema import Field, IndexHeader
from hmtl_dist.data.selection import Selection, open_evaluation, open_training
from hmtl_dist.data.stream import Batch, Stream, preload_workers
from hmtl_dist.engine import build_engine
from hmtl_dist.engine.base import Engine, EngineState
from hmtl_dist.engine.ranks import TorchRanks
from hmtl_dist.model.frozen import FrozenNet, build_frozen
from hmtl_dist.model.hmtl import HMTLModel
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tasks.base import Ranks, SingleRank
from hmtl_dist.tasks.objective import Objective
from hmtl_dist.tasks.registry import build_tasks
from hmtl_dist.tracking.base import RunStatus, SilentTracker, Tracker
from hmtl_dist.tracking.facts import code_tags, versions
from hmtl_dist.tracking.jsonl import Journal
from hmtl_dist.tracking.mlflow import open_tracker
from hmtl_dist.tracking.model_folder import write_model
from hmtl_dist.tracking.plots import draw_learning_curves, read_curves, write_confusion_matrix
from hmtl_dist.train.base import Listener, Outcome, Place, StopNow
from hmtl_dist.train.best import EMA, LAST, renamed, with_best
from hmtl_dist.train.data_report import DataReport
from hmtl_dist.train.evaluate import Evaluation, Evaluator
from hmtl_dist.train.groups import check_monitored, groupings_of
from hmtl_dist.train.guard import Guard
from hmtl_dist.train.initial import initialise
from hmtl_dist.train.inputs import Feed, InputMaker, copier_of
from hmtl_dist.train.loop import Run, Share, train
from hmtl_dist.train.nodes import Nodes
from hmtl_dist.train.origin import origin_of
from hmtl_dist.train.saving import Restored, Saver, check_fields
from hmtl_dist.train.schedule import Schedule
from hmtl_dist.train.watchdog import Watchdog

logger = logging.getLogger(__name__)


def train_rank(config: RunConfig, place: Place, listener: Listener) -> Outcome:
    """Train one rank to the end of the run, going on from the run's last checkpoint.

    Args:
        config: The resolved configuration.
        place: Where this rank runs; with several ranks `torch.distributed` is initialised.
        listener: Who is told of progress, and who may ask to stop.

    Raises:
        UserError: What the configuration names cannot be used: data, labels, model, checkpoint.
    """
    trainee = Trainee(config, place)
    garbage.collect_as_usual()
    with closing(trainee.engine):
        return _train(trainee, listener)


def _train(trainee: "Trainee", listener: Listener) -> Outcome:
    place = trainee.place
    restored = trainee.saver.restore()
    tracker = SilentTracker() if place.rank else trainee.open_journal(restored)
    status: RunStatus = "FAILED"
    try:
        with (
            Watchdog(trainee.config.train.hang_minutes, place.scratch, listener.hung) as trainee.watchdog,
            trainee.open_train_stream() as stream,
            trainee.data_report(stream, tracker) as data_figures,
        ):
            run = trainee.make_run(stream, tracker, listener, restored)
            shares = trainee.watchdog.each(run.shares)

            def more_figures(step: int) -> dict[str, float]:
                return data_figures(step) | trainee.saver.figures()

            outcome = train(replace(run, shares=shares, more_figures=more_figures))
        if outcome.status == "FINISHED" and isinstance(tracker, Journal) and trainee.config.tracking.model:
            trainee.record_model(tracker, outcome.metrics)
        status = "FINISHED" if outcome.status == "FINISHED" else "KILLED"
    except StopNow:
        status = "KILLED"
        trainee.saver.close()  # this process goes on, and may come back to the run's folder
        raise
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except Exception:
        trainee.saver.close()
        raise
    finally:
        tracker.close(status)
    return outcome


class Trainee:
    """One rank's data, tasks, model and engine."""

    def __init__(self, config: RunConfig, place: Place) -> None:
        self.config = config
        self.place = place
        self.device = torch.device(place.device)
        self.watchdog: Watchdog | None = None
        """Told of every batch, where the run is watched."""
        self._evaluated_at: int | None = None
        if config.data.num_workers:
            urls = [config.data.url, config.data.eval_url or "", *(one.url for one in config.data.mix)]
            preload_workers(urls, [GeometricTransform.__module__])
        self._ranks: Ranks = TorchRanks() if dist.is_initialized() else SingleRank()
        ranks = self._ranks
        self._training = open_training(config.data)
        header = self._training.header
        self._evaluation = open_evaluation(config.data, _fields_elsewhere(config, header.fields))
        self._plan = make_plan(config, self._training, shuffle=True)
        self.schedule = make_schedule(config, self._plan.steps_per_epoch)

        check_fields(header.fields, self._evaluation.header.fields, f"split {config.data.eval_split}")
        parts = build_parts(config, header, ranks)
        if config.train.monitor is not None:
            check_monitored("train.monitor", config.train.monitor, parts.objective.tasks)
        self._initial = initialise(parts.model, config.model)
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
        self.saver = Saver(config, place, self.engine, self.objective, data=header)
        self._inputs = InputMaker(
            self.device,
            config.seed,
            micro_batches=config.engine.accumulation_steps,
            augment=config.augment,
            per_lane=self._plan.per_lane,
        )
        self._evaluator = Evaluator(
            objective=Objective(self.objective.tasks, config.weighting, ranks),
            ranks=ranks,
            device=self.device,
            inputs=InputMaker(self.device, config.seed),
            batches=self._evaluation_batches,
            groupings=groupings_of(config, self._evaluation.header.fields, self.objective.tasks),
            gap_figures=config.train.gap_figures,
        )

    @contextmanager
    def _evaluation_batches(self) -> Generator[Iterable[Batch]]:
        with open_stream(self.config, self._evaluation, self.place) as stream:
            yield stream if self.watchdog is None else self.watchdog.each(stream)

    def open_train_stream(self) -> Stream:
        """Open the endless stream of this rank's training batches, at the cursor."""
        cursor = divmod(self.engine.global_step, self._plan.steps_per_epoch)
        return open_stream(self.config, self._training, self.place, self._plan, cursor)

    @contextmanager
    def data_report(self, stream: Stream, tracker: Tracker) -> Generator[DataReport]:
        """Report what the stream meets; what a run that breaks has not reported yet is named at its end."""
        report = DataReport(stream.stats, self._ranks, self.device, tracker, Nodes(self.place))
        try:
            yield report
        finally:
            report.close(self.engine.global_step)

    def make_run(self, stream: Stream, tracker: Tracker, listener: Listener, restored: Restored | None) -> Run:
        """Put together what the loop runs on, going on from where the run was restored."""
        seed, rank = self.config.seed, self.place.rank
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
            shares=self.shares(feed),
            ahead=feed.ahead,
            objective=self.objective,
            engine=self.engine,
            ranks=self._ranks,
            guard=guard,
            schedule=self.schedule,
            tracker=tracker,
            listener=listener,
            callbacks=self.place.run.callbacks,
            shows=rank == 0,
            reseed=lambda micro_step: reseed(seed, rank, micro_step, self.device),
            evaluate=lambda step, known: self.evaluate(step, known, tracker),
            save=lambda step, metrics: self.saver.save(step, metrics, guard.skipped, self._evaluated_at),
            saved=self.saver.saved,
            due=lambda: self.saver.due() or listener.should_save(),
            waited=lambda: stream.stats.wait_seconds,
            metrics=restored.metrics if restored else {},
            evaluated_at=self._evaluated_at,
            checkpoint=restored.checkpoint if restored else None,
        )

    def shares(self, batches: Iterable[Batch]) -> Iterator[Share]:
        """Yield this rank's part of each global batch, until the schedule ends."""
        if self.schedule.ends(self.engine.global_step):
            return
        for batch in batches:
            yield Share(self._plan.batch_size, self._inputs(batch), batch.sample_ids)

    def _name_samples(self, ids: Sequence[int]) -> list[str]:
        shards, rows = self._plan.locate(np.array(ids, dtype=np.int64))
        index = self._training.index
        return [
            f"{index.samples(shard).key[row]} in {index.shard_url(shard)}"
            for shard, row in zip(shards.tolist(), rows.tolist(), strict=True)
        ]

    def evaluate(self, step: int, known: Mapping[str, float], tracker: Tracker) -> dict[str, float]:
        """Evaluate, record pictures and confusion matrices, and return the figures; collective.

        Where the run averages its weights or monitors a figure, the end of the run tells the last weights' figures
        (`last/...`) from the average's (`ema/...`), and every evaluation tells the best one's so far (`best/...`).
        """
        self._evaluated_at = step
        pictures = self.place.rank == 0 and self.config.tracking.pictures
        evaluation: Evaluation = self._evaluator(cast("HMTLModel", self.engine.evaluation_module()), pictures=pictures)
        for name, picture in evaluation.pictures.items():
            tracker.picture(name, picture, step)
        if self.place.rank == 0:
            try:
                self._record_confusions(evaluation, step, tracker)
            except OSError as error:  # a full disk here must not cost a run whose checkpoints are elsewhere
                logger.warning("cannot write the confusion matrices of step %d: %s", step, error)
        return with_best(
            evaluation.figures | self._by_weights(step, evaluation.figures), known, step, self.config.train
        )

    def _by_weights(self, step: int, figures: Mapping[str, float]) -> dict[str, float]:
        """Return the figures of the last and of the averaged weights by name, at the end of the run; collective."""
        averages = self.config.engine.ema_decay > 0
        if not self.schedule.ends(step) or not (averages or self.config.train.monitor):
            return {}
        if not averages:
            return renamed(figures, LAST)
        last = self._evaluator(cast("HMTLModel", self.engine.module.eval()))
        return renamed(last.figures, LAST) | renamed(figures, EMA)

    def _record_confusions(self, evaluation: Evaluation, step: int, tracker: Tracker) -> None:
        for name, (classes, matrix) in evaluation.confusions.items():
            for path in write_confusion_matrix(self.place.scratch / f"step-{step:08d}", name, matrix, classes):
                tracker.artifact(path, f"evaluation/step-{step:08d}")

    def open_journal(self, restored: Restored | None) -> Journal:
        """Open the run's record and note what holds for the whole run."""
        config, run = self.config, self.place.run
        elsewhere = restored.undelivered if restored else ()
        journal = open_tracker(run.recording, self.place.scratch, self.engine.global_step, elsewhere)
        journal.params(flatten(config) | versions() | {"data.digest": self._training.header.digest})
        initial = {"init_from": self._initial} if self._initial else {}
        journal.tags(code_tags() | initial | {"attempt": str(run.attempt)})
        for selection, context in ((self._training, "train"), (self._evaluation, "evaluation")):
            for source in selection.sources:
                place = f"{source.url}/{source.split}"
                profile = {"num_samples": source.chosen, "num_shards": source.shards, "draws": source.draws}
                journal.dataset(source.dataset, source.digest, place, context, profile)
        return journal

    def record_model(self, journal: Journal, metrics: Mapping[str, float]) -> None:
        """Record the trained model, if it has a supervised head that could predict, and the learning curves."""
        if not all(task.is_pretext for task in self.objective.tasks):
            folder = self.place.scratch / "model"
            header = self._training.header
            origin = origin_of(
                self.config,
                (header.dataset, header.digest),
                self._evaluation,
                header.fields,
                global_step=self.engine.global_step,
                weights="ema" if self.config.engine.ema_decay > 0 else "last",
                metrics=metrics,
            )
            write_model(
                folder,
                self.engine.evaluation_module().state_dict(),
                config=self.config.model,
                augment=self.config.augment,
                image_size=self.config.data.image_size,
                tasks=self.objective.tasks,
                origin=origin,
            )
            journal.model(folder)
        curves = read_curves(journal.path)
        journal.picture("learning_curves", draw_learning_curves(curves), self.engine.global_step)


@dataclass(frozen=True)
class Parts:
    """What the tasks of a run need, and the model that serves them."""

    objective: Objective
    model: HMTLModel
    frozen: Mapping[str, FrozenNet]

    def follow(self, device: torch.device) -> None:
        """Put the frozen networks on the device, those that average the model starting as its copies."""
        for net in self.frozen.values():
            net.to(device).follow(self.model.backbone)


def build_parts(config: RunConfig, header: IndexHeader, ranks: Ranks) -> Parts:
    """Build tasks and model; the seed decides how the model is initialised, the same on every rank."""
    seed_torch(config.seed)
    frozen = build_frozen(config.tasks, config.model)
    read = config.data.fields
    fields = {name: field for name, field in header.fields.items() if read is None or name in read}
    tasks = build_tasks(config.tasks, fields, header.label_counts, frozen, config.data.image_size)
    objective = Objective(tasks, config.weighting, ranks, config.augment)
    return Parts(objective, HMTLModel(config.model, objective.heads(), objective.wiring, objective.log_vars), frozen)


def evaluate_state(
    config: RunConfig,
    state: EngineState,
    objective_state: Mapping[str, Tensor],
    fields: Mapping[str, Field],
    *,
    strict_groups: bool = True,
) -> Evaluation:
    """Evaluate a saved state in this process, on the CPU or the first GPU; EMA weights where there are some.

    Args:
        config: The configuration that the state was trained with, `data` naming what to evaluate on.
        state: The engine's part of a checkpoint.
        objective_state: The objective's part.
        fields: The labels that it was trained on.
        strict_groups: Whether a label of `train.groups` that the data lack is an error; else it is left out.

    Raises:
        UserError: The data cannot be read, or holds other labels.
    """
    device = torch.device("cuda" if config.launch.gpus_per_worker and torch.cuda.is_available() else "cpu")
    selection = evaluation_of(config, fields)
    parts = build_parts(config, selection.header, SingleRank())
    parts.model.load_state_dict(state.ema or state.model)
    parts.model.to(device).eval()
    parts.follow(device)
    parts.objective.load_state(objective_state)
    place = Place.alone(str(device))
    evaluator = Evaluator(
        objective=Objective(parts.objective.tasks, config.weighting, SingleRank()),
        ranks=SingleRank(),
        device=device,
        inputs=InputMaker(device, config.seed),
        batches=lambda: open_stream(config, selection, place),
        groupings=groupings_of(config, selection.header.fields, parts.objective.tasks, strict=strict_groups),
        gap_figures=config.train.gap_figures,
    )
    return evaluator(parts.model)


def evaluation_of(config: RunConfig, fields: Mapping[str, Field]) -> Selection:
    """Open what a configuration evaluates on, with the labels that a model was trained on.

    Raises:
        UserError: The data cannot be read, or holds other labels.
    """
    selection = open_evaluation(config.data, _fields_elsewhere(config, fields))
    check_fields(fields, selection.header.fields, config.data.eval_url or config.data.url)
    return selection


def _fields_elsewhere(config: RunConfig, fields: Mapping[str, Field]) -> dict[str, Field] | None:
    """Return the labels that a set other than `data.url` is to give; None where it is that set."""
    return dict(fields) if config.data.mix or config.data.eval_url else None


def open_stream(
    config: RunConfig, selection: Selection, place: Place, plan: Plan | None = None, start: tuple[int, int] = (0, 0)
) -> Stream:
    """Open a rank's share of a selection: endlessly along a training plan from a cursor, or once for evaluation."""
    train = plan is not None
    data = config.data
    return Stream(
        selection.index,
        plan or make_plan(config, selection, shuffle=False),
        GeometricTransform(config.augment, data.image_size, selection.header.fields, config.seed, train=train),
        data,
        rank=place.rank,
        world_size=place.world_size,
        start=start,
        epochs=None if train else 1,
    )


def make_plan(config: RunConfig, selection: Selection, *, shuffle: bool) -> Plan:
    """Plan the epochs of what was selected; evaluation (`shuffle=False`) takes every sample once, in order."""
    data = config.data
    return Plan(
        selection.index.num_samples,
        batch_size=data.batch_size,
        lanes=data.lanes,
        seed=config.seed,
        shuffle=shuffle,
        block=data.shuffle_block,
        pools=selection.pools,
    )


def make_schedule(config: RunConfig, steps_per_epoch: int) -> Schedule:
    """Say what happens after which step of the run."""
    total = config.train.epochs * steps_per_epoch
    return Schedule(
        steps_per_epoch=steps_per_epoch,
        total_steps=min(total, config.train.max_steps or total),
        batch_size=config.data.batch_size,
        report_every_steps=config.train.report_every_steps,
        evaluate_every_epochs=config.train.evaluate_every_epochs,
        checkpoint_every_epochs=config.train.checkpoint_every_epochs,
        checkpoint_every_steps=config.train.checkpoint_every_steps,
    )


def reseed(seed: int, rank: int, micro_step: int, device: torch.device) -> None:
    """Seed dropout and drop-path of a micro-step, so that a resumed run draws what the uninterrupted one does.

    Only the generators that a step draws from: `torch.manual_seed` looks at every kind of device there is, for 0.3 ms.
    """
    words = rng.draws(seed, rank, np.array([micro_step]), rng.Stream.DROPOUT, 2)[0]
    number = int(words[0]) << 32 | int(words[1])
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)  # of the current device, which is this rank's


def seed_torch(seed: int) -> None:
    """Seed torch's own generators, which initialisation and dropout draw from."""
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]  # partial in torch
