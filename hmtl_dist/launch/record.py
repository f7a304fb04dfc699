"""What a run leaves in its folder when it starts: its configuration and MLflow run, so that it can go on by name."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError

from hmtl_dist.config.base import Section
from hmtl_dist.config.dialect import parse_json
from hmtl_dist.config.explain import explain
from hmtl_dist.config.io import flatten, home, to_dict, with_overrides
from hmtl_dist.data.storage import ObjectMissingError, open_storage
from hmtl_dist.engine.checkpoint import newest_manifest
from hmtl_dist.errors import UserError
from hmtl_dist.launch.about import notes
from hmtl_dist.launch.folders import RECORD
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tracking.config import Recording
from hmtl_dist.tracking.facts import code_tags
from hmtl_dist.tracking.runs import create_run
from hmtl_dist.train.base import RunContext
from hmtl_dist.train.saving import checkpoints_folder, read_config, saved_config


class Record(Section):
    """What is written."""

    model_config = ConfigDict(extra="ignore")

    config: dict[str, Any]
    """The configuration as it was given."""
    folder: str | None = None
    """Folder or URL of the run, which holds its checkpoints; empty: where the record was found."""
    run_id: str | None = None
    """Its MLflow run."""
    tracking_uri: str | None = None
    """Address of MLflow; empty if it has a password in it."""
    parent: str | None = None
    """MLflow run that it belongs to."""
    attempt: Annotated[int, Field(ge=0)] = 0
    """How often it was started."""


def begin_recording(
    config: RunConfig, recording: Recording, parent: str | None, say: Callable[[str], None] = lambda line: None
) -> Recording:
    """Return where a run is recorded, with the MLflow run that it was begun in, or a new one; None without MLflow.

    Args:
        config: As it was given.
        recording: Where it is recorded, and the MLflow run that it was begun in, if any.
        parent: MLflow run that a new one belongs to.
        say: Called with why MLflow is not told yet, where it is not required.

    Raises:
        UserError: MLflow does not answer and is required; or its address is not usable.
    """
    run_id = create_run(
        recording,
        name=config.name,
        known=recording.run_id,
        parent=parent,
        params=flatten(config),
        tags=code_tags() | notes(config) | config.tracking.tags,
        say=say,
    )
    return recording.model_copy(update={"run_id": run_id})


def write_record(config: RunConfig, run: RunContext) -> None:
    """Write a run's record into its folder, and into its folder here if that is another one.

    Args:
        config: As it was given.
        run: Which run it is.
    """
    recording = run.recording
    record = Record(
        config=to_dict(config),
        folder=run.folder,
        run_id=recording.run_id,
        tracking_uri=recording.uri,
        parent=run.parent,
        attempt=run.attempt,
    )
    data = record.model_dump_json(indent=2).encode()
    for place in dict.fromkeys((run.folder, str(home() / "runs" / config.name))):
        open_storage(place).write(RECORD, data)


def read_record(folder: str) -> Record | None:
    """Return the record in a run's folder, None where there is none.

    Raises:
        UserError: The storage refuses, or it is no record of this version.
    """
    try:
        return Record.model_validate(parse_json(open_storage(folder).read(RECORD)))
    except ObjectMissingError:
        return None
    except ValidationError as error:
        raise UserError(
            f"{folder}: its record is not of this version ({explain(error, Record)}); "
            f"remove {RECORD} there, and start the run by its recipe again"
        ) from error
    except ValueError:  # torn by a full disk: nothing was trained by it yet
        return None


def check_place(config: RunConfig, folder: str) -> None:
    """See that the journal of this name on this machine is that of the run in this folder.

    Raises:
        UserError: It is that of a run whose checkpoints are elsewhere.
    """
    known = read_record(str(home() / "runs" / config.name))
    there = (known and known.folder) or folder
    if there != folder and open_storage(there).exists(RECORD):
        raise UserError(
            f"run '{config.name}' was begun here with its checkpoints in {there}, not in {folder}; give the new run "
            f"another name, such as name={config.name}-2, or set launch.storage as it was"
        )


def load_run(run: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration that a run goes on with.

    Args:
        run: Name of a run that was started here, or a run's folder or URL.
        overrides: Settings over it, `path.to.key=value`.

    Raises:
        UserError: There is no such run, or an override is wrong.
    """
    named = "/" not in run and not Path(run).is_dir()
    folder = str(home() / "runs" / run) if named else run.rstrip("/")
    config = config_of(read_record(folder), folder)
    if config is None:
        raise UserError(f"{run}: no run there; give a name that `hmtl-dist runs ls` shows, or a run's folder or URL")
    if not named:  # it may have been moved since
        storage, _, name = (folder if "://" in folder else str(Path(folder).resolve())).rpartition("/")
        config = config.model_copy(
            update={"name": name, "launch": config.launch.model_copy(update={"storage": storage})}
        )
    return with_overrides(config, overrides)


def config_of(record: Record | None, folder: str) -> RunConfig | None:
    """Return what a run was started with last, or what its newest checkpoint says; None where there is neither.

    Args:
        record: The record in the run's folder, if there is one.
        folder: Folder or URL of the run.

    Raises:
        UserError: It is not of this version.
    """
    if record is None:
        manifest = newest_manifest(checkpoints_folder(folder))
        return None if manifest is None else saved_config(manifest)
    try:
        return read_config(record.config)
    except ValidationError as error:
        raise UserError(
            f"{folder}: its record is not of this version ({explain(error, RunConfig)}); start it by its recipe again"
        ) from error
