"""An exported model's folder: one file of weights, `model.json` and a model card."""

import shutil
from pathlib import Path

from hmtl_dist.errors import UserError
from hmtl_dist.export.graphs import ONNX_FILE, PT2_FILE, open_onnx, open_pt2, write_onnx, write_pt2
from hmtl_dist.inference.folder import MODEL_FILE, load_model, model_digest
from hmtl_dist.inference.info import INFO_FILE, Format, read_info, write_info
from hmtl_dist.inference.predictor import Predictor

FILES: dict[Format, str] = {"safetensors": MODEL_FILE, "onnx": ONNX_FILE, "pt2": PT2_FILE}


def convert(source: Path, folder: Path, form: Format) -> None:
    """Write a safetensors model's folder in a format, without its card.

    Args:
        source: Folder written by `inference.folder.write_model`.
        folder: Where to; made if it does not exist.
        form: The format of the weights.

    Raises:
        UserError: The format needs packages that are not there, or the backbone cannot be written in it.
    """
    info = read_info(source)
    folder.mkdir(parents=True, exist_ok=True)
    if form == "safetensors":
        shutil.copyfile(source / MODEL_FILE, folder / MODEL_FILE)
    else:
        write = write_onnx if form == "onnx" else write_pt2
        write(load_model(source), info.image_size, folder)
    made = {"format": form, "sha256": model_digest(folder, FILES[form])}
    write_info(folder, info.model_copy(update=made | {"parity": None, "found": {}}))  # nothing is known of it yet


def is_model(folder: Path) -> bool:
    """Whether a folder holds a stored model."""
    return (folder / INFO_FILE).is_file()


def open_model(folder: Path, device: str = "cpu") -> Predictor:
    """Open a stored model in whichever format it is, once its weights match their digest.

    Args:
        folder: The model's folder.
        device: Where it computes; ONNX computes on the CPU.

    Raises:
        UserError: There is no model, it is damaged, or its format needs packages that are not there.
    """
    info = read_info(folder)
    path = folder / FILES[info.format]
    if not path.is_file():
        raise UserError(f"{folder}: {path.name} is missing; export the model again")
    if info.sha256 and model_digest(folder, path.name) != info.sha256:
        raise UserError(f"{path}: is damaged, its sha256 is not the one in {INFO_FILE}; export the model again")
    if info.format == "onnx":
        return Predictor(folder, "cpu", open_onnx(path))
    if info.format == "pt2":
        return Predictor(folder, device, open_pt2(path, device))
    return Predictor(folder, device)
