"""Builds everything one rank trains with, from the configuration, and runs the loop."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hmtl_dist import rng
from hmtl_dist.augment import GeometricTransform
from hmtl_dist.config.io import flatten
from hmtl_dist.data.plan import Plan
from hmtl_dist.data.schema import Field, IndexHeader
from hmtl_dist.data.shards import ShardIndex, open_index
from hmtl_dist.data.stream import Stream
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
from hmtl_dist.train.base import Listener, Outcome, Place
from hmtl_dist.train.evaluate import Evaluation, Evaluator
from hmtl_dist.train.inputs import InputMaker
from hmtl_dist.train.loop import Run, Share, train
from hmtl_dist.train.saving import Saver, check_fields
from hmtl_dist.train.schedule import Schedule

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
    with closing(trainee.engine):
        return _train(trainee, listener)


def _train(trainee: "Trainee", listener: Listener) -> Outcome:
    config, place = trainee.config, trainee.place
    restored = trainee.saver.restore()
    tracker = SilentTracker() if place.rank else trainee.open_journal()
    status: RunStatus = "FAILED"
    try:
        with trainee.open_train_stream() as stream:
            outcome = train(
                Run(
                    shares=trainee.shares(stream),
                    objective=trainee.objective,
                    engine=trainee.engine,
                    schedule=trainee.schedule,
                    tracker=tracker,
                    listener=listener,
                    shows=place.rank == 0,
                    reseed=lambda micro_step: reseed(config.seed, place.rank, micro_step),
                    evaluate=lambda step: trainee.evaluate(step, tracker),
                    save=trainee.saver.save,
                    waited=lambda: stream.stats.wait_seconds,
                    metrics=restored.metrics if restored else {},
                    checkpoint=restored.checkpoint if restored else None,
                )
            )
        if outcome.status == "FINISHED" and isinstance(tracker, Journal):
            trainee.record_model(tracker)
        status = "FINISHED" if outcome.status == "FINISHED" else "KILLED"
    except KeyboardInterrupt:
        status = "KILLED"
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
        ranks: Ranks = TorchRanks() if dist.is_initialized() else SingleRank()
        self._train_index = open_index(config.data.url, config.data.train_split)
        self._eval_index = open_index(config.data.url, config.data.eval_split)
        self._plan = make_plan(config, self._train_index, shuffle=True)
        self.schedule = make_schedule(config, self._plan.steps_per_epoch)

        header = self._train_index.header
        check_fields(header.fields, self._eval_index.header.fields, f"split {config.data.eval_split}")
        parts = build_parts(config, header, ranks)
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
            self.device, config.seed, micro_batches=config.engine.accumulation_steps, augment=config.augment
        )
        self._evaluator = Evaluator(
            objective=Objective(self.objective.tasks, config.weighting, ranks),
            ranks=ranks,
            device=self.device,
            inputs=InputMaker(self.device, config.seed),
            batches=lambda: open_stream(config, self._eval_index, place),
        )

    def open_train_stream(self) -> Stream:
        """Open the endless stream of this rank's training batches, at the cursor."""
        cursor = divmod(self.engine.global_step, self._plan.steps_per_epoch)
        return open_stream(self.config, self._train_index, self.place, self._plan, cursor)

    def shares(self, stream: Stream) -> Iterator[Share]:
        """Yield this rank's part of each global batch, until the schedule ends."""
        if self.schedule.ends(self.engine.global_step):
            return
        for batch in stream:
            yield Share(self._plan.batch_size, self._inputs(batch))

    def evaluate(self, step: int, tracker: Tracker) -> dict[str, float]:
        """Evaluate, record pictures and confusion matrices, and return the figures; collective."""
        pictures = self.place.rank == 0 and self.config.tracking.pictures
        evaluation: Evaluation = self._evaluator(cast("HMTLModel", self.engine.evaluation_module()), pictures=pictures)
        for name, picture in evaluation.pictures.items():
            tracker.picture(name, picture, step)
        if self.place.rank == 0:
            try:
                self._record_confusions(evaluation, step, tracker)
            except OSError as error:  # a full disk here must not cost a run whose checkpoints are elsewhere
                logger.warning("cannot write the confusion matrices of step %d: %s", step, error)
        return evaluation.figures

    def _record_confusions(self, evaluation: Evaluation, step: int, tracker: Tracker) -> None:
        for name, (classes, matrix) in evaluation.confusions.items():
            for path in write_confusion_matrix(self.place.scratch / f"step-{step:08d}", name, matrix, classes):
                tracker.artifact(path, f"evaluation/step-{step:08d}")

    def open_journal(self) -> Journal:
        """Open the run's record and note what holds for the whole run."""
        config, header = self.config, self._train_index.header
        journal = open_tracker(config.tracking, self.place.scratch)
        journal.params(flatten(config) | versions() | {"data.digest": header.digest})
        journal.tags(code_tags())
        for index, context in ((self._train_index, "train"), (self._eval_index, "evaluation")):
            profile = {"num_samples": index.header.num_samples, "num_shards": index.header.num_shards}
            source = f"{config.data.url.rstrip('/')}/{index.header.split}"
            journal.dataset(index.header.dataset, index.header.digest, source, context, profile)
        return journal

    def record_model(self, journal: Journal) -> None:
        """Record the trained model and the learning curves."""
        folder = self.place.scratch / "model"
        write_model(
            folder,
            self.engine.evaluation_module().state_dict(),
            config=self.config.model,
            augment=self.config.augment,
            image_size=self.config.data.image_size,
            tasks=self.objective.tasks,
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
    config: RunConfig, state: EngineState, objective_state: Mapping[str, Tensor], fields: Mapping[str, Field]
) -> Evaluation:
    """Evaluate a saved state in this process, on the CPU or the first GPU; EMA weights where there are some.

    Args:
        config: The configuration that the state was trained with, `data` naming what to evaluate on.
        state: The engine's part of a checkpoint.
        objective_state: The objective's part.
        fields: The labels that it was trained on.

    Raises:
        UserError: The data cannot be read, or holds other labels.
    """
    device = torch.device("cuda" if config.launch.gpus_per_worker and torch.cuda.is_available() else "cpu")
    index = open_index(config.data.url, config.data.eval_split)
    check_fields(fields, index.header.fields, config.data.url)
    parts = build_parts(config, index.header, SingleRank())
    parts.model.load_state_dict(state.ema or state.model)
    parts.model.to(device).eval()
    parts.follow(device)
    parts.objective.load_state(objective_state)
    place = Place(0, 1, 0, str(device), Path(), "")
    evaluator = Evaluator(
        objective=Objective(parts.objective.tasks, config.weighting, SingleRank()),
        ranks=SingleRank(),
        device=device,
        inputs=InputMaker(device, config.seed),
        batches=lambda: open_stream(config, index, place),
    )
    return evaluator(parts.model)


