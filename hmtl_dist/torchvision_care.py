"""What has to come before timm and torchmetrics, which import torchvision."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch

_schemas: list[torch.library.Library] = []


def prepare_torchvision() -> None:
    """Make torchvision importable where its compiled operators do not fit the installed torch.

    A torchvision built for CUDA beside a CPU build of torch cannot load its extension, and then fails on import with
    "operator torchvision::nms does not exist" (https://github.com/pytorch/vision/issues/9085) while it
    registers shapes for two detection operators. Nothing here detects boxes, so declaring the two is enough.
    """
    if _schemas or "torchvision" in sys.modules or _extension_loads():
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    declare = cast(Callable[[str], object], library.define)
    declare("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    declare("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _schemas.append(library)  # the declarations live as long as this object


def _extension_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders:
        return True  # torchvision is not there: whoever imports it says so itself
    extensions = [path for folder in folders for path in Path(folder).glob("_C*.so")]
    load = cast(Callable[[Path], None], torch.ops.load_library)
    try:
        for path in extensions:
            load(path)
    except (ImportError, OSError):
        return False
    return bool(extensions)
