"""The trained model that a name stands for: a run, a checkpoint, a stored model's folder, a registered version."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from hmtl_dist.config.explain import explain
from hmtl_dist.data.stream.selection import Selection
from hmtl_dist.errors import UserError
from hmtl_dist.export.folder import is_model, open_model
from hmtl_dist.inference.folder import write_model
from hmtl_dist.inference.info import ModelInfo, Origin, Weights
from hmtl_dist.inference.predictor import Predictor
from hmtl_dist.launch.evaluate import load_weights
from hmtl_dist.model.hmtl import HMTLModel
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tasks.base import SingleRank
from hmtl_dist.tasks.objective import Objective
from hmtl_dist.tasks.supervised import SupervisedTask
from hmtl_dist.temporary import temporary_folder
from hmtl_dist.tracking.config import TrackingConfig
from hmtl_dist.tracking.registry import SCHEME, download_version, find_version
from hmtl_dist.train.base import RankContext
from hmtl_dist.train.origin import evaluated_on, origin_of
from hmtl_dist.train.parts import build_parts
from hmtl_dist.train.saving import read_config, read_entries, saved_config
from hmtl_dist.train.streams import evaluation_of, open_stream


@dataclass(frozen=True)
class TrainedModel:
    """A run's model as it was trained, with all its heads."""

    config: RunConfig
    evaluation: Selection
    model: HMTLModel
    objective: Objective
    origin: Origin

    def write(self, folder: Path, heads: Sequence[str] = ()) -> None:
        """Write what inference keeps of it."""
        write_model(
            folder,
            self.model.state_dict(),
            config=self.config.model,
            augment=self.config.augment,
            image_size=self.config.data.image_size,
            tasks=self.objective.tasks,
            origin=self.origin,
            heads=heads,
        )

    @torch.inference_mode()
    def answer(self, images: Tensor) -> dict[str, Tensor]:
        """Answer pictures in [0, 1], float `[B, 3, H, W]`, as evaluation reads it: `[B, classes or labels]` by task."""
        outputs = self.model.predict(images)
        answers: dict[str, Tensor] = {}
        for task in self.objective.tasks:
            if isinstance(task, SupervisedTask):
                answers[task.name] = task.answer(outputs[task.name])
        return answers


def load_trained(run: str, weights: Weights | None = None) -> TrainedModel:
    """Build the model of a run's checkpoint.

    Args:
        run: Name of a run in the home folder, or folder or URL of a run or of one checkpoint.
        weights: Which of its weights; the averaged ones where there are some by default.

    Raises:
        UserError: There is no such run, its data cannot be read, or it has no supervised task.
    """
    chosen = load_weights(run, weights)
    config, entries = saved_config(chosen.manifest), read_entries(chosen.manifest)
    evaluation = evaluation_of(config, entries.fields)
    parts = build_parts(_bare(config), evaluation.header, SingleRank())
    if all(task.is_pretext for task in parts.objective.tasks):
        raise UserError(f"{run}: has no supervised task, so there is no model that predicts")
    parts.model.load_state_dict(chosen.state.ema or chosen.state.model)
    elsewhere = config.data.eval_url is not None
    origin = origin_of(
        config,
        (config.data.url if elsewhere else evaluation.header.dataset, entries.data_digest),
        evaluation,
        entries.fields,
        global_step=chosen.state.counters["global_step"],
        weights=chosen.weights,
        metrics=entries.metrics,
        trained_with=entries.versions,
    )
    return TrainedModel(config, evaluation, parts.model.eval(), parts.objective, origin)


def _bare(config: RunConfig) -> RunConfig:
    """Leave out what a network would be fetched for: weights that are replaced, and losses that are not computed."""
    tasks = {name: task.without_frozen_network() for name, task in config.tasks.items()}
    model = config.model.model_copy(update={"pretrained": False})
    return config.model_copy(update={"model": model, "tasks": tasks})


@contextmanager
def stored_model(source: str, tracking: TrackingConfig) -> Generator[Path | None]:
    """Yield the folder of a stored model, or None where the name is that of a run.

    Args:
        source: Folder of a stored model, or `models:/NAME@ALIAS`, `models:/NAME/VERSION`.
        tracking: Where MLflow is.

    Raises:
        UserError: There is no such registered model, or MLflow does not answer.
    """
    if source.startswith(SCHEME):
        with temporary_folder("model") as work:
            yield download_version(tracking, find_version(tracking, source), work)
    elif "://" not in source and is_model(Path(source).expanduser()):
        yield Path(source).expanduser()
    else:
        yield None


@contextmanager
def model_folder(source: str, tracking: TrackingConfig, weights: Weights | None = None) -> Generator[Path]:
    """Yield the folder of whatever can predict: a stored model, a registered version, a run or a checkpoint.

    Raises:
        UserError: There is none under that name.
    """
    with stored_model(source, tracking) as folder, temporary_folder("model") as work:
        if folder is None:
            load_trained(source, weights).write(work)
        elif weights is not None:
            raise UserError(f"weights {weights}: {source} holds one kind only; give the run to choose")
        yield folder or work


@contextmanager
def predictor_of(source: str, tracking: TrackingConfig, weights: Weights | None = None) -> Generator[Predictor]:
    """Open whatever can predict, as `model_folder` finds it.

    Raises:
        UserError: There is none under that name, or it is damaged.
    """
    with model_folder(source, tracking, weights) as folder:
        yield open_model(folder)


def read_pictures(config: RunConfig, evaluation: Selection, count: int) -> Tensor:
    """Read the first pictures of a test set, as evaluation sees them: float `[n, 3, H, W]` in [0, 1], n <= count.

    Raises:
        UserError: There are none, or they cannot be read.
    """
    data = config.data.model_copy(update={"num_workers": 0})
    parts: list[Tensor] = []
    with open_stream(config.model_copy(update={"data": data}), evaluation, RankContext.alone()) as stream:
        for batch in stream:
            parts.append(batch.images[batch.weight > 0].clone())
            if sum(map(len, parts)) >= count:
                break
    pictures = torch.cat(parts)[:count] if parts else torch.empty(0)
    if not len(pictures):
        raise UserError(f"{evaluation.sources[0].url}: holds no picture to compare with")
    return pictures.permute(0, 3, 1, 2).float() / 255


def open_test_set(info: ModelInfo, source: str, data: str | None = None) -> tuple[RunConfig, Selection]:
    """Open what a stored model was evaluated on.

    Args:
        info: What stands beside its weights.
        source: Its name, for errors.
        data: Where the test set is now; where it was by default.

    Returns:
        The configuration it was trained with, and the test set.

    Raises:
        UserError: The model does not say, or the data are not those any more.
    """
    if info.origin is None:
        raise UserError(f"{source}: does not say what it was evaluated on; give the run it comes from")
    try:
        config = read_config(info.origin.recipe)
    except ValidationError as error:
        raise UserError(f"{source}: its recipe is not of this version ({explain(error, RunConfig)})") from error
    if data is not None:
        url = "url" if config.data.eval_url is None else "eval_url"
        config = config.model_copy(update={"data": config.data.model_copy(update={url: data})})
    evaluation = evaluation_of(config, info.origin.fields)
    found, known = evaluated_on(config.data, evaluation), info.origin.test_set
    if found.digest != known.digest:
        raise UserError(
            f"{source}: was evaluated on {known.dataset}, split {known.split}, of digest {known.digest[:16]}; "
            f"{found.url} now has {found.digest[:16]}; say where the test set is with --data"
        )
    return config, evaluation
