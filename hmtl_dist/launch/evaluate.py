"""Evaluation of a saved run, in this process."""

from pathlib import Path

from hmtl_dist.config.io import home
from hmtl_dist.data.storage import open_storage
from hmtl_dist.engine.checkpoint import MANIFEST, latest_checkpoint, load_checkpoint
from hmtl_dist.errors import UserError
from hmtl_dist.train.evaluate import Evaluation
from hmtl_dist.train.saving import OBJECTIVE, checkpoints_folder, saved_config, saved_fields
from hmtl_dist.train.worker import evaluate_state


def evaluate_run(run: str, *, split: str | None = None, data: str | None = None) -> tuple[Evaluation, str]:
    """Evaluate a run's last checkpoint; EMA weights where the run kept them.

    Args:
        run: Name of a run in the home folder, or folder or URL of a run or of one checkpoint.
        split: Split to evaluate on; the run's own `data.eval_split` by default.
        data: Data set to evaluate on; the run's own by default.

    Returns:
        What was found, and the checkpoint it was found with.

    Raises:
        UserError: There is no such run or checkpoint, or its data cannot be read.
    """
    checkpoint = find_checkpoint(run)
    state, extras, manifest = load_checkpoint(checkpoint)
    config = saved_config(manifest)
    changes = {key: value for key, value in (("eval_split", split), ("url", data)) if value is not None}
    config = config.model_copy(update={"data": config.data.model_copy(update=changes)})
    return evaluate_state(config, state, extras[OBJECTIVE], saved_fields(manifest)), checkpoint


def find_checkpoint(run: str) -> str:
    """Return the checkpoint that a run's name, folder or URL, or a checkpoint's own, stands for.

    Raises:
        UserError: There is none.
    """
    if "://" not in run and "/" not in run and not Path(run).is_dir():
        run = str(home() / "runs" / run)
    if open_storage(run).exists(MANIFEST):
        return run
    found = latest_checkpoint(checkpoints_folder(run)) or latest_checkpoint(run)
    if found is None:
        raise UserError(f"{run}: no run and no complete checkpoint there; `ls {home() / 'runs'}` shows the runs")
    return found
