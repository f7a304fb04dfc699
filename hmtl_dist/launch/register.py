"""A saved run's model as a registered version in MLflow, from this process."""

from hmtl_dist.launch.models import load_trained
from hmtl_dist.temporary import temporary_folder
from hmtl_dist.tracking.config import TrackingConfig
from hmtl_dist.tracking.logged_model import record_model


def register_run(run: str, tracking: TrackingConfig, run_id: str, *, name: str, alias: str) -> str:
    """Register the model of a run's last checkpoint; averaged weights where the run kept some.

    Args:
        run: Name of a run in the home folder, or folder or URL of a run or of one checkpoint.
        tracking: Where MLflow is.
        run_id: The run's MLflow run, which the model is recorded in.
        name: Registered model, made if there is none.
        alias: Alias that moves to the new version.

    Returns:
        The id of the MLflow model.

    Raises:
        UserError: There is no such run, it has no supervised task, or MLflow refuses.
    """
    model = load_trained(run)
    wanted = tracking.model_copy(update={"register_model": name, "register_alias": alias})
    with temporary_folder("model") as work:
        folder = work / "model"
        model.write(folder)
        return record_model(wanted, run_id, folder)
