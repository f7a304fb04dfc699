"""A stored model asked about every picture of a test set: who was right, and how far off.

Shape legend: N pictures, B of them in a batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl_dist.data.stream.selection import Selection
from hmtl_dist.inference.predictor import Predictor
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tasks.reading import HeadOutput
from hmtl_dist.tasks.registry import build_tasks
from hmtl_dist.tasks.supervised import SupervisedTask
from hmtl_dist.train.base import RankContext
from hmtl_dist.train.streams import open_stream


@dataclass(frozen=True)
class Asked:
    """What a model said of the test set, in the order of the sample ids `[N]`."""

    sample_ids: NDArray[np.int64]
    scores: Mapping[str, NDArray[np.float64]]
    """By task, `[N]`: 1 or 0 for right or wrong classes, absolute errors of numbers; NaN where there is no label."""


def ask(
    predictor: Predictor,
    config: RunConfig,
    evaluation: Selection,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Asked:
    """Ask a model about every picture of a test set.

    Args:
        predictor: The model.
        config: Configuration it was trained with.
        evaluation: The test set.
        on_progress: Called with pictures done and all pictures, after every batch.

    Raises:
        UserError: The pictures cannot be read.
    """
    readings = predictor.info.tasks
    header = evaluation.header
    predicting = {name: task for name, task in config.tasks.items() if name in readings}
    built = build_tasks(predicting, header.fields, header.label_counts, {}, config.data.image_size)
    tasks = [task for task in built if isinstance(task, SupervisedTask)]
    total, done = sum(source.chosen for source in evaluation.sources), 0
    ids: list[Tensor] = []
    scores: dict[str, list[Tensor]] = {name: [] for name in readings}
    with open_stream(config, evaluation, RankContext.alone()) as stream:
        for batch in stream:
            said = predictor.answer(batch.images.permute(0, 3, 1, 2).float() / 255)
            counts = batch.weight > 0
            ids.append(batch.sample_ids[counts])
            for task in tasks:
                score = _score(task, readings[task.name], said[task.name], batch.labels)
                scores[task.name].append(score[counts])
            done += int(counts.sum())
            on_progress(done, total)
    order = torch.cat(ids).argsort()
    return Asked(
        torch.cat(ids)[order].numpy(),
        {name: torch.cat(parts)[order].double().numpy() for name, parts in scores.items()},
    )


def metric_of(reading: HeadOutput) -> str:
    """Name what the mean of a head's scores is."""
    if reading.type == "classification":
        return "accuracy"
    return "mean error in scales" if reading.mixes_units else "mean error"


def _score(task: SupervisedTask, reading: HeadOutput, said: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
    """Return how right each answer `[B, names]` is, `[B]`; NaN where there is no label."""
    scores = task.score(said, labels)
    if reading.mixes_units:
        scores = scores / scores.new_tensor(reading.scale)
    return scores.nanmean(1)
