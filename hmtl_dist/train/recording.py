"""What the first rank of a run records beside its figures: facts, data sets, confusion matrices and the model."""

import logging
from collections.abc import Mapping

from torch import Tensor

from hmtl_dist.config.io import describe, flatten
from hmtl_dist.data.stream.selection import Selection
from hmtl_dist.inference.folder import write_model
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tasks.objective import Objective
from hmtl_dist.tracking.base import Tracker
from hmtl_dist.tracking.facts import code_tags, versions
from hmtl_dist.tracking.jsonl import Journal
from hmtl_dist.tracking.plots import draw_learning_curves, read_curves, write_confusion_matrix
from hmtl_dist.tracking.sink import open_tracker
from hmtl_dist.train.base import RankContext
from hmtl_dist.train.evaluate import Evaluation
from hmtl_dist.train.origin import origin_of
from hmtl_dist.train.saving import Restored

logger = logging.getLogger(__name__)


class Recorder:
    """Records a run on behalf of its first rank.

    Args:
        config: The run's configuration.
        rank_context: Where this rank runs.
        training: What the run trains on.
        evaluation: What it is evaluated on.
        objective: Its tasks.
    """

    def __init__(
        self,
        config: RunConfig,
        rank_context: RankContext,
        training: Selection,
        evaluation: Selection,
        objective: Objective,
    ) -> None:
        self._config = config
        self._rank_context = rank_context
        self._training = training
        self._evaluation = evaluation
        self._objective = objective

    def open_journal(self, restored: Restored | None, global_step: int, initial: str | None) -> Journal:
        """Open the run's record and note what holds for the whole run.

        Args:
            restored: What the run goes on from.
            global_step: Optimizer step that it goes on from.
            initial: What a new run's weights were taken from.
        """
        config, run = self._config, self._rank_context.run
        elsewhere = restored.undelivered if restored else ()
        journal = open_tracker(run.recording, self._rank_context.scratch, global_step, elsewhere)
        journal.params(flatten(config) | versions() | {"data.digest": self._training.header.digest})
        tags = {"init_from": initial} if initial else {}
        journal.tags(code_tags() | tags | {"attempt": str(run.attempt)})
        for selection, context in ((self._training, "train"), (self._evaluation, "evaluation")):
            for source in selection.sources:
                place = f"{source.url}/{source.split}"
                profile = {"num_samples": source.chosen, "num_shards": source.shards, "draws": source.draws}
                journal.dataset(source.dataset, source.digest, place, context, profile)
        try:
            recipe = self._rank_context.scratch / "config.yaml"
            recipe.write_text(describe(config), encoding="utf-8")
            journal.artifact(recipe)
        except OSError as error:  # a full disk here must not cost a run whose checkpoints are elsewhere
            logger.warning("cannot write the configuration for MLflow: %s", error)
        return journal

    def confusions(self, evaluation: Evaluation, step: int, tracker: Tracker) -> None:
        """Record the confusion matrices of an evaluation."""
        try:
            for name, (classes, matrix) in evaluation.confusions.items():
                for path in write_confusion_matrix(
                    self._rank_context.scratch / f"step-{step:08d}", name, matrix, classes
                ):
                    tracker.artifact(path, f"evaluation/step-{step:08d}")
        except OSError as error:  # a full disk here must not cost a run whose checkpoints are elsewhere
            logger.warning("cannot write the confusion matrices of step %d: %s", step, error)

    def model(
        self, journal: Journal, weights: Mapping[str, Tensor], global_step: int, metrics: Mapping[str, float]
    ) -> None:
        """Record the trained model, if it has a supervised head that could predict, and the learning curves."""
        config = self._config
        if not all(task.is_pretext for task in self._objective.tasks):
            folder = self._rank_context.scratch / "model"
            header = self._training.header
            origin = origin_of(
                config,
                (header.dataset, header.digest),
                self._evaluation,
                header.fields,
                global_step=global_step,
                weights="ema" if config.engine.ema_decay > 0 else "last",
                metrics=metrics,
            )
            write_model(
                folder,
                weights,
                config=config.model,
                augment=config.augment,
                image_size=config.data.image_size,
                tasks=self._objective.tasks,
                origin=origin,
            )
            journal.model(folder)
        curves = read_curves(journal.path)
        journal.picture("learning_curves", draw_learning_curves(curves), global_step)
