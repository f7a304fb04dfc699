"""What can be known to be wrong before workers are started and MLflow is told of a run: seconds instead of a minute.

configuration, indexes of the data  ->  selections  ->  plan, tasks, groups, figures  ->  a model without memory
"""

from collections.abc import Sequence

from hmtl_dist.data.config import DataConfig
from hmtl_dist.data.dataset.index import NoDataError
from hmtl_dist.data.dataset.schema import IndexHeader
from hmtl_dist.data.storage.config import settings as storage_settings
from hmtl_dist.data.stream.batches import label_types
from hmtl_dist.data.stream.selection import Selection, open_training
from hmtl_dist.engine.optim import check_device_fits, check_optimizer_fits
from hmtl_dist.errors import UserError
from hmtl_dist.launch.local import check_local
from hmtl_dist.launch.ray_cluster import check_own_gpus, cluster_address
from hmtl_dist.model.fits import check_frozen, check_model
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tasks.base import CLEAN, LinearHead, SingleRank, Task
from hmtl_dist.tasks.objective import Objective
from hmtl_dist.tasks.registry import build_tasks
from hmtl_dist.tasks.supervised import SupervisedTask
from hmtl_dist.train.groups import check_monitored, groupings_of
from hmtl_dist.train.initial import check_initial
from hmtl_dist.train.streams import evaluation_of, make_plan

FEW_SAMPLES = 200_000
"""Up to so many samples, a choice among them is made here too; it reads their labels, which workers read again."""


def check(config: RunConfig) -> None:
    """See that a run can begin: its place, and what `check_parts` looks at.

    Raises:
        UserError: It cannot.
    """
    launch = config.launch
    elsewhere = launch.kind == "ray" and cluster_address(launch) is not None
    if launch.kind == "local":
        config = check_local(config)
    elif not elsewhere:
        check_own_gpus(launch)
    check_parts(config, elsewhere=elsewhere)


def check_parts(config: RunConfig, *, elsewhere: bool = False, training: Selection | None = None) -> list[Task]:
    """See that data, tasks, figures and model of a run fit together.

    Args:
        config: The resolved configuration.
        elsewhere: Its workers are on other machines, which read the data with credentials of their own: what this one
            cannot reach is left to them.
        training: What is trained on, if it is opened already.

    Returns:
        The tasks, without frozen networks; none where the data could not be read.

    Raises:
        UserError: They do not.
    """
    check_optimizer_fits(config.optim, config.engine)
    check_device_fits(config.engine, "cuda" if config.launch.gpus_per_worker else "cpu")
    with storage_settings(config.storage):
        opened = _opened(config, training, elsewhere=elsewhere)
        if opened is None:
            heads, wiring = {name: LinearHead(1) for name in config.tasks}, dict.fromkeys(config.tasks, (CLEAN,))
            check_model(config.model, heads, wiring, image_size=config.data.image_size, pictures=_pictures(config))
            return []
        training, evaluation = opened
        header = training.header
        label_types(training.index, config.data.fields)
        plan = make_plan(config, training, shuffle=True)
        if config.launch.num_workers != "auto":
            plan.rank_lanes(0, config.launch.num_workers)
        fields = config.data.wanted(header.fields)
        tasks = build_tasks(config.tasks, fields, header.label_counts, {}, config.data.image_size)
        _check_classes(tasks, header)
        if evaluation is not None:
            groupings_of(config, evaluation.header.fields, tasks)
        if config.train.monitor is not None:
            check_monitored("train.monitor", config.train.monitor, tasks)
        objective = Objective(tasks, config.weighting, SingleRank(), config.augment)
        size, pictures = config.data.image_size, _pictures(config)
        check_model(config.model, objective.heads(), objective.wiring, image_size=size, pictures=pictures)
        check_frozen(config.tasks, config.model, size)
        check_initial(config.model)
    return tasks


def _opened(
    config: RunConfig, training: Selection | None, *, elsewhere: bool
) -> tuple[Selection, Selection | None] | None:
    """Open what is trained and evaluated on; None where only other machines can.

    Large sets are opened whole, for which the headers are enough; a fold to evaluate on is then not known.
    """
    data = config.data
    try:
        if training is not None:
            return training, evaluation_of(config, training.header.fields)
        whole = data.model_copy(update={"subset": 1.0, "folds": None, "fold": 0, "balance": None})
        training = open_training(whole)
        few = training.header.num_samples <= FEW_SAMPLES
        if few and whole != data:
            training = open_training(data)
        return training, evaluation_of(config, training.header.fields) if few or data.folds is None else None
    except UserError as error:
        if not elsewhere or (isinstance(error, NoDataError) and _is_shared(data)):
            raise
        return None


def _is_shared(data: DataConfig) -> bool:
    """Whether every machine finds the same under the URLs of the data."""
    urls = [data.url, data.eval_url or data.url, *(mixed.url for mixed in data.mix)]
    return all(url.startswith("s3://") for url in urls)


def _pictures(config: RunConfig) -> int:
    """Pictures of one rank's micro-batch."""
    workers = config.launch.num_workers
    return max(1, config.data.batch_size // ((1 if workers == "auto" else workers) * config.engine.accumulation_steps))


def _check_classes(tasks: Sequence[Task], header: IndexHeader) -> None:
    """See that there is something to tell apart in what is trained on."""
    for task in tasks:
        for label in task.labels if isinstance(task, SupervisedTask) else ():
            counts = header.label_counts.get(label)
            if not counts:  # an index of before, or a number
                continue
            seen = [name for name, count in zip(header.fields[label].classes, counts, strict=False) if count]
            if len(seen) < 2:
                there = f"only '{seen[0]}'" if seen else "none of its classes"
                raise UserError(
                    f"tasks.{task.name}: the pictures that are trained on have {there} as '{label}': there is nothing "
                    "to tell apart; build the set with more classes, or leave the task out"
                )
