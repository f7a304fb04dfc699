"""Saving a run as a checkpoint, and going on from the last one."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from pydantic import ConfigDict, ValidationError
from pydantic import Field as PydanticField
from torch import Tensor

from hmtl_dist.config.base import Section, may_change
from hmtl_dist.config.explain import explain
from hmtl_dist.config.io import flatten, to_dict
from hmtl_dist.data.dataset.schema import Field, IndexHeader
from hmtl_dist.data.storage import open_storage
from hmtl_dist.engine.base import Engine, EngineState
from hmtl_dist.engine.checkpoint import (
    MANIFEST,
    checkpoint_at,
    load_checkpoint,
    load_newest,
    newest_manifest,
    read_manifest,
    remove_scratch,
    save_checkpoint,
)
from hmtl_dist.engine.core import cpu_copy
from hmtl_dist.engine.ranks import read_by_first, tensors_of_first
from hmtl_dist.errors import UserError
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tasks.objective import Objective
from hmtl_dist.tracking.delivery import waiting_metrics
from hmtl_dist.tracking.facts import versions
from hmtl_dist.tracking.jsonl import JOURNAL, Event
from hmtl_dist.train.background import Background
from hmtl_dist.train.base import RankContext
from hmtl_dist.train.best import BEST_STEP

OBJECTIVE = "objective"
"""Name of the checkpoint's file with the state of tasks and weighting."""

LENGTH = ("train.epochs", "train.max_steps")
"""Where a run ends. Another end moves no step that was taken, unless the learning rate was planned for it."""
_RETIRED = ("run_id",)
"""Keys of `tracking` in earlier versions that said which run it is."""
_RENAMED = {"gap_figures": "gap_metrics"}
"""Keys of `train` in earlier versions, and what they are called now."""
SHOWN_CHANGES = 4
KEPT_METRICS = 1000
"""Most windows and evaluations that wait for MLflow of which a checkpoint holds the figures: the newest ones."""

_Whole = tuple[str, EngineState, dict[str, dict[str, Tensor]], dict[str, Any]]
"""A checkpoint as `load_newest` returns it."""

logger = logging.getLogger(__name__)


class Recorded(Section):
    """Figures that a run has recorded; they may be no numbers."""

    model_config = ConfigDict(allow_inf_nan=True, extra="ignore")

    event: Literal["metrics"]
    step: int
    """Global step."""
    time: int
    """Milliseconds since 1970."""
    values: dict[str, float]


class Entries(Section):
    """What a checkpoint's manifest holds beside the engine's part; figures may be no numbers."""

    model_config = ConfigDict(allow_inf_nan=True, extra="ignore")

    config: dict[str, Any]
    """The resolved configuration."""
    data_digest: str
    """Digest of the training data."""
    fields: dict[str, Field]
    """Labels of the training data."""
    label_counts: dict[str, list[int]] = PydanticField(default_factory=dict[str, list[int]])
    """Samples of each class in it, as an epoch draws them: class weights come from these."""
    metrics: dict[str, float]
    """The last evaluation's figures."""
    evaluated_at: int | None = None
    """Global step of that evaluation."""
    run_id: str | None
    """The run's MLflow run."""
    skipped: int = 0
    """Steps that were left out."""
    undelivered: list[Recorded] = PydanticField(default_factory=list[Recorded])
    """What waited for MLflow in the journal, which lies on the machine of the first rank."""
    versions: dict[str, str]
    """Versions of the packages it was trained with."""
    world_size: int
    """Ranks that wrote it."""


@dataclass(frozen=True)
class Restored:
    """Where a run goes on."""

    checkpoint: str
    metrics: Mapping[str, float]
    evaluated_at: int | None
    """Global step at which these figures were found, if it is known."""
    skipped: int
    """Steps that were left out so far."""
    undelivered: Sequence[Event]
    """Figures that had not reached MLflow then, as the journal has them."""


def checkpoints_folder(storage: str) -> str:
    """Return the folder or URL of a run's checkpoints."""
    return f"{storage.rstrip('/')}/checkpoints"


