"""Saving a run as a checkpoint, and going on from the last one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch.distributed as dist

from hmtl_dist.config.io import flatten, to_dict
from hmtl_dist.data.schema import Field, IndexHeader
from hmtl_dist.engine.base import Engine
from hmtl_dist.engine.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from hmtl_dist.errors import UserError
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tasks.objective import Objective
from hmtl_dist.tracking.facts import versions
from hmtl_dist.train.base import Place

OBJECTIVE = "objective"
"""Name of the checkpoint's file with the state of tasks and weighting."""

HARMLESS = (
    "name",
    "launch.kind",
    "launch.address",
    "launch.storage",
    "launch.num_workers",
    "tracking.",
    "train.report_every_steps",
    "train.evaluate_every_epochs",
    "train.checkpoint_every_epochs",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "data.url",
    "data.eval_split",
    "data.num_workers",
    "data.prefetch_batches",
    "data.buffer_bytes",
)
"""Keys, or beginnings of keys, that may change between the parts of a run.

They move no sample and no step of the schedule. Another `launch.num_workers` takes the same samples in the same order,
but sums in another order and gives BatchNorm and dropout other shares. `data.url` may change because the digest of the
data is compared instead.
"""


@dataclass(frozen=True)
class Restored:
    """Where a run goes on."""

    checkpoint: str
    metrics: Mapping[str, float]


def checkpoints_folder(storage: str) -> str:
    """Return the folder or URL of a run's checkpoints."""
    return f"{storage.rstrip('/')}/checkpoints"


def saved_config(manifest: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that a checkpoint was written with."""
    return RunConfig.model_validate(manifest["config"])


def check_fields(trained: Mapping[str, Field], found: Mapping[str, Field], where: str) -> None:
    """Compare the labels of two splits or sets: figures mean something only where the classes are the same.

    Raises:
        UserError: A label of both has other classes, or is of another kind.
    """
    for name in trained.keys() & found.keys():
        then, now = trained[name], found[name]
        if (then.kind, then.classes) != (now.kind, now.classes):
            raise UserError(
                f"{where}: label '{name}' is {_say(now)} there, the model is trained on {_say(then)}; "
                "build the set with the same classes in the same order"
            )


def saved_fields(manifest: Mapping[str, Any]) -> dict[str, Field]:
    """Return the labels of the data that a checkpoint was trained on."""
    return {name: Field.model_validate(field) for name, field in manifest["fields"].items()}


def _say(field: Field) -> str:
    return f"one of {', '.join(field.classes)}" if field.kind == "category" else "a number"


class Saver:
    """Saves and restores one rank's engine and objective."""

    def __init__(
        self, config: RunConfig, place: Place, engine: Engine, objective: Objective, *, data: IndexHeader
    ) -> None:
        self._config = config
        self._place = place
        self._engine = engine
        self._objective = objective
        self._data = data
        self._folder = checkpoints_folder(place.storage)

    def save(self, step: int, metrics: Mapping[str, float]) -> str:
        """Save all state at a global step and return the checkpoint's URL; collective, rank 0 writes."""
        state = self._engine.state()
        if self._place.rank == 0:
            manifest = {
                "config": to_dict(self._config),
                "data_digest": self._data.digest,
                "fields": {name: field.model_dump(mode="json") for name, field in self._data.fields.items()},
                "metrics": dict(metrics),
                "run_id": self._config.tracking.run_id,
                "versions": versions(),
                "world_size": self._place.world_size,
            }
            extras = {OBJECTIVE: self._objective.state()}
            url = save_checkpoint(
                self._folder, step, state, extras, manifest, keep_last=self._config.train.keep_checkpoints
            )
        else:
            url = None
        return cast(str, self._from_rank_0(url))

    def restore(self) -> Restored | None:
        """Restore the run's last complete checkpoint, None if there is none; collective.

        Raises:
            UserError: The checkpoint was written by another configuration or from other data.
        """
        found = latest_checkpoint(self._folder) if self._place.rank == 0 else None
        url = cast("str | None", self._from_rank_0(found))
        if url is None:
            return None
        state, extras, manifest = load_checkpoint(url)
        self._check(manifest)
        self._engine.load_state(state)
        self._objective.load_state(extras[OBJECTIVE])
        return Restored(url, cast("dict[str, float]", manifest["metrics"]))

    def _check(self, manifest: Mapping[str, Any]) -> None:
        name = self._config.name
        if manifest["data_digest"] != self._data.digest:
            raise UserError(
                f"run '{name}' was begun on other data than {self._config.data.url} holds now; "
                "give the new run another name, such as name=" + name + "-2"
            )
        then, now = flatten(saved_config(manifest)), flatten(self._config)
        changed = sorted(
            key for key in then.keys() | now.keys() if then.get(key) != now.get(key) and not key.startswith(HARMLESS)
        )
        if changed:
            key = changed[0]
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise UserError(
                f"run '{name}' was begun with {key}={then.get(key, 'unset')}, now it is {now.get(key, 'unset')}{more}; "
                f"set it back, or give the new run another name, such as name={name}-2"
            )

    def _from_rank_0(self, value: object) -> object:
        if self._place.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]
