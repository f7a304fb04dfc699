"""`hmtl-dist reproduce`: a suite from its file to its table."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hmtl_dist.config.io import home, load_tree
from hmtl_dist.data.dataset.build import BuildSettings, build
from hmtl_dist.data.dataset.index import open_index
from hmtl_dist.data.drawn.faces import SyntheticAdapter, SyntheticSettings
from hmtl_dist.data.storage import open_storage
from hmtl_dist.errors import UserError
from hmtl_dist.reproduce.page import write_page
from hmtl_dist.reproduce.results import Result, Store
from hmtl_dist.reproduce.runner import Listener, Planned, check, probe_command, run_jobs, train_command
from hmtl_dist.reproduce.suite import DataSource, Job, Suite, drawn_url, jobs
from hmtl_dist.reproduce.table import Line, as_csv, as_metrics, build_table
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tracking.config import PARENT, TrackingConfig, resolve
from hmtl_dist.tracking.facts import code_tags
from hmtl_dist.tracking.runs import create_run
from hmtl_dist.tracking.sink import open_tracker

DATASET_FILE = "dataset.json"
PARENT_FILE = "parent.txt"


@dataclass(frozen=True)
class Request:
    """What a person asked for."""

    suite: Suite
    name: str
    """What the runs' names begin with; the same name goes on where it stopped."""
    seeds: Sequence[int]
    only: Sequence[str] = ()
    settings: Sequence[str] = ()
    """Overrides of every recipe."""
    parallel: int = 1

    @property
    def folder(self) -> Path:
        """Where results and tables are."""
        return home() / "reproduce" / self.name

    def jobs(self) -> list[Job]:
        """Every run that was asked for."""
        return jobs(self.suite, self.name, self.seeds, self.only, self.settings)


@dataclass(frozen=True)
class Reproduced:
    """What has come of a suite so far."""

    lines: list[Line]
    failures: list[Result]
    stopped: bool
    """Whether somebody asked to stop before all had run."""
    files: tuple[Path, ...]
    """The table as CSV and as a page."""


def reproduce(request: Request, *, say: Callable[[str], None], listen: Listener) -> Reproduced:
    """Run what is missing of a suite, and write its table.

    Args:
        request: What to run.
        say: Told in a line what else happens.
        listen: Told of every run that ended or was skipped.

    Raises:
        UserError: A configuration is not sound, data is missing, or another invocation is at work.
    """
    store = Store(request.folder)
    with store.locked() as lock:
        planned = check(request.jobs())
        _provide_data(request.suite, [plan.job for plan in planned], say)
        tracking = _tracking(planned)
        parent = _parent(tracking, request, say)
        tags = {"suite": request.name} | ({PARENT: parent} if parent else {})

        urls = {name: drawn_url(source) for name, source in request.suite.data.items()}

        def command(job: Job, results: Mapping[str, Result]) -> list[str]:
            return train_command(job, results, tags) if job.probe is None else probe_command(job, results, urls)

        results, stopped = run_jobs(planned, store, command, parallel=request.parallel, lock=lock, listen=listen)
        lines = build_table(request.suite, request.name, request.seeds, results)
        files = _write(request, lines)
        _record(tracking, parent, request, lines, files, finished=sum(r.status == "FINISHED" for r in results.values()))
    failures = [result for result in results.values() if result.status == "FAILED"]
    return Reproduced(lines, failures, stopped, files)


def needs(suite: Suite, row: str) -> str:
    """Say what a row needs before it can run."""
    found = suite.rows[row]
    names = [found.data, found.probe.data if found.probe else None]
    sources = [suite.data[name] for name in names if name is not None]
    said = [source.needs or ("nothing, its faces are drawn" if source.draw else "") for source in sources]
    return "; ".join(part for part in [*said, found.needs] if part)


def _provide_data(suite: Suite, planned: Sequence[Job], say: Callable[[str], None]) -> None:
    """Draw what can be drawn, and see that the rest is there."""
    rows = [suite.rows[name] for name in dict.fromkeys(job.row for job in planned)]
    for name in dict.fromkeys(data for row in rows for data in (row.data, row.probe.data if row.probe else None)):
        if name is None:
            continue
        source = suite.data[name]
        url = drawn_url(source)
        if open_storage(url).exists(DATASET_FILE):
            continue
        if source.draw is None:
            raise UserError(
                f"data set {name}: nothing at {url}; {source.needs or 'build it'}, or give --data {name}=URL"
            )
        say(f"drawing {source.draw.samples} faces to {url}")
        _draw(source, url)


def _draw(source: DataSource, url: str) -> None:
    draw = source.draw
    if draw is None:
        return
    adapter = SyntheticAdapter(SyntheticSettings(draw.samples, draw.identities, draw.image_size))
    settings = BuildSettings(dataset="drawn-faces", splits=draw.splits, shard_samples=500)
    build(adapter, url, settings, num_workers=os.cpu_count() or 1)
    for split in draw.splits:
        open_index(url, split)


def _tracking(planned: Sequence[Planned]) -> TrackingConfig:
    """Return where the runs are recorded: as the first training says."""
    job = next((plan.job for plan in planned if plan.job.probe is None), None)
    if job is None:
        return TrackingConfig(enabled=False)
    return load_tree(RunConfig, job.recipe, job.overrides).tracking


def _parent(tracking: TrackingConfig, request: Request, say: Callable[[str], None]) -> str | None:
    """Create the MLflow run that the suite's runs belong to, or find that of an earlier invocation."""
    file = request.folder / PARENT_FILE
    known = file.read_text(encoding="utf-8").strip() if file.exists() else None
    tags = code_tags() | {"suite": request.name, "title": request.suite.title}
    run_id = create_run(tracking, name=f"reproduce {request.name}", known=known, tags=tags, say=say)
    if run_id is not None:
        file.write_text(run_id, encoding="utf-8")
    return run_id


def _write(request: Request, lines: Sequence[Line]) -> tuple[Path, Path]:
    table, page = request.folder / "table.csv", request.folder / "table.html"
    table.write_text(as_csv(lines), encoding="utf-8")
    page.write_text(write_page(request.suite, lines), encoding="utf-8")
    return table, page


def _record(
    tracking: TrackingConfig,
    parent: str | None,
    request: Request,
    lines: Sequence[Line],
    files: Sequence[Path],
    *,
    finished: int,
) -> None:
    """Record the table in the parent run; its step is the number of finished runs."""
    config = resolve(tracking.model_copy(update={"system_metrics": False}), parent)
    journal = open_tracker(config, request.folder / "journal")
    journal.metrics(as_metrics(lines) | {"finished_runs": float(finished)}, finished)
    for file in files:
        journal.artifact(file)
    journal.close("FINISHED")
