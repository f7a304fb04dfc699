"""A suite: rows of a table, each a recipe run over several seeds, as a YAML file of this package or one of your own."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from hmtl_dist.config.base import Section
from hmtl_dist.config.dialect import one_line, read_yaml
from hmtl_dist.config.explain import choices, explain
from hmtl_dist.config.io import home
from hmtl_dist.errors import UserError
from hmtl_dist.reproduce.statistics import MAX_EXACT

SUITES = Path(__file__).with_name("suites")
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$"
Name = Annotated[str, Field(pattern=NAME)]


class Drawing(Section):
    """Faces to draw, where a suite needs no other data."""

    samples: Annotated[int, Field(ge=8)]
    """Pictures, of all splits."""
    identities: Annotated[int, Field(ge=1)]
    """People; all pictures of one are in the same split."""
    image_size: Annotated[int, Field(ge=16)] = 64
    """Pixels of the side."""
    splits: dict[str, float]
    """Share of the pictures by split."""


class DataSource(Section):
    """A data set that rows read."""

    url: str | None = None
    """Where its shards are looked for; a drawn set without it is kept in the home folder."""
    draw: Drawing | None = None
    """Faces to draw if it is not there."""
    needs: str = ""
    """What a person must do to have it."""

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if self.url is None and self.draw is None:
            raise ValueError("give url, or draw")
        return self


class Probe(Section):
    """Evaluation of a row's frozen features instead of a training."""

    row: str
    """Row whose trained backbone gives the features."""
    data: str
    """Data set, one of the suite's, whose labels are learned on them."""
    label: str
    """Label of that data set."""
    head: str = "mlp"
    """`linear` or `mlp`."""
    folds: Annotated[int, Field(ge=2)] = 10
    """Parts that no person is shared between."""


class Row(Section):
    """A line of the table."""

    title: str
    """How it is called in the table."""
    recipe: str | None = None
    """Shipped recipe, or a YAML file."""
    data: str | None = None
    """Data set it is trained on, one of the suite's; empty: what the recipe says."""
    overrides: tuple[str, ...] = ()
    """Settings over the recipe's."""
    init_from: str | None = None
    """Row whose run with the same seed this one begins from."""
    probe: Probe | None = None
    """Frozen features of another row instead of a recipe."""
    runs_of: str | None = None
    """Row whose runs it tells another figure of, instead of runs of its own."""
    baseline: str | None = None
    """Row it is compared with, seed by seed."""
    metric: str | None = None
    """Figure of the table instead of the suite's."""
    paper: float | None = None
    """What the paper says, in the unit of the table."""
    needs: str = ""
    """What it needs beside its data."""
    shown: bool = True
    """Whether it is a row of the table, or only what others begin from."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(kind is not None for kind in (self.recipe, self.probe, self.runs_of)) != 1:
            raise ValueError("give one of recipe, probe and runs_of")
        return self


class Suite(Section):
    """A table to reproduce."""

    title: str
    """What is compared."""
    notes: str = ""
    """What a reader should know of it."""
    metric: str
    """Figure of the table, such as `expression/accuracy`."""
    higher_is_better: bool = True
    """Whether more of it is better."""
    percent: bool = True
    """Whether it is a share that the table shows in percent."""
    overrides: tuple[str, ...] = ()
    """Settings over every recipe."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Evaluate seed s on fold s modulo this of the training split, and train on the others."""
    data: dict[Name, DataSource] = Field(default_factory=dict[str, DataSource])
    """Data sets that rows name."""
    rows: Annotated[dict[Name, Row], Field(min_length=1)]
    """The rows, in the order of the table; what others begin from or are compared with comes before them."""

    @model_validator(mode="after")
    def _refers_backwards(self) -> Self:
        seen: set[str] = set()
        for name, row in self.rows.items():
            for key, other in _references(row).items():
                if other is not None and other not in seen:
                    raise ValueError(f"rows.{name}.{key}: no row '{other}' before this one")
            for source in (row.data, row.probe and row.probe.data):
                if source is not None and source not in self.data:
                    raise ValueError(f"rows.{name}: no data set '{source}'; there are {', '.join(self.data) or 'none'}")
            seen.add(name)
        return self


def _references(row: Row) -> dict[str, str | None]:
    """Return the rows that a row depends on, by the key that names them."""
    probed = row.probe.row if row.probe else None
    return {
        "init_from": row.init_from,
        "runs_of": row.runs_of,
        "baseline": row.baseline,
        "probe.row": probed,
    }


@dataclass(frozen=True)
class Job:
    """One row with one seed."""

    run: str
    """Name of the run."""
    row: str
    seed: int
    recipe: str
    """Recipe of a training; empty for a probe."""
    overrides: tuple[str, ...]
    after: str | None = None
    """Run that must have finished before."""
    probe: Probe | None = None


