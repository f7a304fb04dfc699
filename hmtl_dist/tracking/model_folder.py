"""The trained model as a folder: `model.safetensors` with the weights, `model.json` with all else inference needs.

Only the backbone and the supervised heads are kept. Nothing in the folder is or needs a pickle.
"""

import hashlib
import io
import re
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hmtl_dist.augment import AugmentConfig, GeometricTransform
from hmtl_dist.data.decode import DecodeError
from hmtl_dist.errors import UserError
from hmtl_dist.model.gradcam import grad_cam, has_maps
from hmtl_dist.model.hmtl import ModelConfig
from hmtl_dist.model.inference import InferenceModel
from hmtl_dist.tasks.base import Task
from hmtl_dist.tasks.supervised import SupervisedTask, unknown
from hmtl_dist.tracking.model_info import INFO_FILE, ModelInfo, Origin, output_columns, read_info, write_info

MODEL_FILE = "model.safetensors"
MAX_BATCH = 64
"""Pictures computed at once, so that a long list of them does not fill the memory."""

Forward = Callable[[Tensor], Mapping[str, Tensor]]
"""Answers pictures in [0, 1], float `[B, 3, H, W]`, as `InferenceModel` does."""


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


class Predictor:
    """A trained model that was written by `write_model`, ready to be asked.

    Args:
        folder: The model's folder.
        device: Where it computes.
        forward: Computes instead of the safetensors weights, for a model in another format.

    Raises:
        UserError: the folder holds no model, or weights that do not fit it.
    """

    def __init__(self, folder: Path, device: str = "cpu", forward: Forward | None = None) -> None:
        self.info = read_info(folder)
        self._forward = forward or load_model(folder, device)
        self._device = torch.device(device)
        self._transform = GeometricTransform(self.info.augment, self.info.image_size, {}, seed=0, train=False)

    def decode(self, encoded: Sequence[bytes]) -> NDArray[np.uint8]:
        """Decode and crop JPEG or PNG files as in evaluation; returns uint8 `[N, H, W, 3]`.

        Raises:
            DecodeError: one of them is no picture that can be decoded.
        """
        pictures = self.empty(len(encoded))
        for data, row in zip(encoded, pictures, strict=True):
            self.decode_into(data, row)
        return pictures

    def empty(self, count: int) -> NDArray[np.uint8]:
        """Return room for so many pictures, uint8 `[N, H, W, 3]`."""
        return np.empty((count, self.info.image_size, self.info.image_size, 3), np.uint8)

    def decode_into(self, encoded: bytes, out: NDArray[np.uint8]) -> None:
        """Decode and crop one JPEG or PNG file into `out`, uint8 `[H, W, 3]`; several threads may do so at once.

        Raises:
            DecodeError: it is no picture that can be decoded.
        """
        params = self._transform.draw(0, np.zeros(1, dtype=np.int64))
        self._transform.picture(encoded, params[0], out)

    def read(self, pictures: Sequence[Any]) -> NDArray[np.uint8]:
        """Read pictures in whatever form they come: uint8 `[N, H, W, 3]`.

        Args:
            pictures: Each a whole JPEG or PNG file as bytes or base64 text, or RGB pixels `[H, W, 3]` of the model's
                size, as an array or nested lists.

        Raises:
            UserError: One of them is none of these; names it by its number.
        """
        out = self.empty(len(pictures))
        for number, (picture, row) in enumerate(zip(pictures, out, strict=True)):
            try:
                if isinstance(picture, str | bytes):
                    self.decode_into(b64decode(picture, validate=True) if isinstance(picture, str) else picture, row)
                    continue
                pixels = np.asarray(picture)
            except (DecodeError, ValueError) as error:
                raise UserError(f"picture {number}: {error}; give a JPEG or PNG file, or RGB pixels") from error
            if pixels.shape != row.shape or pixels.dtype.kind not in "iu" or not ((pixels >= 0) & (pixels < 256)).all():
                raise UserError(f"picture {number}: {pixels.dtype} {pixels.shape}; give uint8 {row.shape}")
            row[:] = pixels
        return out

    @cached_property
    def explains(self) -> bool:
        """Whether `explain` can be asked: there are weights to take gradients of, and a backbone with feature maps."""
        return isinstance(self._forward, InferenceModel) and has_maps(self._forward, self.info.image_size)

    def explain(self, pictures: NDArray[np.uint8], task: str, name: str) -> NDArray[np.float32]:
        """Say which region of pictures of the model's size spoke for an output, by Grad-CAM.

        Args:
            pictures: RGB uint8 `[N, H, W, 3]`.
            task: The head.
            name: One of its classes or numbers.

        Returns:
            Maps `[N, h, w]` of the last feature map's size, each in [0, 1].

        Raises:
            UserError: There is no such head or name, or the model cannot be explained.
        """
        if not isinstance(self._forward, InferenceModel) or not self.explains:
            raise UserError(
                f"a model as {self.info.format} with backbone {self.info.model.backbone} cannot be explained; "
                "Grad-CAM takes safetensors and a backbone with feature maps"
            )
        if task not in self.info.tasks:
            raise UserError(unknown("head", task, tuple(self.info.tasks)))
        names = self.info.tasks[task].names
        if name not in names:
            raise UserError(unknown(f"'{task}'", name, names))
        images = torch.as_tensor(pictures, device=self._device).permute(0, 3, 1, 2).float() / 255
        return grad_cam(self._forward, images, task, names.index(name)).cpu().numpy()

    @torch.inference_mode()
    def answer(self, images: Tensor) -> dict[str, Tensor]:
        """Answer pictures in [0, 1], float `[N, 3, H, W]`, in parts of `MAX_BATCH`: `[N, len(names)]` by task."""
        parts = [self._forward(images[begin : begin + MAX_BATCH]) for begin in range(0, len(images), MAX_BATCH)]
        if not parts:
            return {task: torch.empty(0, len(head.names)) for task, head in self.info.tasks.items()}
        return {task: torch.cat([part[task] for part in parts]) for task in self.info.tasks}

    def predict(self, pictures: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
        """Predict from pictures of the model's size, RGB uint8 `[N, H, W, 3]`.

        Returns:
            `[N]` values by column: class probabilities, and numbers in their labels' units.
        """
        size = self.info.image_size
        if pictures.ndim != 4 or pictures.shape[1:] != (size, size, 3) or pictures.dtype != np.uint8:
            raise UserError(f"pictures: {pictures.dtype} {pictures.shape}; give uint8 (N, {size}, {size}, 3)")
        images = torch.as_tensor(pictures, device=self._device).permute(0, 3, 1, 2)
        answers: list[Tensor] = []
        for begin in range(0, len(images), MAX_BATCH):
            answered = self.answer(images[begin : begin + MAX_BATCH].float() / 255)
            answers.append(torch.cat([answered[task] for task in self.info.tasks], dim=1))
        columns = output_columns(self.info)
        table = torch.cat(answers).double().cpu().numpy() if answers else np.empty((0, len(columns)))
        return {name: table[:, i] for i, name in enumerate(columns)}
