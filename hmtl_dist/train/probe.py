"""Linear and non-linear evaluation of frozen features: a head learned on all folds but one, told of on that one.

Shape legend: N samples, F features, K classes.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from hmtl_dist.config.base import Section
from hmtl_dist.data.dataset.split import apportion
from hmtl_dist.errors import UserError
from hmtl_dist.train.features import Features

Head = Literal["linear", "mlp"]


class ProbeSettings(Section):
    """How a head is learned on frozen features."""

    head: Head = "linear"
    """`linear`: one layer (multinomial logistic regression); `mlp`: one hidden layer."""
    folds: Annotated[int, Field(ge=2, le=250)] = 10
    """Parts of the samples that share no group; each is held out once."""
    epochs: Annotated[int, Field(ge=1)] = 100
    """Passes over the other folds."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Samples of a step."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Of AdamW, falling to 0 along a cosine."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Of AdamW."""
    hidden: Annotated[int, Field(ge=1)] = 256
    """Units of the hidden layer."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Before the last layer of `mlp`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Moves the folds, the head's initialisation and the order of samples."""


class ProbeMetrics(Section):
    """Accuracy of a head on folds that it has not seen."""

    last: float
    """Mean over folds of the accuracy after the last epoch: the honest figure."""
    max: float
    """Mean over folds of the best epoch's accuracy, chosen on the held-out fold itself: for comparison alone."""
    last_by_fold: tuple[float, ...]
    max_by_fold: tuple[float, ...]
    samples_by_fold: tuple[int, ...]
    groups_by_fold: tuple[int, ...]
    """People, or whatever the groups are, of each fold."""


def probe(features: Features, settings: ProbeSettings) -> ProbeMetrics:
    """Learn a head for every fold, and tell how it does on it.

    Raises:
        UserError: There are fewer groups than folds, or a group would fall to two folds.
    """
    labelled = features.labels >= 0
    inputs = torch.as_tensor(features.features[labelled])
    labels, groups = torch.as_tensor(features.labels[labelled]), features.groups[labelled]
    folds = make_folds(groups, features.labels[labelled], settings.folds, settings.seed)
    curves: list[list[float]] = []
    for fold in range(settings.folds):
        held_out = torch.as_tensor(folds == fold)
        curves.append(_learn(inputs, labels, held_out, len(features.classes), settings, fold))
    lasts, bests = [curve[-1] for curve in curves], [max(curve) for curve in curves]
    return ProbeMetrics(
        last=float(np.mean(lasts)),
        max=float(np.mean(bests)),
        last_by_fold=tuple(lasts),
        max_by_fold=tuple(bests),
        samples_by_fold=tuple(int((folds == fold).sum()) for fold in range(settings.folds)),
        groups_by_fold=tuple(len(np.unique(groups[folds == fold])) for fold in range(settings.folds)),
    )


def make_folds(groups: NDArray[np.uint64], labels: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.uint8]:
    """Return the fold of each sample `[N]`: whole groups, every class in its share as nearly as groups allow.

    Raises:
        UserError: There are fewer groups than folds, or a group would fall to two folds.
    """
    number = len(np.unique(groups))
    if number < folds:
        raise UserError(f"--folds {folds}: there are only {number} groups with a label; use at most {number}")
    found = apportion(groups, labels, [1 / folds] * folds, seed)
    check_folds(groups, found)
    if len(np.unique(found)) < folds:
        raise UserError(f"--folds {folds}: {number} groups of unequal size leave a fold empty; use fewer folds")
    return found


def check_folds(groups: NDArray[np.uint64], folds: NDArray[np.uint8]) -> None:
    """See that nobody is in two folds: frames of one person are near-duplicates, and would flatter any head.

    Raises:
        UserError: Somebody is.
    """
    pairs = np.unique(np.column_stack([groups, folds.astype(np.uint64)]), axis=0)
    shared = len(pairs) - len(np.unique(groups))
    if shared:
        raise UserError(f"{shared} groups would fall to more than one fold; no figure would mean anything")


def build_head(num_features: int, num_classes: int, settings: ProbeSettings) -> nn.Module:
    """Build the head: one linear layer, or one hidden layer with ReLU and dropout."""
    if settings.head == "linear":
        return nn.Linear(num_features, num_classes)
    return nn.Sequential(
        nn.Linear(num_features, settings.hidden),
        nn.ReLU(),
        nn.Dropout(settings.dropout),
        nn.Linear(settings.hidden, num_classes),
    )


def _learn(
    inputs: Tensor, labels: Tensor, held_out: Tensor, num_classes: int, settings: ProbeSettings, fold: int
) -> list[float]:
    """Learn a head on what is not held out; returns its accuracy on what is, after every epoch."""
    train, targets = inputs[~held_out], labels[~held_out]
    # Standardised by the folds that are learned on, with nothing of the one that is held out.
    mean, spread = train.mean(0), train.std(0).clamp_min(1e-6)
    train, test = (train - mean) / spread, (inputs[held_out] - mean) / spread
    truth = labels[held_out]
    with torch.random.fork_rng(devices=()):  # pyright: ignore[reportUnknownMemberType]  # partial in torch
        torch.manual_seed(settings.seed * 1000 + fold)  # pyright: ignore[reportUnknownMemberType]  # partial in torch
        head = build_head(inputs.shape[1], num_classes, settings)
        optimizer = torch.optim.AdamW(head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
        curve: list[float] = []
        for _ in range(settings.epochs):
            head.train()
            order = torch.randperm(len(train))
            for start in range(0, len(train), settings.batch_size):
                rows = order[start : start + settings.batch_size]
                optimizer.zero_grad()
                F.cross_entropy(head(train[rows]), targets[rows]).backward()  # pyright: ignore[reportUnknownMemberType]
                optimizer.step()  # pyright: ignore[reportUnknownMemberType]
            schedule.step()
            curve.append(_accuracy(head, test, truth))
    return curve


def _accuracy(head: nn.Module, inputs: Tensor, truth: Tensor) -> float:
    head.eval()
    with torch.inference_mode():
        return float((head(inputs).argmax(1) == truth).double().mean())


def percent(values: Sequence[float]) -> str:
    """Write accuracies of folds in percent."""
    return " ".join(f"{100 * value:.1f}" for value in values)
