"""Bringing a run's record to MLflow after the run, when the server was away while it trained."""

from collections.abc import Callable
from dataclasses import dataclass

from hmtl_dist.config.addresses import start_it
from hmtl_dist.config.io import flatten
from hmtl_dist.errors import UserError
from hmtl_dist.launch.lock import only_one
from hmtl_dist.launch.place import rank_folder, run_folder
from hmtl_dist.launch.record import write_record
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tracking.config import resolve, tracking_uri
from hmtl_dist.tracking.delivery import waiting
from hmtl_dist.tracking.facts import code_tags
from hmtl_dist.tracking.jsonl import JOURNAL
from hmtl_dist.tracking.mlflow import MlflowSink, create_run, deliver_rest, run_url
from hmtl_dist.tracking.redact import redact


@dataclass(frozen=True)
class Synced:
    """What was delivered."""

    delivered: int
    """Events that MLflow has now."""
    refused: int
    """Events that MLflow would not take, although it is well; the log names them."""
    run_id: str
    run_url: str


def undelivered(config: RunConfig) -> int:
    """Return how many events of a run wait in its journal on this machine."""
    return len(waiting(rank_folder(config, 0) / JOURNAL)) if config.tracking.enabled else 0


def sync_run(config: RunConfig, on_progress: Callable[[int, int], None]) -> Synced:
    """Deliver what a run's journal still holds to MLflow: everything once, in order, from where it broke off.

    A run that began while MLflow was away gets its MLflow run now, and goes on in it when it is resumed.

    Args:
        config: Of the run, as `load_run` returns it.
        on_progress: Called with events delivered and events that waited.

    Raises:
        UserError: The run is being trained, nothing was recorded here, MLflow is switched off or does not answer.
    """
    tracking, folder = config.tracking, rank_folder(config, 0)
    if not tracking.enabled:
        raise UserError(f"run '{config.name}' has tracking.enabled=false; add tracking.enabled=true to deliver it")
    if not (folder / JOURNAL).exists():
        raise UserError(
            f"run '{config.name}': {folder / JOURNAL} is missing; the journal lies on the machine of its first worker"
        )
    where = redact(tracking_uri(tracking))
    with only_one(run_folder(config), config.name):
        answers = MlflowSink(tracking).answers()
        tags = code_tags() | tracking.tags
        known = create_run(tracking, name=config.name, params=flatten(config), tags=tags) if answers else None
        if known is None:
            raise UserError(
                f"MLflow at {where} does not answer: {start_it(where)}, or correct tracking.uri; the journal waits"
            )
        config = config.model_copy(update={"tracking": resolve(tracking, known)})
        if known != tracking.run_id:
            write_record(config, run_folder(config), uri_from_environment=tracking.uri is None)
        before = len(waiting(folder / JOURNAL))
        rest = deliver_rest(config.tracking, folder, on_progress)
    if rest.left:
        raise UserError(
            f"MLflow at {where} does not answer any more: {rest.left} of {before} events still wait in "
            f"{folder / JOURNAL}; the same command goes on from there"
        )
    return Synced(before - rest.refused, rest.refused, known, run_url(config.tracking, known))