def find_checkpoint(url: str) -> tuple[str, EngineState, dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """Read a checkpoint by its own folder or URL, or the newest whole one of a run by the run's; None without any.

    Raises:
        UserError: It is damaged, or the storage refuses.
    """
    if open_storage(url).exists(MANIFEST):
        return (url, *load_checkpoint(url))
    return load_newest(checkpoints_folder(url)) or load_newest(url)


def find_manifest(url: str) -> Mapping[str, Any] | None:
    """Do the same, reading nothing but the manifest."""
    if open_storage(url).exists(MANIFEST):
        return read_manifest(url)
    return newest_manifest(checkpoints_folder(url)) or newest_manifest(url)


def read_config(tree: dict[str, Any]) -> RunConfig:
    """Check a configuration that a run has left, without what is none of its settings any more.

    Raises:
        ValidationError: It is not of this version of the program.
    """
    tracking, train = tree.get("tracking"), tree.get("train")
    if isinstance(tracking, dict):
        known = {key: value for key, value in cast("dict[str, Any]", tracking).items() if key not in _RETIRED}
        tree = {**tree, "tracking": known}
    if isinstance(train, dict):
        tree = {
            **tree,
            "train": {_RENAMED.get(key, key): value for key, value in cast("dict[str, Any]", train).items()},
        }
    return RunConfig.model_validate(tree)


def saved_config(manifest: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that a checkpoint was written with.

    Raises:
        UserError: It is not of this version of the program.
    """
    try:
        return read_config(read_entries(manifest).config)
    except ValidationError as error:
        raise UserError(
            f"the configuration in the checkpoint is not of this version ({explain(error, RunConfig)}): go on with the "
            "version that wrote it, or begin a new run under another name"
        ) from error


def check_changes(manifest: Mapping[str, Any], config: RunConfig) -> None:
    """Compare the configuration that a run goes on with to the one it was begun with.

    Raises:
        UserError: They differ in more than what may change; names the differences. A run without a planned learning
            rate may end elsewhere.
    """
    before = saved_config(manifest)
    then, now = flatten(before), flatten(config)
    if before.tasks.keys() == config.tasks.keys():  # heads are initialised, and weightings remember, in this order
        then["the order of tasks"], now["the order of tasks"] = ", ".join(before.tasks), ", ".join(config.tasks)
    changed = sorted(
        key for key in then.keys() | now.keys() if then.get(key) != now.get(key) and not may_change(RunConfig, key)
    )
    if {before.optim.schedule, config.optim.schedule} == {"constant"}:
        changed = [key for key in changed if key not in LENGTH]
    if changed:
        said = ", and with ".join(
            f"{key}={then.get(key, 'unset')}, now it is {now.get(key, 'unset')}" for key in changed[:SHOWN_CHANGES]
        )
        more = f" (and {len(changed) - SHOWN_CHANGES} more)" if len(changed) > SHOWN_CHANGES else ""
        planned = (
            f"optim.schedule={before.optim.schedule} has planned the learning rate for that end (constant plans none); "
            if set(changed) <= set(LENGTH)
            else ""
        )
        raise UserError(
            f"run '{config.name}' was begun with {said}{more}; {planned}set it back, accept it with --allow-changes, "
            f"begin anew with --restart, or give the new run another name, such as name={config.name}-2"
        )


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


def read_entries(manifest: Mapping[str, Any]) -> Entries:
    """Read what a checkpoint's manifest holds beside the engine's part.

    Raises:
        UserError: It is not of this version of the program.
    """
    try:
        return Entries.model_validate(dict(manifest))
    except ValidationError as error:
        raise UserError(
            f"the checkpoint's manifest is not of this version ({explain(error, Entries)}): go on with the version "
            "that wrote it, or begin a new run under another name"
        ) from error


def _say(field: Field) -> str:
    return f"one of {', '.join(field.classes)}" if field.kind == "category" else "a number"


class Saver:
    """Saves and restores one rank's engine and objective.

    Saving copies the state; it is written and uploaded in a thread while the run goes on. At most one checkpoint is in
    flight, and what goes wrong with it is raised by the next call.
    """

    def __init__(
        self, config: RunConfig, rank_context: RankContext, engine: Engine, objective: Objective, *, data: IndexHeader
    ) -> None:
        self._config = config
        self._rank_context = rank_context
        self._engine = engine
        self._objective = objective
        self._data = data
        self._folder = checkpoints_folder(rank_context.run.folder)
        self._newest: str | None = None
        self._writer = Background("checkpoint")
        self._saved_at = time.monotonic()
        self._seconds: float | None = None

    def due(self) -> bool:
        """Whether it is time to save by this rank's clock; the first rank's is the one that counts."""
        minutes = self._config.train.checkpoint_every_minutes
        return minutes is not None and self._rank_context.rank == 0 and time.monotonic() > self._saved_at + 60 * minutes

    def save(
        self, step: int, metrics: Mapping[str, float], skipped: int = 0, evaluated_at: int | None = None
    ) -> str | None:
        """Begin to save all state at a global step; collective, rank 0 writes.

        Args:
            step: Optimizer steps taken.
            metrics: The last evaluation's figures.
            skipped: Steps left out so far.
            evaluated_at: Global step of that evaluation.

        Returns:
            The URL of the newest checkpoint that is complete: the one before this.

        Raises:
            UserError: The checkpoint before this one could not be written.
        """
        self._writer.wait()
        state = self._engine.state()
        newest, self._newest = self._newest, checkpoint_at(self._folder, step)
        if self._rank_context.rank == 0:
            manifest = {
                "config": to_dict(self._config),
                "data_digest": self._data.digest,
                "fields": {name: field.model_dump(mode="json") for name, field in self._data.fields.items()},
                "label_counts": {name: [*counts] for name, counts in self._data.label_counts.items()},
                "metrics": dict(metrics),
                "evaluated_at": evaluated_at,
                "run_id": self._rank_context.run.recording.run_id,
                "skipped": skipped,
                "versions": versions(),
                "world_size": self._rank_context.world_size,
            }
            extras = {OBJECTIVE: {name: cpu_copy(value) for name, value in self._objective.state().items()}}
            best = metrics.get(BEST_STEP)
            self._rank_context.scratch.mkdir(parents=True, exist_ok=True)

            def write() -> None:
                begun = time.monotonic()
                journal = self._rank_context.scratch / JOURNAL
                waits = waiting_metrics(journal, step, KEPT_METRICS) if self._config.tracking.enabled else []
                save_checkpoint(
                    self._folder,
                    step,
                    state,
                    extras,
                    {**manifest, "undelivered": waits},
                    keep_last=self._config.train.keep_checkpoints,
                    protected=() if best is None else (checkpoint_at(self._folder, int(best)),),
                    scratch=self._rank_context.scratch,
                )
                self._seconds = time.monotonic() - begun

            self._writer.start(write)
        self._saved_at = time.monotonic()
        return newest

    def metrics(self) -> dict[str, float]:
        """Return the seconds that writing and uploading the last checkpoint took, once; empty where none is new."""
        seconds, self._seconds = self._seconds, None
        return {} if seconds is None else {"checkpoint/seconds": seconds}

    def saved(self) -> str | None:
        """Wait until what was saved is complete and return the newest checkpoint's URL; collective.

        Raises:
            UserError: It could not be written.
        """
        return read_by_first(self._finished)

    def _finished(self) -> str | None:
        self._writer.wait()
        return self._newest

    def close(self) -> None:
        """Wait for a checkpoint in flight, whose failure is only logged: the run has ended by another one."""
        try:
            self._writer.wait()
        except Exception as error:  # noqa: BLE001  (whatever the storage raises)
            logger.warning("the last checkpoint could not be written: %s", error)

    def restore(self, say: Callable[[str], None] = logger.warning) -> Restored | None:
        """Restore the run's last complete checkpoint, None if there is none; collective.

        Args:
            say: Called on the first rank with a line for each newer one that is torn or damaged.

        Raises:
            UserError: The checkpoint was written from other data, or by another model; or there are checkpoints, and
                none of them is whole.
        """
        if self._rank_context.rank == 0:
            remove_scratch(self._rank_context.scratch)
        found = self._read_newest(say)
        if found is None:
            return None
        self._newest, state, extras, manifest = found
        entries = read_entries(manifest)
        self._check(entries)
        if OBJECTIVE not in extras:
            raise UserError(f"checkpoint {self._newest} lacks its {OBJECTIVE}: it is none of a run of this program")
        self._engine.load_state(state)
        self._objective.load_state(extras[OBJECTIVE])
        waited = [recorded.model_dump() for recorded in entries.undelivered]
        return Restored(self._newest, entries.metrics, entries.evaluated_at, entries.skipped, waited)

    def _read_newest(self, say: Callable[[str], None]) -> _Whole | None:
        """Read the newest whole checkpoint, once for all ranks; collective."""
        own: list[_Whole] = []  # the first rank's alone

        def read() -> tuple[str, dict[str, int], list[str], dict[str, Any]] | None:
            own.extend(found for found in [load_newest(self._folder, say)] if found)
            return next(((url, state.counters, list(extras), rest) for url, state, extras, rest in own), None)

        known = read_by_first(read)
        if known is None or self._rank_context.world_size == 1:
            return own[0] if own else None
        url, counters, names, manifest = known
        mine, others = (own[0][1], own[0][2]) if own else (EngineState(), {})
        state = EngineState(
            model=tensors_of_first(mine.model),
            optimizer=tensors_of_first(mine.optimizer),
            ema=tensors_of_first(mine.ema),
            counters=counters,
        )
        return url, state, {name: tensors_of_first(others.get(name, {})) for name in names}, manifest

    def _check(self, entries: Entries) -> None:
        name = self._config.name
        if entries.data_digest != self._data.digest:
            raise UserError(
                f"run '{name}' was begun on other data than {self._config.data.url} holds now; "
                "give the new run another name, such as name=" + name + "-2"
            )
