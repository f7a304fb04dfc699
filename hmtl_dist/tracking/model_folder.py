"""The trained model as a folder: `model.safetensors` with the weights, `model.json` with all else inference needs.

Only the backbone and the supervised heads are kept. Nothing in the folder is or needs a pickle.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hmtl_dist.augment import AugmentConfig, GeometricTransform
from hmtl_dist.config.base import Section
from hmtl_dist.errors import UserError
from hmtl_dist.model.hmtl import HMTLModel, ModelConfig
from hmtl_dist.tasks.base import CLEAN, LinearHead, Task
from hmtl_dist.tasks.supervised import Classification, Regression

MODEL_FILE = "model.safetensors"
INFO_FILE = "model.json"
MAX_BATCH = 64
"""Pictures computed at once, so that a long list of them does not fill the memory."""


class HeadOutput(Section):
    """How to read one supervised head."""

    type: Literal["classification", "regression"]
    """Kind of task."""
    names: tuple[str, ...]
    """Classes or labels, in the order of the head's outputs."""
    offset: tuple[float, ...] = ()
    """Regression: a label is output * scale + offset."""
    scale: tuple[float, ...] = ()
    """Regression: see `offset`."""


class ModelInfo(Section):
    """Everything but the weights."""

    format_version: Literal[1] = 1
    """Version of this layout."""
    image_size: int
    """Height and width of the pictures the model was trained on, in pixels."""
    model: ModelConfig
    """The backbone."""
    augment: AugmentConfig
    """Decides how a picture is cropped for evaluation."""
    tasks: dict[str, HeadOutput]
    """The supervised heads by task name."""


def write_model(
    folder: Path,
    state: Mapping[str, Tensor],
    *,
    config: ModelConfig,
    augment: AugmentConfig,
    image_size: int,
    tasks: Sequence[Task],
) -> None:
    """Write a trained model's folder.

    Args:
        folder: Where to; made if it does not exist.
        state: The `HMTLModel`'s whole state dict.
        config: Its backbone's section.
        augment: The section the run was trained with.
        image_size: Height and width of its pictures.
        tasks: All its tasks; only the supervised ones are kept.
    """
    heads = {task.name: output for task in tasks if (output := _head_output(task))}
    kept = re.compile(r"backbone\.|heads\.(?:" + "|".join(map(re.escape, heads)) + r")\.")
    # Clones: safetensors refuses tensors that share memory, as tied weights do.
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items() if kept.match(name)}
    info = ModelInfo(image_size=image_size, model=config, augment=augment, tasks=heads)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_FILE).write_bytes(save(weights))
    (folder / INFO_FILE).write_text(info.model_dump_json(indent=2))


def read_info(folder: Path) -> ModelInfo:
    """Read what stands beside the weights.

    Raises:
        UserError: the folder holds no model, or one of another version.
    """
    try:
        return ModelInfo.model_validate_json((folder / INFO_FILE).read_text())
    except OSError as error:
        raise UserError(f"{folder}: no model here ({INFO_FILE} is missing); give a folder with a model") from error
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(f"{folder / INFO_FILE}: not readable at '{where}'; written by another version?") from error


def model_digest(folder: Path) -> str:
    """Return the sha256 of the weights, in hexadecimal."""
    with (folder / MODEL_FILE).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def output_columns(info: ModelInfo) -> list[str]:
    """Name the columns of a prediction: `TASK.CLASS` for probabilities, `TASK.LABEL` for numbers."""
    return [f"{task}.{name}" for task, head in info.tasks.items() for name in head.names]


def example_pictures(info: ModelInfo) -> NDArray[np.uint8]:
    """Return one picture of the right shape, a grey ramp, uint8 `[1, H, W, 3]`."""
    ramp = np.linspace(0, 255, info.image_size).astype(np.uint8)
    return np.broadcast_to(ramp[None, None, :, None], (1, info.image_size, info.image_size, 3)).copy()


class Predictor:
    """A trained model that was written by `write_model`, ready to be asked.

    Raises:
        UserError: the folder holds no model, or weights that do not fit it.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.info = read_info(folder)
        heads = {name: LinearHead(len(head.names)) for name, head in self.info.tasks.items()}
        config = self.info.model.model_copy(update={"pretrained": False})
        self._model = HMTLModel(config, heads, wiring=dict.fromkeys(heads, (CLEAN,)))
        try:
            self._model.load_state_dict(load((folder / MODEL_FILE).read_bytes()))
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{folder / MODEL_FILE}: does not fit {INFO_FILE} ({reason})") from error
        self._model.to(device).eval()
        self._device = torch.device(device)
        self._transform = GeometricTransform(self.info.augment, self.info.image_size, {}, seed=0, train=False)

    def decode(self, encoded: Sequence[bytes]) -> NDArray[np.uint8]:
        """Decode and crop JPEG or PNG files as in evaluation; returns uint8 `[N, H, W, 3]`."""
        size = self.info.image_size
        pictures = np.empty((len(encoded), size, size, 3), np.uint8)
        params = self._transform.draw(0, np.arange(len(encoded), dtype=np.int64))
        for row, data in enumerate(encoded):
            self._transform.picture(data, params[row], pictures[row])
        return pictures

    @torch.inference_mode()
    def predict(self, pictures: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
        """Predict from pictures of the model's size, RGB uint8 `[N, H, W, 3]`.

        Returns:
            `[N]` values by column: class probabilities, and numbers in their labels' units.
        """
        size = self.info.image_size
        if pictures.ndim != 4 or pictures.shape[1:] != (size, size, 3) or pictures.dtype != np.uint8:
            raise UserError(f"pictures: {pictures.dtype} {pictures.shape}; give uint8 (N, {size}, {size}, 3)")
        parts: list[Tensor] = []
        for begin in range(0, len(pictures), MAX_BATCH):
            images = torch.as_tensor(pictures[begin : begin + MAX_BATCH], device=self._device)
            outputs = self._model.predict(images.permute(0, 3, 1, 2).float() / 255)
            parts.append(torch.cat([_read(head, outputs[task]) for task, head in self.info.tasks.items()], dim=1))
        columns = output_columns(self.info)
        table = torch.cat(parts).double().cpu().numpy() if parts else np.empty((0, len(columns)))
        return {name: table[:, i] for i, name in enumerate(columns)}


def _head_output(task: Task) -> HeadOutput | None:
    if isinstance(task, Classification):
        return HeadOutput(type="classification", names=task.classes)
    if isinstance(task, Regression):
        at_zero, at_one = (task.predictions(torch.full((1, len(task.labels)), value))[0] for value in (0.0, 1.0))
        offset = tuple(float(value) for value in at_zero)
        scale = tuple(float(value) for value in at_one - at_zero)
        return HeadOutput(type="regression", names=task.labels, offset=offset, scale=scale)
    return None


def _read(head: HeadOutput, output: Tensor) -> Tensor:
    if head.type == "classification":
        return output.float().softmax(1)
    return output.float() * output.new_tensor(head.scale) + output.new_tensor(head.offset)
