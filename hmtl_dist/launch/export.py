"""A trained model exported: written, opened again, compared with the model that was trained, and only then kept.

write the heads that are wanted, open what was written
compare with the trained model on some pictures  ->  refuse what says something else
quantize, if wanted; ask about every picture of the test set  ->  figures with intervals, in the card
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl_dist.data.stream.selection import Selection, groups_of, open_training
from hmtl_dist.errors import UserError
from hmtl_dist.export.card import write_card
from hmtl_dist.export.folder import FILES, convert, open_model
from hmtl_dist.export.graphs import quantize_onnx
from hmtl_dist.export.intervals import found
from hmtl_dist.export.parity import check_parity
from hmtl_dist.inference.folder import copy_model, load_model, model_digest
from hmtl_dist.inference.info import Format, ModelInfo, Quantized, Weights, read_info, write_info
from hmtl_dist.launch.asked import ask, metric_of
from hmtl_dist.launch.models import load_trained, open_test_set, read_pictures, stored_model
from hmtl_dist.run_config import RunConfig
from hmtl_dist.temporary import temporary_folder
from hmtl_dist.tracking.config import TrackingConfig

ExportFormat = Format | Literal["onnx-int8"]
SAMPLES = 64
"""Pictures of the test set that both models are asked."""
CALIBRATION_SAMPLES = 256


@dataclass(frozen=True)
class Exported:
    """A model that was exported."""

    folder: str
    info: ModelInfo


def export_model(
    source: str,
    *,
    form: ExportFormat,
    out: Path | None = None,
    weights: Weights | None = None,
    heads: Sequence[str] = (),
    data: str | None = None,
    measure: bool = True,
    tracking: TrackingConfig | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Export the backbone and supervised heads of a trained model.

    Args:
        source: Name, folder or URL of a run or checkpoint; a stored model's folder; `models:/NAME@ALIAS`.
        form: Format of the weights; `onnx-int8` computes in 8-bit integers, for which the training split gives the
            ranges.
        out: Folder to write; by default `NAME-FORMAT` in the working directory. It may not exist.
        weights: Which of a run's weights; the averaged ones where there are some by default.
        heads: Supervised tasks to keep; all if none is named.
        data: Where the test set is now, for a stored model whose own has moved.
        measure: Ask about every picture of the test set, for figures with intervals.
        tracking: Where MLflow is.
        on_progress: Called with pictures of the test set that are done, and all of them.

    Raises:
        UserError: There is no such model or test set, the folder is there, or the exported model says something else.
    """
    if out is not None:
        _refuse_taken(out)  # before anything is loaded
    with (
        temporary_folder("export") as work,
        stored_model(source, tracking or TrackingConfig()) as folder,
    ):
        plain, made = work / "plain", work / "made"
        if folder is None:
            if data is not None:
                raise UserError(f"--data: {source} is a run, whose own test set is read; --data is for stored models")
            trained = load_trained(source, weights)
            config, evaluation, answer = trained.config, trained.evaluation, trained.answer
            trained.write(plain, heads)
        else:
            if weights is not None:
                raise UserError(f"--weights {weights}: {source} holds one kind only; export the run to choose")
            config, evaluation = open_test_set(read_info(folder), source, data)
            reference = load_model(folder)
            answer = torch.inference_mode()(reference.forward)
            copy_model(folder, plain, heads)
        target = _target(out, config.name, form)
        convert(plain, made, "onnx" if form == "onnx-int8" else form)
        pictures = read_pictures(config, evaluation, SAMPLES)
        info = read_info(made)
        parity = check_parity(info.tasks, answer(pictures), open_model(made).answer(pictures))
        write_info(made, info.model_copy(update={"parity": parity}))
        to_calibrate = _learned_pictures(config, source) if form == "onnx-int8" else None
        groups = groups_of(evaluation.index) if measure else None
        if groups is not None:
            _measure(made, config, evaluation, groups, on_progress)
        if to_calibrate is not None:
            _quantize(made, to_calibrate)
            if groups is not None:
                _measure(made, config, evaluation, groups, on_progress)
        info = read_info(made)
        write_card(made, info)
        shutil.move(made, target)
    return Exported(str(target), info)


def _learned_pictures(config: RunConfig, source: str) -> Tensor:
    """Read some of the pictures that a model was trained on, as evaluation sees them."""
    try:
        return read_pictures(config, open_training(config.data), CALIBRATION_SAMPLES)
    except UserError as error:
        raise UserError(f"--format onnx-int8 needs pictures that {source} was trained on: {error}") from error


def _quantize(folder: Path, pictures: Tensor) -> None:
    """Quantize an exported model, some pictures telling the ranges of its activations."""
    quantize_onnx(folder / FILES["onnx"], pictures)
    digest = model_digest(folder, FILES["onnx"])
    info = read_info(folder)
    quantized = Quantized(calibrated_on=len(pictures), float32={task: one.value for task, one in info.found.items()})
    write_info(folder, info.model_copy(update={"sha256": digest, "quantized": quantized}))


def _measure(
    folder: Path,
    config: RunConfig,
    evaluation: Selection,
    groups: NDArray[np.uint64],
    on_progress: Callable[[int, int], None],
) -> None:
    """Ask an exported model about the whole test set and note what it is worth."""
    asked = ask(open_model(folder), config, evaluation, on_progress)
    info = read_info(folder)
    worth = {
        task: found(metric_of(info.tasks[task]), scores, groups[asked.sample_ids])
        for task, scores in asked.scores.items()
        if not np.isnan(scores).all()
    }
    write_info(folder, info.model_copy(update={"found": worth}))


def _target(out: Path | None, name: str, form: ExportFormat) -> Path:
    target = out or Path(f"{name}-{form}")
    _refuse_taken(target)
    if target.exists():
        target.rmdir()
    return target


def _refuse_taken(target: Path) -> None:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"--out {target}: is there already; remove it, or name another folder")
    if not target.absolute().parent.is_dir():
        raise UserError(f"--out {target}: there is no folder '{target.parent}'")
