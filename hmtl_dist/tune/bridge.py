"""How a trial goes on from another one's checkpoint, for population based training.

Ray's schedulers know checkpoints as opaque things that a trial writes and another one is given. Here such a thing is
only the URL of a consolidated checkpoint of ours. The trial that is given one takes it into its own folder, as if it
had written it: weights, optimizer, schedule, moving averages and cursor are the donor's, its name, its MLflow run and
the values it goes on with are its own. From there on it is an ordinary run, that can be interrupted and resumed.
"""

import time
from pathlib import Path
from typing import Any

from hmtl_dist.config.io import to_dict
from hmtl_dist.data.storage import open_storage
from hmtl_dist.engine.checkpoint import (
    DamagedCheckpointError,
    checkpoint_at,
    complete_steps,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)
from hmtl_dist.errors import UserError
from hmtl_dist.launch.folders import ADOPTED, run_folder
from hmtl_dist.run_config import RunConfig
from hmtl_dist.train.saving import checkpoints_folder

WRITTEN_SECONDS = 300.0
"""How long a checkpoint that is being written may take."""
LOOK_SECONDS = 0.1


def await_checkpoint(config: RunConfig, step: int) -> str | None:
    """Wait until the checkpoint of a step, whose writing has begun, is complete; return its URL.

    A trial goes on while Tune asks for its checkpoint: where that step's is gone by now, the newest one is returned.
    Returns None if none appears.
    """
    folder = checkpoints_folder(run_folder(config))
    deadline = time.monotonic() + WRITTEN_SECONDS
    while time.monotonic() < deadline:
        steps = complete_steps(folder)
        if steps and steps[-1] >= step:
            return checkpoint_at(folder, step if step in steps else steps[-1])
        time.sleep(LOOK_SECONDS)
    return None


def adopt(donor: str, config: RunConfig, run_id: str | None, scratch: Path) -> int:
    """Take a checkpoint into the run's folder, in place of all that the run has; done twice, the second does nothing.

    Args:
        donor: URL of the other run's checkpoint. If it is gone by now, the newest of the same run is taken.
        config: The configuration that the run goes on with.
        run_id: MLflow run of this run.
        scratch: Folder for temporary files.

    Returns:
        The global step of what was taken; 0 if it had been taken before.

    Raises:
        UserError: The other run has no whole checkpoint.
    """
    folder = run_folder(config)
    storage = open_storage(folder)
    if donor.startswith(f"{checkpoints_folder(folder)}/"):  # its own: it only goes on
        return 0
    if storage.exists(ADOPTED) and storage.read(ADOPTED).decode() == donor:
        return 0
    state, extras, manifest = _read(donor)
    step = state.counters["global_step"]
    entries: dict[str, Any] = {**manifest, "config": to_dict(config), "run_id": run_id, "undelivered": []}
    scratch.mkdir(parents=True, exist_ok=True)
    save_checkpoint(checkpoints_folder(folder), step, state, extras, entries, keep_last=1, scratch=scratch)
    storage.write(ADOPTED, donor.encode())
    return step


def _read(url: str) -> Any:
    try:
        return load_checkpoint(url)
    except DamagedCheckpointError as error:
        newest = load_newest(url.rsplit("/", 1)[0])
        if newest is None:
            raise UserError(f"{url}: is gone, and no other checkpoint of that trial is whole") from error
        return newest[1:]
