"""Evaluation: every picture of a split once, whatever the world size; supervised heads see the clean picture."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hmtl_dist.data.stream.batches import Batch
from hmtl_dist.model.hmtl import HMTLModel
from hmtl_dist.tasks.base import CLEAN, Inputs, Prepared, Ranks
from hmtl_dist.tasks.objective import Objective
from hmtl_dist.tasks.supervised import SupervisedTask
from hmtl_dist.train.groups import Grouping, GroupMetrics
from hmtl_dist.train.inputs import Feed, InputMaker, copier_of

NUM_PICTURES = 4
"""Samples on a sheet of a pretext task."""
PICTURE = 128
"""Least side of a picture there, in pixels."""
MARGIN = 4
CAPTION = 24
"""Height of the line of captions, in pixels."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found; figures and confusion matrices are equal on every rank."""

    metrics: dict[str, float]
    """Figures by `eval/TASK/METRIC`."""
    confusions: dict[str, tuple[tuple[str, ...], NDArray[np.int64]]] = field(
        default_factory=dict[str, tuple[tuple[str, ...], NDArray[np.int64]]]
    )
    """Class names and counts `[K, K]` (row = true class) of each classification, by task."""
    pictures: dict[str, NDArray[np.uint8]] = field(default_factory=dict[str, NDArray[np.uint8]])
    """Sheets of this rank's first samples by pretext task, uint8 `[H, W, 3]`."""
    num_samples: int = 0
    """Pictures that were evaluated, over all ranks."""


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a model on one split.

    The pretext tasks are evaluated too, on puzzles and masks drawn as in epoch 0, the same every time.
    """

    objective: Objective
    """The tasks, without augmentation."""
    ranks: Ranks
    device: torch.device
    inputs: InputMaker
    batches: Callable[[], AbstractContextManager[Iterable[Batch]]]
    """Opens this rank's share of the split: one pass, the last batch padded; closed after it."""
    groupings: Sequence[Grouping] = ()
    """What tells groups apart whose figures are told too."""
    gap_metrics: Sequence[str] = ()
    """Which figures, as `TASK/METRIC`; none means all."""

    def __call__(self, model: HMTLModel, *, pictures: bool = False) -> Evaluation:
        """Evaluate the model, which must be in evaluation mode; collective."""
        tasks = self.objective.tasks
        supervised = {task.name: task for task in tasks if isinstance(task, SupervisedTask)}
        meters = {name: task.metrics(self.device, self.ranks) for name, task in supervised.items()}
        by_group = GroupMetrics(tasks, self.groupings, self.gap_metrics, self.device, self.ranks)
        pretext = [task for task in tasks if task.is_pretext]
        sums: Tensor | None = None
        losses = torch.zeros(len(supervised), 2, dtype=torch.float64, device=self.device)
        sheets: dict[str, NDArray[np.uint8]] = {}
        num_samples = torch.zeros(1, dtype=torch.float64, device=self.device)
        with torch.inference_mode(), self.batches() as batches:
            for batch in Feed(batches, copier_of(self.device)):
                for inputs in self.inputs(batch):
                    num_samples += (inputs.weight > 0).sum()
                    predicted = {name: output.float() for name, output in model.predict(inputs.images).items()}
                    for name, output in predicted.items():
                        meters[name].update(output, inputs.labels, inputs.weight)
                    by_group.update(predicted, inputs.labels, inputs.weight)
                    losses += self._losses(supervised, predicted, inputs)
                    if not pretext:
                        continue
                    views, prepared = self.objective.prepare(inputs)
                    outputs = model(views)
                    batch_sums = self.objective.sums(outputs, prepared, inputs)
                    sums = batch_sums if sums is None else sums + batch_sums
                    if pictures and not sheets:
                        for task in pretext:
                            own = inputs.every(task.every)
                            if shown := task.illustrate(outputs[task.name], prepared[task.name], own):
                                sheets[task.name] = sheet(shown)
        metrics = {
            f"eval/{name}/{key}": value for name, counted in meters.items() for key, value in counted.compute().items()
        }
        totals, counts = self.ranks.all_reduce_sum(losses).unbind(1)
        # NaN where nothing was counted
        metrics |= {f"eval/{name}/loss": float(mean) for name, mean in zip(supervised, totals / counts, strict=True)}
        if sums is not None:
            metrics |= self._pretext_metrics(sums, {task.name for task in pretext})
        metrics |= {f"eval/{name}": value for name, value in by_group.compute().items()}
        return Evaluation(
            # what nothing was counted for is left out: JSON and MLflow have no number for it
            metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
            confusions={
                name: (supervised[name].reading().names, matrix)
                for name, counted in meters.items()
                if (matrix := counted.confusion()) is not None
            },
            pictures=sheets,
            num_samples=int(self.ranks.all_reduce_sum(num_samples).item()),
        )

    def _losses(
        self, supervised: Mapping[str, SupervisedTask], predicted: Mapping[str, Tensor], inputs: Inputs
    ) -> Tensor:
        """Sum and count of each supervised task's loss on clean pictures, float64 `[tasks, 2]`."""
        terms = [
            task.loss({CLEAN: predicted[name]}, Prepared(), inputs, self.ranks) for name, task in supervised.items()
        ]
        sums = [torch.stack((term.sum, term.count)).double() for term in terms]
        return torch.stack(sums) if sums else torch.zeros(0, 2, dtype=torch.float64, device=self.device)

    def _pretext_metrics(self, sums: Tensor, names: set[str]) -> dict[str, float]:
        found = self.objective.means(self.ranks.all_reduce_sum(sums))
        metrics = {f"eval/{name}/loss": float(value) for name, value in found.losses.items() if name in names}
        metrics |= {
            f"eval/{name}": float(value) for name, value in found.metrics.items() if name.split("/")[0] in names
        }
        return metrics


def sheet(strips: Mapping[str, Tensor]) -> NDArray[np.uint8]:
    """Lay pictures out side by side under their captions, one row a sample, small ones enlarged.

    Args:
        strips: Columns from left to right by caption, each float `[B, 3, H, W]` in [0, 1].

    Returns:
        RGB pixels, uint8 `[height, width, 3]`, of at most `NUM_PICTURES` samples.
    """
    columns = [
        (strip[:NUM_PICTURES].float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        for strip in strips.values()
    ]
    scale = max(1, -(-PICTURE // columns[0].shape[2]))
    rows, (height, width) = len(columns[0]), (scale * side for side in columns[0].shape[1:3])
    size = len(columns) * (width + MARGIN) + MARGIN, CAPTION + rows * (height + MARGIN)
    drawn = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(drawn), ImageFont.load_default(CAPTION - 2 * MARGIN)
    for column, (caption, pictures) in enumerate(zip(strips, columns, strict=True)):
        left = MARGIN + column * (width + MARGIN)
        draw.text((left, MARGIN), caption, "black", font)
        for row, picture in enumerate(pictures):
            enlarged = picture.repeat(scale, axis=0).repeat(scale, axis=1)
            drawn.paste(Image.fromarray(enlarged), (left, CAPTION + row * (height + MARGIN)))
    return np.asarray(drawn)
