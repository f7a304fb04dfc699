"""A trained model that answers pictures, whatever form they come in."""

from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl_dist.augment import GeometricTransform
from hmtl_dist.data.decode import DecodeError
from hmtl_dist.errors import UserError, unknown
from hmtl_dist.inference.folder import load_model
from hmtl_dist.inference.gradcam import grad_cam, has_maps
from hmtl_dist.inference.info import output_columns, read_info
from hmtl_dist.inference.model import InferenceModel

MAX_BATCH = 64
"""Pictures computed at once, so that a long list of them does not fill the memory."""

Forward = Callable[[Tensor], Mapping[str, Tensor]]
"""Answers pictures in [0, 1], float `[B, 3, H, W]`, as `InferenceModel` does."""


class Predictor:
    """A trained model that was written by `folder.write_model`, ready to be asked.

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

    def read(self, pictures: Iterable[Any], first: int = 0) -> NDArray[np.uint8]:
        """Read pictures in whatever form they come: uint8 `[N, H, W, 3]`.

        Args:
            pictures: Each the path of a JPEG or PNG file (`Path`), a whole file as bytes or base64 text, or RGB pixels
                `[H, W, 3]` of the model's size, as an array or nested lists.
            first: Number of the first one, for errors.

        Raises:
            UserError: One of them is none of these; names a file by its path, another one by its number.
        """
        given = [*_several(pictures)]
        out = self.empty(len(given))
        for number, (picture, row) in enumerate(zip(given, out, strict=True), first):
            name = str(picture) if isinstance(picture, Path) else f"picture {number}"
            try:
                if isinstance(picture, Path | str | bytes):
                    self.decode_into(_encoded(picture), row)
                    continue
                pixels = np.asarray(picture)
            except (DecodeError, ValueError) as error:
                raise UserError(f"{name}: {error}; give a JPEG or PNG file, or RGB pixels") from error
            if pixels.shape != row.shape or pixels.dtype.kind not in "iu" or not ((pixels >= 0) & (pixels < 256)).all():
                raise UserError(f"{name}: {pixels.dtype} {pixels.shape}; give uint8 {row.shape}")
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

    def predict(self, pictures: NDArray[np.uint8] | Iterable[Any]) -> dict[str, NDArray[np.float64]]:
        """Predict from pictures, each taken as the face: no face is looked for.

        Args:
            pictures: RGB pixels of the model's size, uint8 `[N, H, W, 3]`, or whatever `read` takes, a batch at a time.

        Returns:
            `[N]` values by column: class probabilities (`TASK.CLASS`), and numbers in their labels' units
            (`TASK.LABEL`).

        Raises:
            UserError: There is a picture that cannot be read, or pixels of another size.

        Examples:
            >>> import numpy as np
            >>> import hmtl_dist
            >>> model = hmtl_dist.load("heavier")
            >>> size = model.info.image_size
            >>> answers = model.predict(np.zeros((3, size, size, 3), np.uint8))
            >>> bool(np.allclose(answers["expression.happy"] + answers["expression.sad"], 1))
            True
        """
        answers: list[Tensor] = []
        for pixels in self._batches(pictures):
            images = torch.as_tensor(pixels, device=self._device).permute(0, 3, 1, 2)
            answered = self.answer(images.float() / 255)
            answers.append(torch.cat([answered[task] for task in self.info.tasks], dim=1))
        columns = output_columns(self.info)
        table = torch.cat(answers).double().cpu().numpy() if answers else np.empty((0, len(columns)))
        return {name: table[:, i] for i, name in enumerate(columns)}

    def _batches(self, pictures: NDArray[np.uint8] | Iterable[Any]) -> Iterator[NDArray[np.uint8]]:
        """Yield the pixels of at most `MAX_BATCH` pictures at a time."""
        size = self.info.image_size
        if isinstance(pictures, np.ndarray):
            pictures = cast("NDArray[np.uint8]", pictures)  # as far as it can be known before it is looked at
            if pictures.ndim != 4 or pictures.shape[1:] != (size, size, 3) or pictures.dtype != np.uint8:
                raise UserError(f"pictures: {pictures.dtype} {pictures.shape}; give uint8 (N, {size}, {size}, 3)")
            yield from (pictures[begin : begin + MAX_BATCH] for begin in range(0, len(pictures), MAX_BATCH))
            return
        given, first = iter(_several(pictures)), 0
        while chunk := [*islice(given, MAX_BATCH)]:
            yield self.read(chunk, first)
            first += len(chunk)


def _several(pictures: Iterable[Any]) -> Iterable[Any]:
    if isinstance(pictures, str | bytes | Path):
        raise UserError("one picture alone was given; give a list of them, such as [pathlib.Path('photo.jpg')]")
    return pictures


def _encoded(picture: Path | str | bytes) -> bytes:
    """Return the bytes of a picture file.

    Raises:
        UserError: The file cannot be read.
        ValueError: The text is not base64.
    """
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str):
        try:
            return b64decode(picture, validate=True)
        except ValueError as error:
            raise ValueError(f"'{picture[:40]}' is no file in base64, and a path is a pathlib.Path") from error
    try:
        return picture.read_bytes()
    except OSError as error:
        raise UserError(f"{picture}: {(error.strerror or str(error)).lower()}") from error
