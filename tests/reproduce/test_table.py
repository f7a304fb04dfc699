"""From results to a table, as text, CSV and page."""

import csv
import io
from pathlib import Path

import pytest

from hmtl_dist.reproduce.page import write_page
from hmtl_dist.reproduce.results import Result, Store, changed
from hmtl_dist.reproduce.suite import Suite
from hmtl_dist.reproduce.table import Line, as_csv, as_metrics, as_text, build_table

SUITE = Suite.model_validate(
    {
        "title": "A <comparison>",
        "metric": "mood/accuracy",
        "rows": {
            "sl": {"title": "SL", "recipe": "x", "paper": 60.34},
            "ssl": {"title": "SSL", "recipe": "x", "shown": False},
            "tuned": {"title": "SSL & tuned", "recipe": "x", "init_from": "ssl", "baseline": "sl"},
            "failing": {"title": "Failing", "recipe": "x", "baseline": "sl"},
        },
    }
)
SEEDS = [0, 1, 2]


def result(row: str, seed: int, accuracy: float | None, **known: object) -> Result:
    metrics = {} if accuracy is None else {"eval/mood/accuracy": accuracy - 0.01, "last/mood/accuracy": accuracy}
    metrics |= {} if accuracy is None else {"best/mood/accuracy": accuracy + 0.02}
    usual: dict[str, object] = {"status": "FINISHED", "settings": {}, "images": 100, "seconds": 60.0}
    named = {"run": f"t.{row}.s{seed}", "row": row, "seed": seed, "metrics": metrics}
    return Result.model_validate(named | usual | known)


@pytest.fixture
def lines() -> list[Line]:
    results = [result("sl", seed, value, samples_per_second=50.0) for seed, value in enumerate((0.5, 0.6, 0.7))]
    results += [result("ssl", seed, None) for seed in SEEDS]
    results += [result("tuned", seed, value) for seed, value in ((0, 0.55), (2, 0.75))]
    results += [result("failing", 0, None, status="FAILED", error="boom")]
    return build_table(SUITE, "t", SEEDS, {one.run: one for one in results})


def test_a_row_has_its_last_weights_figures_in_percent(lines: list[Line]) -> None:
    assert [line.name for line in lines] == ["sl", "tuned", "failing"]
    assert lines[0].values == pytest.approx({0: 50.0, 1: 60.0, 2: 70.0})
    assert lines[0].best is not None
    assert lines[0].best.mean == pytest.approx(62.0)


def test_cost_of_a_row_includes_what_it_begins_from() -> None:
    results = [result("ssl", 0, None, cost=1.5), result("tuned", 0, 0.5, cost=2.0), result("sl", 0, 0.5)]
    costly = build_table(SUITE, "t", [0], {one.run: one for one in results})
    assert [line.cost for line in costly] == [0.0, 3.5, 0.0]
    assert as_metrics(costly)["tuned/cost"] == 3.5
    assert "sl/cost" not in as_metrics(costly)
    rows = list(csv.DictReader(io.StringIO(as_csv(costly))))
    assert [row["cost"] for row in rows] == ["", "3.5", ""]
    assert "3.50" in as_text(costly)


def test_a_row_is_compared_over_the_seeds_that_both_have(lines: list[Line]) -> None:
    against = lines[1].against
    assert against is not None
    assert (against.difference.mean, against.difference.count) == (pytest.approx(5.0), 2)
    assert against.p_value == 0.5
    assert against.improvement == 0.75


def test_the_cost_of_fine_tuning_counts_what_it_begins_from(lines: list[Line]) -> None:
    assert [(line.images, line.minutes) for line in lines] == [(100, 1.0), (200, 2.0), (0, 0)]


def test_failed_runs_are_counted_and_have_no_figure(lines: list[Line]) -> None:
    assert (lines[2].failed, lines[2].value, lines[2].against) == (1, None, None)


def test_the_table_as_text_has_a_line_a_row_and_the_papers_figure(lines: list[Line]) -> None:
    header, first, *others = as_text(lines).splitlines()
    assert header.startswith("row ")
    assert "60.00 [" in first
    assert "60.34" in first
    assert len(others) == 2
    assert "0 (1 failed)" in others[1]


def test_the_csv_holds_every_value_unrounded(lines: list[Line]) -> None:
    first, second, _ = csv.DictReader(io.StringIO(as_csv(lines)))
    assert first["values"] == "0:50.0 1:60.0 2:70.0"
    assert (second["baseline"], float(second["p_value"]), second["failed"]) == ("sl", 0.5, "0")


def test_tracking_gets_a_figure_a_row(lines: list[Line]) -> None:
    metrics = as_metrics(lines)
    assert metrics["tuned/difference"] == pytest.approx(5.0)
    assert metrics["sl/low"] < metrics["sl/mean"] == 60.0 < metrics["sl/high"]
    assert metrics["tuned/difference/low"] <= 5.0 <= metrics["tuned/difference/high"]
    assert (metrics["tuned/minutes"], metrics["tuned/images"]) == (2.0, 200.0)
    assert not any(name.startswith("failing/") for name in metrics)


def test_the_page_needs_nothing_else_and_escapes_what_people_wrote(lines: list[Line]) -> None:
    page = write_page(SUITE, lines)
    assert "<h1>A &lt;comparison&gt;</h1>" in page
    assert "SSL &amp; tuned" in page
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace("http-equiv", "")


def test_an_unfinished_table_is_a_table_too() -> None:
    empty = build_table(SUITE, "t", SEEDS, {})
    assert as_text(empty).splitlines()[1].startswith("SL")
    assert "data:image" not in write_page(SUITE, empty)


def test_a_stored_result_is_read_back_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.read("t.sl.s0") is None
    store.write(result("sl", 0, 0.5))
    assert store.read("t.sl.s0") == result("sl", 0, 0.5)
    (tmp_path / "results" / "t.sl.s0.json").write_text('{"run": "t.s')
    assert store.read("t.sl.s0") is None


def test_another_setting_is_named() -> None:
    assert changed({"a": "1", "b": "2"}, {"a": "1", "b": "2"}) is None
    assert changed({"a": "1", "b": "2"}, {"a": "1", "b": "3"}) == "b=2, now it is 3"