def open_stream(
    config: RunConfig, index: ShardIndex, place: Place, plan: Plan | None = None, start: tuple[int, int] = (0, 0)
) -> Stream:
    """Open a rank's share of a split: endlessly along a training plan from a cursor, or once for evaluation."""
    train = plan is not None
    data = config.data
    return Stream(
        index,
        plan or make_plan(config, index, shuffle=False),
        GeometricTransform(config.augment, data.image_size, index.header.fields, config.seed, train=train),
        data,
        rank=place.rank,
        world_size=place.world_size,
        start=start,
        epochs=None if train else 1,
    )


def make_plan(config: RunConfig, index: ShardIndex, *, shuffle: bool) -> Plan:
    """Plan the epochs of a split; evaluation (`shuffle=False`) takes every sample once, in order."""
    data = config.data
    return Plan(
        index.num_samples,
        batch_size=data.batch_size,
        lanes=data.lanes,
        seed=config.seed,
        shuffle=shuffle,
        block=data.shuffle_block,
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


def reseed(seed: int, rank: int, micro_step: int) -> None:
    """Seed dropout and drop-path of a micro-step, so that a resumed run draws what the uninterrupted one does."""
    words = rng.draws(seed, rank, np.array([micro_step]), rng.Stream.DROPOUT, 2)[0]
    seed_torch(int(words[0]) << 32 | int(words[1]))


def seed_torch(seed: int) -> None:
    """Seed torch's own generators, which initialisation and dropout draw from."""
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]  # partial in torch
