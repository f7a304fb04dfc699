"""What a run reads: its training plan and schedule, what it is evaluated on, and the streams of both."""

from collections.abc import Mapping

from hmtl_dist.augment import GeometricTransform
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.data.stream.batches import Stream
from hmtl_dist.data.stream.plan import Plan
from hmtl_dist.data.stream.selection import Selection, open_evaluation
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tasks.registry import label_geometry
from hmtl_dist.train.base import RankContext
from hmtl_dist.train.saving import check_fields
from hmtl_dist.train.schedule import Schedule


def make_plan(config: RunConfig, selection: Selection, *, shuffle: bool) -> Plan:
    """Plan the epochs of what was selected; evaluation (`shuffle=False`) takes every sample once, in order."""
    data = config.data
    return Plan(
        selection.index.num_samples,
        batch_size=data.batch_size,
        lanes=data.lanes,
        seed=config.seed,
        shuffle=shuffle,
        block=data.shuffle_block,
        pools=selection.pools,
    )


def make_schedule(config: RunConfig, steps_per_epoch: int) -> Schedule:
    """Say what happens after which step of the run."""
    total = config.train.epochs * steps_per_epoch
    return Schedule(
        steps_per_epoch=steps_per_epoch,
        total_steps=min(total, config.train.max_steps or total),
        batch_size=config.data.batch_size,
        report_every_steps=config.train.report_every_steps,
        evaluate_every_epochs=config.train.evaluate_every_epochs,
        checkpoint_every_epochs=config.train.checkpoint_every_epochs,
        checkpoint_every_steps=config.train.checkpoint_every_steps,
    )


def evaluation_of(config: RunConfig, fields: Mapping[str, Field]) -> Selection:
    """Open what a configuration evaluates on, with the labels that a model is trained on.

    Raises:
        UserError: The data cannot be read, or holds other labels.
    """
    data = config.data
    elsewhere = data.mix or data.eval_url  # a set that need not have all of these labels
    selection = open_evaluation(data, dict(fields) if elsewhere else None)
    check_fields(fields, selection.header.fields, f"{data.eval_url or data.url}, split {selection.header.split}")
    return selection


def open_stream(
    config: RunConfig,
    selection: Selection,
    rank_context: RankContext,
    plan: Plan | None = None,
    start: tuple[int, int] = (0, 0),
) -> Stream:
    """Open a rank's share of a selection: endlessly along a training plan from a cursor, or once for evaluation."""
    train = plan is not None
    data = config.data
    return Stream(
        selection.index,
        plan or make_plan(config, selection, shuffle=False),
        GeometricTransform(config.augment, data.image_size, label_geometry(config.tasks), config.seed, train=train),
        data,
        rank=rank_context.rank,
        world_size=rank_context.world_size,
        start=start,
        epochs=None if train else 1,
    )
