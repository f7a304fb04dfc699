"""Bringing a run's record to MLflow after the run, when the server was away while it trained."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from hmtl_dist.config.addresses import start_it
from hmtl_dist.errors import UserError
from hmtl_dist.launch.folders import log_file, rank_folder, run_folder
from hmtl_dist.launch.lock import only_one
from hmtl_dist.launch.record import Record, begin_recording, read_record, write_record
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tracking.config import resolve, tracking_uri
from hmtl_dist.tracking.delivery import waiting
from hmtl_dist.tracking.jsonl import JOURNAL
from hmtl_dist.tracking.redact import redact
from hmtl_dist.tracking.runs import record_artifact, run_url
from hmtl_dist.tracking.sink import MlflowSink, deliver_rest
from hmtl_dist.train.base import RunContext


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
    record = read_record(run_folder(config)) or Record(config={})
    recording = resolve(tracking, record.run_id, known=record.tracking_uri)
    where = redact(tracking_uri(recording))
    with only_one(run_folder(config), config.name):
        begun = begin_recording(config, recording, record.parent) if MlflowSink(recording).answers() else None
        if begun is None or begun.run_id is None:
            raise UserError(
                f"MLflow at {where} does not answer: {start_it(where)}, or correct tracking.uri; the journal waits"
            )
        if begun.run_id != recording.run_id:
            write_record(config, RunContext(run_folder(config), begun, record.parent, record.attempt))
        before = len(waiting(folder / JOURNAL))
        rest = deliver_rest(begun, folder, on_progress)
    if rest.left:
        raise UserError(
            f"MLflow at {where} does not answer any more: {rest.left} of {before} events still wait in "
            f"{folder / JOURNAL}; the same command goes on from there"
        )
    record_artifact(begun, log_file(config.name))
    return Synced(before - rest.refused, rest.refused, begun.run_id, run_url(begun, begun.run_id))


def starts(config: RunConfig) -> int:
    """Return how often a run was started from this machine."""
    with suppress(UserError):  # of a record of another version
        record = read_record(str(log_file(config.name).parent))
        return record.attempt if record else 0
    return 0


def record_log(config: RunConfig, before: int) -> None:
    """Keep the log of a run's latest start in its MLflow run; never raises.

    Nothing happens while MLflow lacks what the run recorded before: it is away, and `hmtl-dist sync` comes later.

    Args:
        config: As it was given.
        before: Starts before this one; where it was refused there is none more, and its log is not the run's.
    """
    with suppress(UserError):
        log = log_file(config.name)
        record = read_record(str(log.parent))
        if record is None or record.run_id is None or record.attempt <= before or undelivered(config):
            return
        record_artifact(resolve(config.tracking, record.run_id, known=record.tracking_uri), log)
