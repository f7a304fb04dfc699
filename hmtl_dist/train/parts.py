"""The tasks of a run, the model that serves them, and what evaluates it, built from the configuration."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hmtl_dist import rng
from hmtl_dist.data.dataset.schema import Field, IndexHeader
from hmtl_dist.data.stream.batches import Batch
from hmtl_dist.data.stream.selection import Selection
from hmtl_dist.engine.base import EngineState
from hmtl_dist.engine.checkpoint import load_weights
from hmtl_dist.engine.ranks import read_by_first, tensors_of_first
from hmtl_dist.model.frozen import FrozenNet, build_frozen
from hmtl_dist.model.hmtl import HMTLModel
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tasks.base import Ranks, SingleRank
from hmtl_dist.tasks.objective import Objective
from hmtl_dist.tasks.registry import build_tasks
from hmtl_dist.train.base import RankContext
from hmtl_dist.train.evaluate import Evaluation, Evaluator
from hmtl_dist.train.groups import groupings_of
from hmtl_dist.train.inputs import InputMaker
from hmtl_dist.train.streams import evaluation_of, open_stream


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
    frozen = build_frozen(config.tasks, config.model, read_weights)
    tasks = build_tasks(
        config.tasks, config.data.wanted(header.fields), header.label_counts, frozen, config.data.image_size
    )
    objective = Objective(tasks, config.weighting, ranks, config.augment)
    return Parts(objective, HMTLModel(config.model, objective.heads(), objective.wiring, objective.log_vars), frozen)


def read_weights(url: str) -> dict[str, Tensor]:
    """Read the weights of a checkpoint, once for all ranks; collective."""
    own: dict[str, Tensor] = {}
    read_by_first(lambda: own.update(load_weights(url)))
    return tensors_of_first(own)


def build_evaluator(
    config: RunConfig,
    objective: Objective,
    evaluation: Selection,
    batches: Callable[[], AbstractContextManager[Iterable[Batch]]],
    *,
    device: torch.device,
    ranks: Ranks,
    strict_groups: bool = True,
) -> Evaluator:
    """Build what evaluates the tasks of a run on a selection, without augmentation.

    Args:
        config: The configuration.
        objective: The tasks, as they are trained.
        evaluation: What is evaluated on.
        batches: Opens this rank's share of it, once.
        device: Where.
        ranks: The process group.
        strict_groups: Whether a label of `train.groups` that the data lack is an error; else it is left out.

    Raises:
        UserError: A group or figure that the configuration names is not there.
    """
    return Evaluator(
        objective=Objective(objective.tasks, config.weighting, ranks),
        ranks=ranks,
        device=device,
        inputs=InputMaker(device, config.seed),
        batches=batches,
        groupings=groupings_of(config, evaluation.header.fields, objective.tasks, strict=strict_groups),
        gap_metrics=config.train.gap_metrics,
    )


def evaluate_state(
    config: RunConfig,
    state: EngineState,
    objective_state: Mapping[str, Tensor],
    fields: Mapping[str, Field],
    label_counts: Mapping[str, Sequence[int]],
    *,
    strict_groups: bool = True,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Evaluate a saved state in this process, on the CPU or the first GPU; EMA weights where there are some.

    Args:
        config: The configuration that the state was trained with, `data` naming what to evaluate on.
        state: The engine's part of a checkpoint.
        objective_state: The objective's part.
        fields: The labels that it was trained on.
        label_counts: Samples of each class that it was trained on, for class weights; those of what is evaluated on
            where a checkpoint of before does not say them.
        strict_groups: Whether a label of `train.groups` that the data lack is an error; else it is left out.
        on_progress: Called with the pictures read and the pictures in all.

    Raises:
        UserError: The data cannot be read, or holds other labels.
    """
    device = torch.device("cuda" if config.launch.gpus_per_worker and torch.cuda.is_available() else "cpu")
    selection = evaluation_of(config, fields)
    counts = {name: [*numbers] for name, numbers in (label_counts or selection.header.label_counts).items()}
    parts = build_parts(config, selection.header.model_copy(update={"label_counts": counts}), SingleRank())
    parts.model.load_state_dict(state.ema or state.model)
    parts.model.to(device).eval()
    parts.follow(device)
    parts.objective.load_state(objective_state)
    rank_context = RankContext.alone(str(device))

    @contextmanager
    def batches() -> Generator[Iterable[Batch]]:
        with open_stream(config, selection, rank_context) as stream:
            yield counted(stream, selection.num_draws, on_progress)

    evaluator = build_evaluator(
        config,
        parts.objective,
        selection,
        batches,
        device=device,
        ranks=SingleRank(),
        strict_groups=strict_groups,
    )
    return evaluator(parts.model)


def counted(batches: Iterable[Batch], total: int, on_progress: Callable[[int, int], None]) -> Iterator[Batch]:
    """Yield batches and tell how many pictures have been taken of how many."""
    done = 0
    on_progress(done, total)
    for batch in batches:
        yield batch
        done = min(total, done + len(batch.images))
        on_progress(done, total)


def reseed(seed: int, rank: int, micro_step: int, device: torch.device) -> None:
    """Seed dropout and drop-path of a micro-step, so that a resumed run draws what the uninterrupted one does.

    Only the generators that a step draws from: `torch.manual_seed` looks at every kind of device there is, for 0.3 ms.
    """
    words = rng.draws(seed, rank, np.array([micro_step]), rng.Purpose.DROPOUT, 2)[0]
    number = int(words[0]) << 32 | int(words[1])
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)  # of the current device, which is this rank's


def seed_torch(seed: int) -> None:
    """Seed torch's own generators, which initialisation and dropout draw from."""
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]  # partial in torch
