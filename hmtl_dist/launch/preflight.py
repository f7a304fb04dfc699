"""What can be known to be wrong before workers are started and MLflow is told of a run: seconds instead of a minute."""

import os

from hmtl_dist.data.dataset.schema import IndexHeader
from hmtl_dist.data.stream.selection import open_training
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tasks.base import PretextConfig, Task
from hmtl_dist.tasks.registry import build_tasks
from hmtl_dist.train.streams import evaluation_of


def check_data(config: RunConfig) -> None:
    """See that the data of a run are there, and have the labels that its tasks learn.

    Left out on a cluster: its machines read the data, with credentials of their own, and this one need not be able to.

    Raises:
        UserError: They are not, or have not.
    """
    data = config.data
    if config.launch.kind == "ray" and (config.launch.address or os.environ.get("RAY_ADDRESS")):
        return
    # Whole sets, for which the headers are enough; choosing from them would read every label twice.
    whole = data.model_copy(update={"subset": 1.0, "folds": None, "fold": 0, "balance": None})
    training = open_training(whole).header
    if data.folds is None:
        evaluation_of(config.model_copy(update={"data": whole}), training.fields)
    supervised_tasks(config, training)


def supervised_tasks(config: RunConfig, header: IndexHeader) -> list[Task]:
    """Build the supervised tasks of a run alone, for which no network is needed.

    Raises:
        UserError: The data have not the labels that they learn.
    """
    data = config.data
    supervised = {name: task for name, task in config.tasks.items() if not isinstance(task, PretextConfig)}
    return build_tasks(supervised, data.wanted(header.fields), header.label_counts, {}, data.image_size)
