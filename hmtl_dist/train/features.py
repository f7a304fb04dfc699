"""Frozen features of a whole data set: extracted once, batch by batch, and kept in a file named by what made them.

Shape legend: N samples, F features.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from hmtl_dist.augment import GeometricTransform
from hmtl_dist.data.dataset.index import ShardIndex, open_index
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.data.stream.batches import Stream
from hmtl_dist.data.stream.plan import Plan
from hmtl_dist.errors import UserError
from hmtl_dist.model.backbone import Backbone
from hmtl_dist.run_config import RunConfig
from hmtl_dist.train.inputs import InputMaker

PREFIX = "backbone."

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Features:
    """Pooled features of every sample that could be decoded, with one label."""

    features: NDArray[np.float32]
    """`[N, F]`."""
    labels: NDArray[np.int64]
    """Class of each sample `[N]`, -1 where it has none."""
    groups: NDArray[np.uint64]
    """Hash of each sample's group, such as the person, `[N]`; one of its own where it has none."""
    classes: tuple[str, ...]
    """Names of the classes."""
    grouped: bool
    """Whether the data set says who belongs together."""


def frozen_backbone(config: RunConfig, weights: Mapping[str, Tensor]) -> Backbone:
    """Build a saved model's backbone in evaluation mode.

    Raises:
        UserError: The model has no pooled feature, as one of in-painting alone.
    """
    backbone = Backbone(config.model.backbone, options=config.model.options)
    own = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items() if name.startswith(PREFIX)}
    missing = backbone.state_dict().keys() - own.keys()
    if missing:
        raise UserError(
            f"this model has no pooled feature ({len(missing)} tensors of {config.model.backbone} are missing, such as "
            f"{min(missing)}): probe a run with a supervised task or puzzles"
        )
    backbone.load_state_dict(own)
    return backbone.eval()


def load_features(
    config: RunConfig, weights: Mapping[str, Tensor], splits: Sequence[str], label: str, folder: Path
) -> tuple[Features, bool]:
    """Return the features of some splits, from the cache if the same weights saw the same data before.

    Args:
        config: The configuration of the run, `data.url` naming the data set.
        weights: The model's state dict.
        splits: Splits to join.
        label: Category label to give.
        folder: Where features are kept.

    Returns:
        The features, and whether they were there already.

    Raises:
        UserError: The data cannot be read, or have no such category label.
    """
    indexes = [open_index(config.data.url, split) for split in splits]
    field = _category(indexes[0].header.fields, label, config.data.url)
    path = folder / f"{_key(config, weights, indexes, label)}.npz"
    kept = _kept(path)
    found = kept is not None
    if kept is not None:
        features, labels, groups = kept
    else:
        backbone = frozen_backbone(config, weights)
        parts = [_extract(config, backbone, index, label) for index in indexes]
        features, labels, groups = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        folder.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.stem}.{os.getpid()}.npz")
        np.savez(new, features=features, labels=labels, groups=groups)
        new.replace(path)
    grouped = indexes[0].header.group is not None
    return Features(features, labels, groups, field.classes, grouped), found


def _kept(path: Path) -> list[NDArray[Any]] | None:
    """Features, labels and groups of a file that was kept, None if there is none that can be read."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            return [kept[name] for name in ("features", "labels", "groups")]
    except FileNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001  # numpy raises nearly anything on damaged bytes
        logger.warning("cannot read the features that were kept in %s (%s): made again", path, error)
        return None


def _category(fields: Mapping[str, Field], label: str, url: str) -> Field:
    field = fields.get(label)
    if field is None or field.kind != "category":
        categories = [name for name, known in fields.items() if known.kind == "category"]
        raise UserError(f"--label {label}: {url} has no such category; there are {', '.join(categories) or 'none'}")
    return field


def _key(config: RunConfig, weights: Mapping[str, Tensor], indexes: Sequence[ShardIndex], label: str) -> str:
    """Return the digest of all that features depend on."""
    digest = hashlib.sha256()
    for name in sorted(name for name in weights if name.startswith(PREFIX)):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    seen = {
        "model": config.model.model_dump(mode="json", include={"backbone", "options"}),
        "data": [index.header.digest for index in indexes],
        "image_size": config.data.image_size,
        "eval_crop": config.augment.eval_crop,
        "label": label,
    }
    digest.update(json.dumps(seen, sort_keys=True).encode())
    return digest.hexdigest()


def _extract(
    config: RunConfig, backbone: Backbone, index: ShardIndex, label: str
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.uint64]]:
    """Stream a split once through the backbone."""
    data = config.data.model_copy(update={"fields": (label,)})
    plan = Plan(
        index.num_samples,
        batch_size=data.batch_size,
        lanes=data.lanes,
        seed=config.seed,
        shuffle=False,
        block=data.shuffle_block,
    )
    crop = GeometricTransform(config.augment, data.image_size, {}, config.seed, train=False)
    device = torch.device("cuda" if config.launch.gpus_per_worker and torch.cuda.is_available() else "cpu")
    backbone.to(device)
    inputs = InputMaker(device, config.seed)
    hashes = _groups(index)
    rows: list[tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.uint64]]] = []
    stream = Stream(index, plan, crop, data, rank=0, world_size=1, epochs=1)
    with torch.inference_mode(), stream:
        for batch in stream:
            kept = (batch.weight > 0).numpy()
            ids = batch.sample_ids.numpy()[kept]
            for one in inputs(batch):
                pooled = backbone.pool(backbone(one.images)).float().cpu().numpy()
                labels = cast("NDArray[np.int64]", one.labels[label].cpu().numpy().copy())
                rows.append((pooled[kept], labels[kept], hashes[ids]))
    features, labels, groups = zip(*rows, strict=True)
    return np.concatenate(features), np.concatenate(labels), np.concatenate(groups)


def _groups(index: ShardIndex) -> NDArray[np.uint64]:
    """Return the hash of each sample's group `[N]`, by its id."""
    hashes: list[int] = []
    for shard in range(len(index)):
        table = index.samples(shard)
        names = table.group
        for row in range(len(table)):
            group = "" if names is None else str(names[row])
            # A sample of no group is alone in one.
            name = f"g{group}" if group else f"s{index.header.split}/{shard}/{row}"
            hashes.append(xxhash.xxh64_intdigest(name.encode()))
    return np.array(hashes, dtype=np.uint64)
