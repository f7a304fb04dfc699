"""The ledger of a sweep: one small file a trial, and one for the sweep itself, in the sweep's folder.

It is the only state of a sweep. What to try next, the rungs of successive halving and who has finished all follow from
it, so that a sweep whose driver, trials or whole cluster were killed goes on by reading it. A trial is written before
it starts, and with every figure it reports.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, ValidationError

from hmtl_dist.config.base import Section
from hmtl_dist.data.storage import ObjectMissingError, open_storage
from hmtl_dist.errors import UserError

Status = Literal["RUNNING", "FINISHED", "PRUNED", "FAILED", "STOPPED"]
ENDED: tuple[Status, ...] = ("FINISHED", "PRUNED", "FAILED")
SWEEP_FILE = "sweep.json"
TRIALS = "trials"


class Report(Section):
    """What a trial told at an evaluation."""

    step: int
    """Global step of the run."""
    metrics: Annotated[dict[str, float], Field(validation_alias=AliasChoices("metrics", "figures"))]
    """Figures of the evaluation."""
    at: float
    """Seconds since 1970."""
    params: dict[str, Any] | None = None
    """The values then, where they change while it trains."""


class Adoption(Section):
    """That a trial went on from another one's checkpoint."""

    step: int
    """Global step of the checkpoint."""
    donor: int
    """Number of the other trial."""
    params: dict[str, Any]
    """The values with which it went on."""


class Record(Section):
    """A trial."""

    number: int
    """Number in the sweep, from 0."""
    params: dict[str, Any]
    """What was drawn; where trials exchange weights, the values now."""
    status: Status = "RUNNING"
    """`PRUNED`: stopped early by the schedule; `STOPPED`: cut off, goes on with the sweep."""
    searcher: dict[str, Any] = Field(default_factory=dict[str, Any])
    """What the sampler notes with a draw."""
    reports: tuple[Report, ...] = ()
    """What it told, in order."""
    step: int = 0
    """Steps done by the run of the first seed."""
    total_steps: int = 0
    """Steps of a whole run; 0 before the first."""
    batch_size: int = 0
    """Samples of a step."""
    images: int = 0
    """Pictures trained on, over all seeds."""
    seconds: float = 0.0
    """Time that it trained."""
    cost: float = 0.0
    """What that time has cost, in the currency of `launch.node_hour_price`; 0 without one."""
    samples_per_second: float = 0.0
    """Pictures per second over its last part."""
    runs: dict[str, str | None] = Field(default_factory=dict[str, str | None])
    """MLflow run by the name of each of its runs."""
    by_seed: dict[str, dict[str, float]] = Field(default_factory=dict[str, dict[str, float]])
    """Last figures of each seed, where there are several."""
    adoptions: tuple[Adoption, ...] = ()
    """Checkpoints of others that it went on from."""
    error: str = ""
    """Why it failed."""

    @property
    def ended(self) -> bool:
        """Whether nothing more is to be done for it."""
        return self.status in ENDED

    @property
    def told_step(self) -> int:
        """Global step of the last report, 0 before the first."""
        return self.reports[-1].step if self.reports else 0

    @property
    def metrics(self) -> Mapping[str, float]:
        """The last figures."""
        return self.reports[-1].metrics if self.reports else {}

    def reported(self, step: int, metrics: Mapping[str, float], at: float | None = None) -> "Record":
        """Return the record with another report; what was told of later steps before an interruption is dropped."""
        now = time.time() if at is None else at
        kept = tuple(report for report in self.reports if report.step < step)
        new = Report(step=step, metrics=dict(metrics), at=now, params=self.params if self.adoptions else None)
        return self.model_copy(update={"reports": (*kept, new), "step": step})


class SweepState(Section):
    """The sweep itself."""

    settings: dict[str, str]
    """What decides its trials: space, recipe and overrides."""
    parent: str | None = None
    """Its MLflow run."""
    seconds: float = 0.0
    """Time spent on it so far."""
    retrained: dict[str, dict[str, float]] = Field(default_factory=dict[str, dict[str, float]])
    """Figures of the winner trained again, by seed."""


class Ledger:
    """Reads and writes the records of a sweep.

    Args:
        folder: Folder or `s3://` URL of the sweep.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._storage = open_storage(folder)
        self.records: dict[int, Record] = {record.number: record for record in self._read_all()}

    def state(self) -> SweepState | None:
        """Return the sweep's own state, None before its first start.

        Raises:
            UserError: It is of another version of this program.
        """
        try:
            return SweepState.model_validate_json(self._storage.read(SWEEP_FILE))
        except ObjectMissingError:
            return None
        except ValidationError as error:
            raise UserError(
                f"{self.folder}/{SWEEP_FILE}: not of this version; give the sweep another --name"
            ) from error

    def write_state(self, state: SweepState) -> None:
        """Write the sweep's own state."""
        self._storage.write(SWEEP_FILE, state.model_dump_json(indent=1).encode())

    def write(self, record: Record) -> Record:
        """Write a trial, and return it."""
        self._storage.write(f"{TRIALS}/{record.number:05d}.json", record.model_dump_json(indent=1).encode())
        self.records[record.number] = record
        return record

    def update(self, number: int, **changes: Any) -> Record:
        """Write a trial with some of its entries changed, and return it."""
        return self.write(self.records[number].model_copy(update=changes))

    def in_order(self) -> list[Record]:
        """Return all trials by their numbers."""
        return [self.records[number] for number in sorted(self.records)]

    def _read_all(self) -> Iterable[Record]:
        for info in self._storage.list(f"{TRIALS}/"):
            if not info.key.endswith(".json"):
                continue
            try:
                yield Record.model_validate_json(self._storage.read(info.key))
            except ValidationError as error:
                raise UserError(f"{self.folder}/{info.key}: damaged; give the sweep another --name") from error


def changed(then: Mapping[str, str], now: Mapping[str, str], shown: int = 3) -> str:
    """Say in which settings a sweep differs from how it was begun; empty if in none."""
    keys = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    said = [f"{key}={then.get(key, 'unset')}, now it is {now.get(key, 'unset')}" for key in keys[:shown]]
    return ", and with ".join(said) + (f" (and {len(keys) - shown} more)" if len(keys) > shown else "")
