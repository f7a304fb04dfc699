"""What a run leaves in its folder when it starts: its configuration and MLflow run, so that it can go on by name."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hmtl_dist.config.dialect import parse_json
from hmtl_dist.config.io import home, to_dict, with_overrides
from hmtl_dist.data.storage import ObjectMissingError, open_storage
from hmtl_dist.engine.checkpoint import newest_manifest
from hmtl_dist.errors import UserError
from hmtl_dist.run_config import RunConfig
from hmtl_dist.train.saving import checkpoints_folder

RECORD = "run.json"


def write_record(config: RunConfig, folder: str, *, uri_from_environment: bool) -> None:
    """Write a run's record into its folder, and into its folder here if that is another one.

    Args:
        config: With the address of MLflow and the run there that it is recorded in.
        folder: As `run_folder` returns it.
        uri_from_environment: Whether that address is what the environment said, rather than the recipe.
    """
    record = {
        "config": to_dict(config),
        "run_id": config.tracking.run_id,
        "folder": folder,
        "uri_from_environment": uri_from_environment,
    }
    data = json.dumps(record, indent=2).encode()
    for place in dict.fromkeys((folder, str(home() / "runs" / config.name))):
        open_storage(place).write(RECORD, data)


def check_place(config: RunConfig, folder: str) -> None:
    """See that the journal of this name on this machine is that of the run in this folder.

    Raises:
        UserError: It is that of a run whose checkpoints are elsewhere.
    """
    here = str(home() / "runs" / config.name)
    known = read_record(here)
    there = known.get("folder", folder) if known else folder
    if there != folder and open_storage(there).exists(RECORD):
        raise UserError(
            f"run '{config.name}' was begun here with its checkpoints in {there}, not in {folder}; give the new run "
            f"another name, such as name={config.name}-2, or set launch.storage as it was"
        )


def read_record(folder: str) -> dict[str, Any] | None:
    """Return the record in a run's folder, None where there is none.

    Raises:
        UserError: The storage refuses.
    """
    try:
        return parse_json(open_storage(folder).read(RECORD))
    except ObjectMissingError:
        return None
    except ValueError:  # torn by a full disk: nothing was trained by it yet
        return None


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
    known = read_record(folder) or newest_manifest(checkpoints_folder(folder))
    if known is None:
        raise UserError(f"{run}: no run there; give a name that `ls {home() / 'runs'}` shows, or a run's folder or URL")
    try:
        config = RunConfig.model_validate(known["config"])
    except (ValidationError, KeyError, TypeError) as error:
        raise UserError(f"{run}: its record is not of this version; start it by its recipe again") from error
    if known.get("uri_from_environment") and os.environ.get("MLFLOW_TRACKING_URI"):  # the server may have moved since
        config = config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": None})})
    if not named:  # it may have been moved since
        storage, _, name = (folder if "://" in folder else str(Path(folder).resolve())).rpartition("/")
        config = config.model_copy(
            update={"name": name, "launch": config.launch.model_copy(update={"storage": storage})}
        )
    return with_overrides(config, overrides)
