"""The trained model as a folder: `model.safetensors` with the weights, `model.json` with all else inference needs.

Only the backbone and the supervised heads are kept. Nothing in the folder is or needs a pickle.
"""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hmtl_dist.augment import AugmentConfig
from hmtl_dist.errors import UserError, unknown
from hmtl_dist.inference.info import INFO_FILE, ModelInfo, Origin, read_info, write_info
from hmtl_dist.inference.model import InferenceModel
from hmtl_dist.model.hmtl import ModelConfig
from hmtl_dist.tasks.base import Task
from hmtl_dist.tasks.supervised import SupervisedTask

MODEL_FILE = "model.safetensors"


def write_model(
    folder: Path,
    state: Mapping[str, Tensor],
    *,
    config: ModelConfig,
    augment: AugmentConfig,
    image_size: int,
    tasks: Sequence[Task],
    origin: Origin | None = None,
    heads: Sequence[str] = (),
) -> None:
    """Write a trained model's folder.

    Args:
        folder: Where to; made if it does not exist.
        state: The `HMTLModel`'s whole state dict.
        config: Its backbone's section.
        augment: The section the run was trained with.
        image_size: Height and width of its pictures.
        tasks: All its tasks; only the supervised ones are kept.
        origin: Where it comes from.
        heads: Supervised tasks to keep; all if none is named.

    Raises:
        UserError: A head that is to be kept is not there.
    """
    readings = {task.name: task.reading() for task in tasks if isinstance(task, SupervisedTask)}
    _write(
        folder,
        state,
        ModelInfo(image_size=image_size, model=config, augment=augment, tasks=readings, origin=origin),
        heads,
    )


def copy_model(source: Path, folder: Path, heads: Sequence[str] = ()) -> None:
    """Write a model's folder again, with some of its heads.

    Raises:
        UserError: There is no model in safetensors, or a head that is to be kept is not there.
    """
    _write(folder, load_model(source).model.state_dict(), read_info(source), heads)


def _write(folder: Path, state: Mapping[str, Tensor], info: ModelInfo, heads: Sequence[str]) -> None:
    for name in heads:
        if name not in info.tasks:
            raise UserError(unknown("--head", name, tuple(info.tasks)))
    readings = {name: reading for name, reading in info.tasks.items() if not heads or name in heads}
    model = InferenceModel(info.model, readings)
    kept = re.compile(r"backbone\.|heads\.(?:" + "|".join(map(re.escape, readings)) + r")\.")
    # Clones: safetensors refuses tensors that share memory, as tied weights do.
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items() if kept.match(name)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_FILE).write_bytes(save(weights))
    mean, std = _normalisation(model)
    facts: dict[str, object] = {
        "tasks": readings,
        "sha256": model_digest(folder),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "mean": mean,
        "std": std,
    }
    write_info(folder, info.model_copy(update=facts))


def _normalisation(model: InferenceModel) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of the channels, as the backbone applies them."""
    backbone = model.model.backbone
    mean, std = (
        tuple(float(value) for value in cast(Tensor, values).flatten()) for values in (backbone.mean, backbone.std)
    )
    return mean, std


def load_model(folder: Path, device: str = "cpu") -> InferenceModel:
    """Build the model that was written by `write_model`, in evaluation mode.

    Raises:
        UserError: the folder holds no model, weights that do not fit it, or a model in another format.
    """
    info = read_info(folder)
    if info.format != "safetensors":
        raise UserError(f"{folder}: holds a model as {info.format}; give one that was exported as safetensors")
    model = InferenceModel(info.model, info.tasks)
    try:
        model.model.load_state_dict(load((folder / MODEL_FILE).read_bytes()))
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder / MODEL_FILE}: does not fit {INFO_FILE} ({reason})") from error
    return model.to(device)


def example_picture(info: ModelInfo) -> bytes:
    """Return a picture file of the model's size, a grey ramp as PNG."""
    ramp = np.linspace(0, 255, info.image_size).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.broadcast_to(ramp, (info.image_size, info.image_size))).save(file, "PNG")
    return file.getvalue()


def model_digest(folder: Path, name: str = MODEL_FILE) -> str:
    """Return the sha256 of the weights, in hexadecimal."""
    with (folder / name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