def list_suites() -> list[str]:
    """Return the names of the shipped suites, sorted."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def load_suite(source: str) -> Suite:
    """Read a suite: a shipped name, or a YAML file.

    Raises:
        UserError: There is none, or something in it is wrong.
    """
    path = Path(source)
    if not (source.endswith((".yaml", ".yml")) or "/" in source):
        if source not in list_suites():
            raise UserError(f"suite '{source}': no suite of this name is shipped; {choices(source, list_suites())}")
        path = SUITES / f"{source}.yaml"
    try:
        return Suite.model_validate(read_yaml(path))
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, Suite)}") from error


def parse_seeds(text: str) -> list[int]:
    """Read `0-5`, `3` or `0,2,7-9`.

    Raises:
        UserError: It is not of this form, or a seed stands twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not (last.isdigit() and int(last) >= int(first))):
            raise UserError(f"--seeds: given '{text}', allowed whole numbers and ranges, such as 0-5 or 0,2,7-9")
        seeds += range(int(first), int(last if dash else first) + 1)[: MAX_EXACT + 1]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds: '{text}' names a seed twice")
    if len(seeds) > MAX_EXACT:
        raise UserError(f"--seeds: '{text}' are {len(seeds)} seeds; the exact test enumerates at most {MAX_EXACT}")
    return seeds


def drawn_url(source: DataSource) -> str:
    """Return where a data set's shards are: its URL, or a folder of the home whose name says how it is drawn."""
    if source.url is not None or source.draw is None:
        return source.url or ""
    draw = source.draw
    shares = "-".join(f"{name}{share:g}" for name, share in draw.splits.items())
    return str(home() / "data" / f"drawn-{draw.samples}-{draw.identities}-{draw.image_size}-{shares}")


def with_urls(suite: Suite, urls: Mapping[str, str]) -> Suite:
    """Return the suite with other places of its data sets.

    Raises:
        UserError: It has no data set of that name.
    """
    for name in urls:
        if name not in suite.data:
            raise UserError(f"--data {name}=...: the suite has no such data set; {choices(name, list(suite.data))}")
    data = {name: source.model_copy(update={"url": urls.get(name, source.url)}) for name, source in suite.data.items()}
    return suite.model_copy(update={"data": data})


def select(suite: Suite, only: Sequence[str]) -> list[str]:
    """Return the rows to run: all, or those named, what they begin from and what they are compared with.

    Raises:
        UserError: The suite has no row of that name.
    """
    wanted: set[str] = set()

    def add(name: str) -> None:
        if name not in suite.rows:
            raise UserError(f"--only {name}: the suite has no such row; {choices(name, list(suite.rows))}")
        if name in wanted:
            return
        wanted.add(name)
        row = suite.rows[name]
        for other in _references(row).values():
            if other is not None:
                add(other)

    for name in only or [name for name, row in suite.rows.items() if row.shown]:
        add(name)
    return [name for name in suite.rows if name in wanted]


def jobs(
    suite: Suite, name: str, seeds: Iterable[int], only: Sequence[str] = (), settings: Sequence[str] = ()
) -> list[Job]:
    """Return every run of a suite: all rows of the first seed, then those of the next.

    Args:
        suite: The suite, its data sets in place.
        name: What the runs' names begin with.
        seeds: Seeds of the runs; one moves initialisation, sample order and augmentation.
        only: Rows to run, with those they depend on; all when empty.
        settings: Overrides that come after the suite's own.
    """
    rows = [row for row in select(suite, only) if suite.rows[row].runs_of is None]
    return [_job(suite, name, row, seed, settings) for seed in seeds for row in rows]


def run_name(name: str, row: str, seed: int) -> str:
    """Return the name of a row's run with a seed: the same again in every invocation."""
    return f"{name}.{row}.s{seed}"


def _job(suite: Suite, name: str, row_name: str, seed: int, settings: Sequence[str]) -> Job:
    row = suite.rows[row_name]
    run = run_name(name, row_name, seed)
    if row.probe is not None:
        after = run_name(name, row.probe.row, seed)
        return Job(run, row_name, seed, "", row.overrides, after=after, probe=row.probe)
    overrides = [*suite.overrides, *row.overrides]
    if row.data is not None:
        overrides.append("data.url=" + one_line(drawn_url(suite.data[row.data])))
    if suite.folds is not None:
        overrides += [f"data.folds={suite.folds}", f"data.fold={seed % suite.folds}"]
    overrides += [*settings, f"name={run}", f"seed={seed}"]
    after = None
    if row.init_from is not None:
        after = run_name(name, row.init_from, seed)
    return Job(run, row_name, seed, row.recipe or "", tuple(overrides), after=after)


def metric_of(suite: Suite, row: Row) -> str:
    """Return the figure of a row of the table, without the kind of weights it belongs to."""
    return row.metric or suite.metric
