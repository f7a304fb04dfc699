"""What is tried next follows from the space and the trials so far alone, and finds what is planted."""

import statistics
from pathlib import Path
from typing import Any

import pytest

from hmtl_dist.errors import UserError
from hmtl_dist.tune.book import Book
from hmtl_dist.tune.ledger import Ledger, Record
from hmtl_dist.tune.member import News
from hmtl_dist.tune.space import Space
from hmtl_dist.tune.suggest import suggest
from tests.tune.spaces import METRIC, WEIGHTS, finished, planted, space

SCHEMES = {"weighting.type": {"type": "choice", "values": ["sum", "geometric", "uncertainty", "dwa"]}}
TEMPERATURE = {"weighting.temperature": {"type": "uniform", "low": 1, "high": 4, "when": {"weighting.type": "dwa"}}}
EVERY_KIND: dict[str, Any] = {
    **WEIGHTS,
    **SCHEMES,
    **TEMPERATURE,
    "augment.rotation": {"type": "normal", "mean": 10, "sd": 5, "low": 0},
    "augment.flip": {"type": "quniform", "low": 0, "high": 1, "q": 0.25},
    "data.shuffle_block": {"type": "randint", "low": 16, "high": 256, "log": True},
    "tasks.puzzling.supervise": "clean",
}


def search(found: Space, count: int) -> list[Record]:
    """Draws and finishes so many trials."""
    records: list[Record] = []
    for number in range(count):
        record = suggest(found, records, number)
        assert record is not None
        records.append(finished(record, planted(record.params)))
    return records


@pytest.mark.parametrize("method", ["random", "optuna"])
def test_every_draw_lies_within_its_distribution_and_keeps_its_condition(method: str) -> None:
    found = space(params=EVERY_KIND, search=method)
    for record in search(found, 12):
        assert all(found.params[path].holds(value) for path, value in record.params.items())
        assert ("weighting.temperature" in record.params) == (record.params["weighting.type"] == "dwa")
        assert record.params["tasks.puzzling.supervise"] == "clean"


@pytest.mark.parametrize(
    "search_by", ["random", "optuna", {"sampler": "cmaes", "startup": 3}, {"sampler": "gp", "startup": 3}], ids=str
)
def test_the_next_draw_is_the_same_for_the_same_past(search_by: Any) -> None:
    found = space(search=search_by)
    records = search(found, 6)
    restored = [Record.model_validate_json(record.model_dump_json()) for record in records]
    assert suggest(found, records, 6) == suggest(found, restored, 6)
    assert suggest(found, records, 6) != suggest(space(search={"method": "random", "seed": 9}), records, 6)


def test_the_search_begins_with_the_given_points() -> None:
    found = space(points=[dict.fromkeys(WEIGHTS, 1.0), {"tasks.puzzling.weight": 0.5}])
    first, second, third = search(found, 3)
    assert first.params == dict.fromkeys(WEIGHTS, 1.0)
    assert second.params["tasks.puzzling.weight"] == 0.5
    assert third.params["tasks.puzzling.weight"] not in (1.0, 0.5)


def test_no_draw_breaks_a_bound_on_a_sum() -> None:
    found = space(constraints=[{"sum": list(WEIGHTS), "max": 1.0}])
    assert all(sum(record.params.values()) <= 1.0 for record in search(found, 20))


def test_a_sum_that_nothing_keeps_is_told_in_a_line() -> None:
    found = space(constraints=[{"sum": list(WEIGHTS), "max": 0.05}])
    with pytest.raises(UserError, match=r"^constraints: none of 200 draws keeps the bound on the sum"):
        suggest(found, [], 0)


def test_a_bound_on_a_figure_keeps_the_search_away() -> None:
    """The best lies outside of the bound: a search that is told of it draws inside more often than one that is not."""
    bound = [{"metric": "eval/gender/accuracy", "min": 0.5}]
    kept: dict[bool, list[float]] = {True: [], False: []}
    for told, shares in kept.items():
        for seed in range(4):
            by = {"method": "optuna", "seed": seed, "startup": 6}
            found = space(search=by, constraints=bound if told else [])
            records: list[Record] = []
            for number in range(24):
                record = suggest(found, records, number)
                assert record is not None
                gender = 1.0 if record.params["tasks.puzzling.weight"] < 0.5 else 0.0
                metrics = {METRIC: planted(record.params), "eval/gender/accuracy": gender}
                records.append(record.reported(9, metrics, at=1.0).model_copy(update={"status": "FINISHED"}))
            shares.append(statistics.fmean(record.metrics["eval/gender/accuracy"] for record in records[6:]))
    assert statistics.fmean(kept[True]) > statistics.fmean(kept[False]) + 0.2


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_tpe_beats_random_over_30_seeds_with_a_restore_in_the_middle(tmp_path: Path) -> None:
    """Each search of 30 trials is dropped after 15, without a word, and goes on from its ledger."""
    best: dict[str, list[float]] = {"random": [], "optuna": []}
    for method, values in best.items():
        for seed in range(30):
            found = space(
                params={**WEIGHTS, **SCHEMES, **TEMPERATURE},
                search={"method": method, "seed": seed},
                budget={"trials": 30},
            )
            folder = str(tmp_path / f"{method}-{seed}")
            for part in (15, 30):
                _run_until(Book(found, Ledger(folder), 90), part)
            records = Ledger(folder).in_order()
            assert [record.number for record in records] == list(range(30))
            values.append(max(record.metrics[METRIC] for record in records))
    better = sum(ours > theirs for ours, theirs in zip(best["optuna"], best["random"], strict=True))
    means = {method: statistics.fmean(values) for method, values in best.items()}
    assert means["optuna"] > means["random"], means
    assert better >= 21, (better, means)  # a sign test at p < 0.05, two-sided


def _run_until(book: Book, count: int) -> None:
    while len(book.ledger.records) < count:
        record = book.next()
        assert record is not None
        news = News(step=90, metrics={METRIC: planted(record.params)}, status="FINISHED", total_steps=90)
        book.hear(record.number, news, record.params)
