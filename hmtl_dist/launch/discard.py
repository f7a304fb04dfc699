"""Taking away what a run has left, so that its name can be begun anew."""

import re
import shutil
from contextlib import suppress
from pathlib import Path

from hmtl_dist.config.io import home
from hmtl_dist.data.storage import open_storage
from hmtl_dist.launch.folders import ADOPTED, LOG, RECORD, run_folder
from hmtl_dist.launch.lock import LOCK
from hmtl_dist.launch.record import read_record
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tracking.config import resolve
from hmtl_dist.tracking.runs import finish_run

_OWN = re.compile(rf"(checkpoints|rank-\d+)/|{re.escape(RECORD)}$|{re.escape(ADOPTED)}$")
"""What a run writes into its folder, but for lock and log; a sweep of the same name has files of its own there."""


def discard(config: RunConfig, *, log: bool = False) -> None:
    """Remove a run's checkpoints, record and journal; its MLflow run stays. Whoever calls holds its lock.

    Oldest checkpoints go first and the record last: a call that is killed leaves a run that goes on from its newest.

    Args:
        config: Of the run.
        log: Remove its log too, and its folders where nothing else is in them.

    Raises:
        UserError: The storage refuses.
    """
    folder = run_folder(config)
    record = read_record(folder)
    if record is not None:
        finish_run(resolve(config.tracking, record.run_id, known=record.tracking_uri), record.run_id, "KILLED")
    for place in dict.fromkeys((folder, str(home() / "runs" / config.name))):
        storage = open_storage(place)
        for key in sorted(info.key for info in storage.list()):
            if _OWN.match(key) or (log and key == LOG):
                storage.delete(key)
        if "://" not in place:  # folders are there still, with what a killed writer has left in them
            for child in Path(place).glob("*/"):
                if _OWN.match(f"{child.name}/"):
                    shutil.rmtree(child, ignore_errors=True)
            if log:
                (Path(place) / LOCK).unlink(missing_ok=True)  # of a run on S3 its holder's alone, who renews it
                with suppress(OSError):  # it holds what is not the run's, or was never there
                    Path(place).rmdir()
