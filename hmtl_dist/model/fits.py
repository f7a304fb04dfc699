"""Whether the networks of a run can be built and read its pictures, tried without memory and without arithmetic.

Tensors of torch's `meta` device have a shape and nothing else: building a model and running it on them takes a fraction
of a second whatever its size, and fails as the real ones would.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from hmtl_dist.errors import UserError
from hmtl_dist.model.backbone import import_timm, is_from_hub
from hmtl_dist.model.frozen import bare_backbone, is_ours
from hmtl_dist.model.hmtl import HMTLModel, ModelConfig
from hmtl_dist.tasks.base import FrozenNetwork, HeadSpec, TaskConfig

Options = Mapping[str, Any]


def check_model(
    config: ModelConfig,
    heads: Mapping[str, HeadSpec],
    wiring: Mapping[str, Sequence[str]],
    *,
    image_size: int,
    pictures: int,
) -> None:
    """See that a model can be built, and reads the pictures of a training step.

    Args:
        config: The backbone.
        heads: Head of each task, by task name.
        wiring: Views that each task's head reads, by task name.
        image_size: Side of the pictures in pixels.
        pictures: Pictures of a view in a micro-batch of one rank; one is another matter than several.

    Raises:
        UserError: There is no such backbone, it does not take an option, or cannot read such pictures: tells which
            settings it could.
    """
    if is_from_hub(config.backbone):  # what it is, its hub alone knows, which this machine need not reach
        return
    views = {view for read in wiring.values() for view in read}
    given, number = dict(config.options), min(pictures, 2)

    def attempt(options: Options, side: int, number: int) -> None:
        tried = config.model_copy(update={"options": dict(options), "pretrained": False})
        model = HMTLModel(tried, heads, wiring)
        model({view: torch.zeros(number, 3, side, side) for view in views})

    trouble = _trouble(partial(attempt, given, image_size, number))
    if trouble is None:
        return
    if isinstance(trouble, UserError):
        raise trouble
    native = _native_size(config.backbone)
    ways = {
        "a data.batch_size of two pictures or more for each worker's step": (given, image_size, 2),
        f"model.options.img_size={image_size}": (given | {"img_size": image_size}, image_size, number),
        "model.options.dynamic_img_size=true": (given | {"dynamic_img_size": True}, image_size, number),
        f"data.image_size={native}": (given, native, number),
    }
    works = [way for way, arguments in ways.items() if _trouble(partial(attempt, *arguments), "meta") is None]
    raise _cannot_read(f"model.backbone: timm's '{config.backbone}'", image_size, trouble, works)


def check_frozen(tasks: Mapping[str, TaskConfig], model: ModelConfig, image_size: int) -> None:
    """See that the frozen networks can be built, have the layers that are compared, and read pictures of this size.

    Raises:
        UserError: One is not there, or cannot.
    """
    for name, task in tasks.items():
        wanted = task.frozen_network()
        if wanted is None:
            continue
        network = model.backbone if is_ours(wanted) else wanted.source
        if is_from_hub(network):
            continue
        attempt = partial(_run_frozen, f"tasks.{name}", wanted, model)
        trouble = _trouble(partial(attempt, image_size))
        if isinstance(trouble, UserError):
            raise trouble
        if trouble is not None:
            native = _native_size(network)
            works = [f"data.image_size={native}"] if _trouble(partial(attempt, native), "meta") is None else []
            raise _cannot_read(f"tasks.{name}.frozen: timm's '{network}'", image_size, trouble, works)


def _run_frozen(path: str, wanted: FrozenNetwork, model: ModelConfig, side: int) -> None:
    backbone = bare_backbone(path, wanted, model, pretrained=False)
    backbone.eval().early(torch.zeros(1, 3, side, side), wanted.layers)


def _native_size(network: str) -> int:
    return int(import_timm().get_pretrained_cfg(network).input_size[-1])


def _cannot_read(who: str, side: int, trouble: Exception, works: Sequence[str]) -> UserError:
    reason = " ".join(str(trouble).split()).rstrip(".") or type(trouble).__name__
    remedy = f"set {', or '.join(works)}" if works else "choose another network, or larger pictures (data.image_size)"
    return UserError(f"{who} cannot read pictures of {side} x {side} pixels ({reason}); {remedy}")


def _trouble(attempt: Callable[[], None], *devices: str) -> Exception | None:
    """Return what goes wrong: on tensors without memory, and to be certain on real ones."""
    found: Exception | None = None
    for device in devices or ("meta", "cpu"):
        try:
            with torch.device(device), torch.no_grad():
                attempt()
        except Exception as error:  # noqa: BLE001  (whatever a model of timm raises)
            found = error
            if isinstance(error, AssertionError):  # timm's own: no fault of tensors that have no memory
                break
        else:
            return None
    return found
