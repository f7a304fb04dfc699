"""Evaluation of a saved run, in this process."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from hmtl_dist.config.io import home
from hmtl_dist.engine.base import EngineState
from hmtl_dist.engine.checkpoint import checkpoint_at, load_checkpoint
from hmtl_dist.errors import UserError
from hmtl_dist.inference.info import Weights
from hmtl_dist.run_config import TrainConfig
from hmtl_dist.train.best import BEST_STEP
from hmtl_dist.train.evaluate import Evaluation
from hmtl_dist.train.parts import evaluate_state
from hmtl_dist.train.saving import OBJECTIVE, find_checkpoint, read_entries, saved_config


@dataclass(frozen=True)
class Chosen:
    """A run's checkpoint, read; its state holds an average only where that is what was chosen."""

    checkpoint: str
    state: EngineState
    extras: dict[str, dict[str, Tensor]]
    manifest: dict[str, Any]
    weights: Weights
    """Which weights they are."""


def evaluate_run(
    run: str,
    *,
    split: str | None = None,
    data: str | None = None,
    weights: Weights | None = None,
    groups: Mapping[str, Sequence[float]] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Evaluation, str]:
    """Evaluate a run's last checkpoint; EMA weights where the run kept them, unless others are asked for.

    Args:
        run: Name of a run in the home folder, or folder or URL of a run or of one checkpoint.
        split: Split to evaluate on; the run's own `data.eval_split` by default.
        data: Data set to evaluate on; the run's own by default.
        weights: The `last` weights, their moving average (`ema`), or those of the `best` evaluation's checkpoint.
        groups: Labels whose groups are told apart, with where those of a number end, or nothing for the run's own
            bands; the run's own `train.groups`, as far as the data have them, by default.
        on_progress: Called with the pictures read and the pictures in all.

    Returns:
        What was found, and the checkpoint it was found with.

    Raises:
        UserError: There is no such run or checkpoint, or its data cannot be read.
    """
    chosen = load_weights(run, weights)
    checkpoint, manifest = chosen.checkpoint, chosen.manifest
    config, entries = saved_config(manifest), read_entries(manifest)
    changes: dict[str, str | None] = {"eval_split": split} if split is not None else {}
    if data is not None:
        changes |= {"url": data, "eval_url": None}
    whole = {"folds": None, "fold": 0} if changes else {}  # what is named is evaluated whole
    config = config.model_copy(update={"data": config.data.model_copy(update=changes | whole)})
    if groups is not None:
        bands = {label: tuple(edges) for label, edges in groups.items() if edges}
        told = {"groups": tuple(groups), "bands": config.train.bands | bands}
        train = TrainConfig.model_validate(config.train.model_dump() | told)
        config = config.model_copy(update={"train": train})
    evaluation = evaluate_state(
        config,
        chosen.state,
        chosen.extras[OBJECTIVE],
        entries.fields,
        entries.label_counts,
        strict_groups=groups is not None,
        on_progress=on_progress,
    )
    return evaluation, checkpoint


def load_weights(run: str, weights: Weights | None = None) -> Chosen:
    """Read the checkpoint of a run that holds the weights asked for; by default the averaged ones where there are some.

    Args:
        run: Name of a run in the home folder, or folder or URL of a run or of one checkpoint.
        weights: The `last` weights, their moving average (`ema`), or those of the `best` evaluation's checkpoint.

    Raises:
        UserError: There is no such run or checkpoint, or it has no such weights.
    """
    if weights is not None and weights not in get_args(Weights):
        raise UserError(f"weights: given '{weights}', allowed are {', '.join(get_args(Weights))}")
    checkpoint, state, extras, manifest = load_run(run)
    if weights == "best":
        checkpoint = _best_of(checkpoint, manifest)
        state, extras, manifest = load_checkpoint(checkpoint)
    if weights == "ema" and not state.ema:
        raise UserError(f"{checkpoint}: the run kept no averaged weights (engine.ema_decay=0); use --weights last")
    if weights == "last":
        state.ema = {}
    return Chosen(checkpoint, state, extras, manifest, weights or ("ema" if state.ema else "last"))


def _best_of(checkpoint: str, manifest: Mapping[str, Any]) -> str:
    """Return the checkpoint of the best evaluation that a checkpoint knows of."""
    folder = checkpoint.rsplit("/", 1)[0]
    step = manifest["metrics"].get(BEST_STEP)
    if step is None:
        raise UserError(f"{checkpoint}: the run told no best evaluation apart; train with train.monitor set")
    return checkpoint_at(folder, int(step))


def load_run(run: str) -> tuple[str, EngineState, dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read the checkpoint that a run's name, folder or URL, or a checkpoint's own, stands for.

    Raises:
        UserError: There is none.
    """
    if "://" not in run and "/" not in run and not Path(run).is_dir():
        run = str(home() / "runs" / run)
    found = find_checkpoint(run)
    if found is None:
        raise UserError(f"{run}: no run and no complete checkpoint there; `hmtl-dist runs ls` shows the runs")
    return found
