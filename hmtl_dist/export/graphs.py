# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportMissingImports=false
"""A trained model as a graph, in ONNX or in torch.export's archive, and what runs it.

Either graph takes `images`, float32 `[N, 3, size, size]` in [0, 1] with N free, and gives an output a head, by its
name: probabilities, or numbers in their labels' units.
"""

import json
import os
import warnings
import zipfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmtl_dist.errors import UserError
from hmtl_dist.inference.model import InferenceModel

ONNX_FILE = "model.onnx"
PT2_FILE = "model.pt2"
INPUT = "images"
CALIBRATION_BATCH = 32
MAX_BATCH = 65536
"""Largest batch of a graph; some bound has to be named."""
INSTALL = "install the extra `export` (pip install 'hmtl-dist[export]')"


def write_onnx(model: InferenceModel, image_size: int, folder: Path) -> Path:
    """Write a model as ONNX and return the file, checked by ONNX's own checker.

    Raises:
        UserError: The extra `export` is not installed, or the backbone cannot be written as ONNX.
    """
    onnx = _onnx()
    program = _program(model, image_size)
    path = folder / ONNX_FILE
    example = _example(image_size)
    try:
        # The exporter prints its steps, and warns of what torch itself calls.
        with _quiet(), _silenced():
            written: Any = torch.onnx.export(
                program,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=list(model.readings),
                dynamic_shapes={INPUT: {0: "batch"}},
                verbose=False,
            )
            written.save(str(path), external_data=False)
    except Exception as error:  # the exporter's own errors share no public base
        raise _refusal(model, "ONNX", error) from error
    onnx.checker.check_model(str(path), full_check=True)
    return path


def quantize_onnx(path: Path, pictures: Tensor) -> None:
    """Let a model in ONNX compute in 8-bit integers: convolutions and products of matrices, weights by channel.

    Source: onnxruntime's static quantization (QDQ), the activations' ranges by minimum and maximum.

    Args:
        path: The file, which is replaced.
        pictures: Which give the ranges, float `[N, 3, size, size]` in [0, 1].

    Raises:
        UserError: onnxruntime is not installed, or refuses the graph.
    """
    try:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise UserError(f"onnxruntime is needed for --format onnx-int8: {INSTALL}") from error
    batches = pictures.split(CALIBRATION_BATCH)

    class Pictures(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> Any:
            images = next(self.left, None)
            return None if images is None else {INPUT: images.contiguous().numpy()}

    prepared, made = path.with_name("prepared.onnx"), path.with_name("int8.onnx")
    try:
        with _quiet(), _silenced():
            quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(made),
                Pictures(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Gemm", "MatMul"],
                per_channel=True,
                weight_type=quantization.QuantType.QInt8,
                activation_type=quantization.QuantType.QUInt8,
            )
    except Exception as error:  # its own errors share no public base
        raise UserError(f"onnxruntime cannot quantize this model ({_line(error)}); use --format onnx") from error
    made.replace(path)
    prepared.unlink()


def open_onnx(path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    """Open an ONNX file in onnxruntime, on the CPU.

    Raises:
        UserError: onnxruntime is not installed, or the file is none that it reads.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"onnxruntime is needed for a model in ONNX: {INSTALL}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors share no public base
        raise UserError(f"{path}: onnxruntime cannot read it ({_line(error)})") from error
    names = [output.name for output in session.get_outputs()]

    def forward(images: Tensor) -> dict[str, Tensor]:
        answers = session.run(names, {INPUT: images.contiguous().numpy()})
        return {name: torch.from_numpy(answer) for name, answer in zip(names, answers, strict=True)}

    return forward


def write_pt2(model: InferenceModel, image_size: int, folder: Path) -> Path:
    """Write a model as an archive of torch.export and return the file.

    Raises:
        UserError: The backbone cannot be traced.
    """
    program = _program(model, image_size)
    program.example_inputs = None  # they would be the one pickle in the archive
    path = folder / PT2_FILE
    with _quiet():
        torch.export.save(program, path)
    refuse_pickles(path)
    return path


def open_pt2(path: Path, device: str = "cpu") -> Callable[[Tensor], Mapping[str, Tensor]]:
    """Open an archive of torch.export that holds no pickle.

    Raises:
        UserError: It holds one, or is none that this torch reads.
    """
    refuse_pickles(path)
    try:
        with _quiet():
            module = torch.export.load(path).module()
    except Exception as error:  # whatever a damaged archive leads to
        raise UserError(f"{path}: torch {torch.__version__} cannot read it ({_line(error)})") from error
    return module.to(device)


def refuse_pickles(path: Path) -> None:
    """See that loading an archive of torch.export unpickles nothing: `torch.export.load` would, without asking.

    Raises:
        UserError: It would, or the file is no such archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                name = entry.filename.partition("/")[2]
                if name.endswith("_config.json"):
                    items = json.loads(archive.read(entry))["config"].values()
                    if any(item["use_pickle"] for item in items):
                        raise UserError(f"{path}: holds a pickled tensor in {name}; it is not opened")
                elif entry.file_size and not name.startswith(_PLAIN):
                    raise UserError(f"{path}: holds {name}, which may be a pickle; it is not opened")
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: is no archive of torch.export ({_line(error)})") from error


_PLAIN = (
    *("data/weights/weight_", "data/constants/tensor_", "models/model.json"),
    *("archive_format", "archive_version", ".data/", "byteorder", "version"),
)
"""Entries of an archive that hold raw numbers or plain text; other ones are executed or unpickled."""


def _program(model: InferenceModel, image_size: int) -> Any:
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(model, (_example(image_size),), dynamic_shapes={INPUT: {0: batch}})
    except Exception as error:  # tracing runs the backbone's own code, which may raise anything
        raise _refusal(model, "a graph", error) from error


def _example(image_size: int) -> Tensor:
    """Two pictures: of one, the graph would take the batch for a constant."""
    return torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))


def _refusal(model: InferenceModel, what: str, error: Exception) -> UserError:
    name = type(model.model.backbone.net).__name__
    return UserError(f"the backbone ({name}) cannot be written as {what} ({_line(error)}); use --format safetensors")


def _onnx() -> Any:
    try:
        import onnx
        import onnxscript as _  # the exporter needs it  # noqa: F401
    except ImportError as error:
        raise UserError(f"onnx and onnxscript are needed for --format onnx: {INSTALL}") from error
    return onnx


@contextmanager
def _quiet() -> Generator[None]:
    """Leave out what torch's exporters warn of themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _silenced() -> Generator[None]:
    """Leave out what they print."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):  # noqa: PTH123
        yield


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
