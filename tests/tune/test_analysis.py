"""Who won, who is on the front, what mattered; and the pages that say so."""

import csv
import io
from typing import Any

from hmtl_dist.tune.analysis import common_step, importances, pareto_front, ranked, short_names, winner
from hmtl_dist.tune.ledger import Record
from hmtl_dist.tune.page import as_csv, write_page
from hmtl_dist.tune.plots import draw_curves, draw_importances, draw_parallel, draw_pareto
from hmtl_dist.tune.suggest import suggest
from tests.tune.spaces import METRIC, WEIGHTS, finished, planted, space

GENDER = "eval/gender/accuracy"
PNG = b"\x89PNG"


def record(number: int, value: float | None, status: str = "FINISHED", step: int = 90, **metrics: float) -> Record:
    params = dict.fromkeys(WEIGHTS, 0.5 + 0.25 * number)
    one = Record(number=number, params=params)
    if value is not None:
        one = one.reported(step, {METRIC: value, **{f"eval/{k}/accuracy": v for k, v in metrics.items()}}, at=1.0)
    return one.model_copy(update={"status": status})


def test_who_finished_goes_before_who_came_further_before_who_failed() -> None:
    records = [
        record(0, None, "FAILED"),
        record(1, 0.9, "PRUNED", 10),
        record(2, 0.4),
        record(3, 0.6),
        record(4, 0.1, "PRUNED", 30),
    ]
    assert [one.number for one in ranked(space(), records)] == [3, 2, 4, 1, 0]
    assert [one.number for one in ranked(space(mode="min"), records)] == [2, 3, 4, 1, 0]


def test_a_trial_that_breaks_a_constraint_or_was_stopped_early_does_not_win() -> None:
    found = space(constraints=[{"metric": GENDER, "min": 0.8}])
    records = [record(0, 0.9, gender=0.7), record(1, 0.8, gender=0.9), record(2, 0.99, "PRUNED", 10, gender=0.9)]
    best = winner(found, records)
    assert best is not None
    assert best.number == 1
    assert winner(found, records[2:]) is None


def test_the_front_holds_those_that_nobody_beats_in_both() -> None:
    found = space(second={"metric": GENDER, "mode": "max"})
    points = [(0.9, 0.1), (0.5, 0.5), (0.4, 0.4), (0.1, 0.9), (0.5, 0.5)]
    records = [record(number, first, gender=second) for number, (first, second) in enumerate(points)]
    assert {one.number for one in pareto_front(found, records)} == {0, 1, 3, 4}
    assert draw_pareto(found, records).startswith(PNG)


def test_what_decides_the_figure_is_the_most_important() -> None:
    params: dict[str, Any] = {**WEIGHTS, "augment.flip": {"type": "uniform", "low": 0, "high": 1}}
    found = space(params=params, search="random")
    records: list[Record] = []
    for number in range(24):
        drawn = suggest(found, records, number)
        assert drawn is not None
        records.append(finished(drawn, planted({**drawn.params, "tasks.inpainting.weight": 0.4})))
    shares = importances(found, records)
    assert shares is not None
    assert max(shares.shares, key=lambda path: shares.shares[path]) == "tasks.puzzling.weight"
    assert abs(sum(shares.shares.values()) - 1) < 1e-6
    assert draw_importances(shares).startswith(PNG)


def test_trials_stopped_early_are_compared_where_most_have_been() -> None:
    records = [record(number, 0.1 * number, "PRUNED", 10) for number in range(8)]
    records += [record(8, 0.5, step=10).reported(90, {METRIC: 0.9}, at=2.0), record(9, None, "FAILED")]
    assert common_step(space(), records) == 10
    found = importances(space(), records)
    assert found is not None
    assert (found.step, found.num_trials) == (10, 9)


def test_too_few_trials_have_no_importances() -> None:
    assert importances(space(), [record(0, 0.1), record(1, 0.2)]) is None


def test_the_leaderboard_tells_every_trial_with_all_its_values() -> None:
    records = [record(0, 0.5), record(1, 0.7), record(2, None, "FAILED").model_copy(update={"error": "no memory"})]
    rows = list(csv.DictReader(io.StringIO(as_csv(space(), records))))
    assert [row["trial"] for row in rows] == ["1", "0", "2"]
    assert rows[0][METRIC] == "0.7"
    assert rows[0]["tasks.puzzling.weight"] == "0.75"
    assert rows[2]["error"] == "no memory"


def test_the_leaderboard_tells_costs_where_there_is_a_price() -> None:
    free = [record(0, 0.5), record(1, 0.7)]
    priced = [free[0].model_copy(update={"cost": 1.25}), free[1]]
    assert [row["cost"] for row in csv.DictReader(io.StringIO(as_csv(space(), priced)))] == ["", "1.25"]
    assert "<th>cost</th>" in (page := write_page("sweep", space(), priced, {}, {}))
    assert "<td>1.25</td>" in page
    assert "<th>cost</th>" not in write_page("sweep", space(), free, {}, {})


def test_the_page_is_one_file_with_table_and_pictures() -> None:
    records = [record(0, 0.5), record(1, 0.7), record(2, 0.2, "PRUNED", 10)]
    pictures = {"Curves": draw_curves(space(), records), "Parallel": draw_parallel(space(), records)}
    page = write_page("my <sweep>", space(), records, pictures, {"trials": "3"})
    assert page.count("data:image/png;base64,") == 2
    assert "my &lt;sweep&gt;" in page
    assert '<tr class="best"><td>1</td><td>1</td><td>finished</td><td>0.7000</td>' in page
    assert "http://" not in page
    assert "https://" not in page


def test_short_names_are_unique() -> None:
    names = short_names(["tasks.puzzling.weight", "tasks.inpainting.weight", "augment.flip", "weighting.type"])
    assert list(names.values()) == ["puzzling.weight", "inpainting.weight", "flip", "weighting.type"]
