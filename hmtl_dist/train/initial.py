"""Begin a run with the weights of another: SSL pre-training first, then fine-tuning."""

import logging
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from hmtl_dist.errors import UserError
from hmtl_dist.model.backbone import Backbone
from hmtl_dist.model.hmtl import HMTLModel, ModelConfig
from hmtl_dist.train.saving import find_checkpoint, find_manifest, saved_config

BACKBONE, HEADS = "backbone.", "heads."

logger = logging.getLogger(__name__)


def initialise(model: HMTLModel, config: ModelConfig) -> str | None:
    """Load what `model.init_from` names into a new model: its backbone, and with `init_heads` the heads that match.

    The averaged weights are taken where that run kept some, as they are the ones it was evaluated by.

    Returns:
        What was taken and what begins anew, for people; None without `init_from`.

    Raises:
        UserError: There is no checkpoint there, it is damaged, it holds another backbone, or none of its heads match.
    """
    if config.init_from is None:
        return None
    found = find_checkpoint(config.init_from)
    if found is None:
        raise _none_there(config.init_from)
    url, state, _, manifest = found
    saved = state.ema or state.model
    _check_backbone(url, manifest, config)
    own = cast("dict[str, Tensor]", model.state_dict())
    taken = {name: saved[name] for name in own if name.startswith(BACKBONE) and _fits(saved, name, own[name])}
    anew = [name for name in own if name.startswith(BACKBONE) and name not in taken]
    if set(anew) - _behind_the_maps(config):
        raise UserError(
            f"model.init_from: {url} does not fit model.backbone={config.backbone}: {len(anew)} of its tensors are "
            f"missing or of another shape, such as {anew[0].removeprefix(BACKBONE)}"
        )
    notes = [f"{len(anew)} tensors behind the last feature map begin anew"] if anew else []
    if config.init_heads:
        heads, others = _heads(saved, own, url)
        taken |= {name: saved[name] for name in own if name.startswith(heads)}
        notes += ["heads taken: " + ", ".join(head.split(".")[1] for head in heads)]
        notes += ["heads begin anew: " + ", ".join(others)] if others else []
    for name, tensor in taken.items():
        own[name].copy_(tensor)  # the state dict's tensors are the model's own
    said = "; ".join([f"weights of {url}", *notes])
    logger.info("model.init_from: %s", said)
    return said


def check_initial(config: ModelConfig) -> None:
    """See that `model.init_from` names a checkpoint of the same backbone; only its manifest is read.

    Raises:
        UserError: It does not.
    """
    url = config.init_from
    if url is None:
        return
    manifest = find_manifest(url)
    if manifest is None:
        raise _none_there(url)
    _check_backbone(url, manifest, config)


def _check_backbone(url: str, manifest: Mapping[str, Any], config: ModelConfig) -> None:
    theirs = saved_config(manifest).model
    if (theirs.backbone, theirs.options) != (config.backbone, config.options):
        raise UserError(
            f"model.init_from: {url} holds {theirs.backbone}{_options(theirs)}, model.backbone is "
            f"{config.backbone}{_options(config)}; set model.backbone={theirs.backbone}"
        )


def _none_there(url: str) -> UserError:
    return UserError(f"model.init_from: {url} holds no complete checkpoint; give the folder or URL of a run of ours")


def _heads(saved: Mapping[str, Tensor], own: Mapping[str, Tensor], url: str) -> tuple[tuple[str, ...], list[str]]:
    """Return the prefixes of the heads that match, and why each other one begins anew."""
    tasks = list(dict.fromkeys(name.split(".")[1] for name in own if name.startswith(HEADS)))
    matching: list[str] = []
    others: list[str] = []
    for task in tasks:
        prefix = f"{HEADS}{task}."
        names = [name for name in own if name.startswith(prefix)]
        if not any(name.startswith(prefix) for name in saved):
            others.append(f"{task} (not there)")
        elif all(_fits(saved, name, own[name]) for name in names):
            matching.append(prefix)
        else:
            others.append(f"{task} (another shape)")
    if not matching:
        raise UserError(f"model.init_heads: no head of {url} matches: {', '.join(others)}; set model.init_heads=false")
    return tuple(matching), others


def _fits(saved: Mapping[str, Tensor], name: str, own: Tensor) -> bool:
    return name in saved and saved[name].shape == own.shape


def _behind_the_maps(config: ModelConfig) -> set[str]:
    """Return the tensors that a model without a pooled head, such as one of in-painting alone, does not have."""
    whole = Backbone(config.backbone, options=config.options)
    names = set(whole.state_dict())
    whole.keep_maps(len(whole.scales) - 1)
    return {BACKBONE + name for name in names - set(whole.state_dict())}


def _options(config: ModelConfig) -> str:
    return f" with {dict(config.options)}" if config.options else ""
