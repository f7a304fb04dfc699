"""What a suite asks for: which runs, in what order, begun from what."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hmtl_dist.cli.app import app
from hmtl_dist.errors import UserError
from hmtl_dist.reproduce.runner import check
from hmtl_dist.reproduce.suite import Suite, jobs, list_suites, load_suite, parse_seeds, with_urls

SUITE = """
title: A comparison
metric: expression/accuracy
overrides: [train.epochs=2]
data:
  drawn: {draw: {samples: 96, identities: 24, image_size: 32, splits: {train: 0.75, val: 0.25}}}
rows:
  sl: {title: SL, recipe: synthetic_sl, data: drawn}
  ssl: {title: SSL, recipe: synthetic_ssl, data: drawn, shown: false}
  tuned: {title: Tuned, recipe: synthetic_sl, data: drawn, init_from: ssl, baseline: sl}
  other: {title: Other, recipe: synthetic_puzzling_clean, data: drawn, baseline: sl, overrides: [train.epochs=3]}
"""


def suite(tmp_path: Path, text: str = SUITE) -> Suite:
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    return load_suite(str(path))


@pytest.mark.parametrize("name", list_suites())
def test_every_configuration_of_a_shipped_suite_is_sound(name: str) -> None:
    planned = check(jobs(load_suite(name), name, [0]))
    assert len(planned) == sum(row.runs_of is None for row in load_suite(name).rows.values())


def test_a_run_is_a_row_with_a_seed_and_the_later_setting_holds(tmp_path: Path) -> None:
    made = jobs(suite(tmp_path), "trial", [3, 4], settings=["train.epochs=5"])
    assert [job.run for job in made[:4]] == ["trial.sl.s3", "trial.ssl.s3", "trial.tuned.s3", "trial.other.s3"]
    assert [job.seed for job in made] == [3] * 4 + [4] * 4
    other = made[3].overrides
    assert (other[0], other[1], other[3]) == ("train.epochs=2", "train.epochs=3", "train.epochs=5")
    assert other[-2:] == ("name=trial.other.s3", "seed=3")


def test_fine_tuning_begins_from_the_run_of_the_same_seed(tmp_path: Path) -> None:
    assert [job.after for job in jobs(suite(tmp_path), "t", [7])] == [None, None, "t.ssl.s7", None]


def test_one_row_brings_along_what_it_begins_from_and_is_compared_with(tmp_path: Path) -> None:
    assert [job.row for job in jobs(suite(tmp_path), "t", [0], only=["tuned"])] == ["sl", "ssl", "tuned"]


def test_a_seed_may_choose_the_fold(tmp_path: Path) -> None:
    folded = suite(tmp_path, SUITE.replace("overrides: [train.epochs=2]", "folds: 3"))
    assert jobs(folded, "t", [4], only=["sl"])[0].overrides[1:3] == ("data.folds=3", "data.fold=1")


def test_data_may_lie_elsewhere(tmp_path: Path) -> None:
    moved = with_urls(suite(tmp_path), {"drawn": "s3://other/place"})
    assert "data.url=s3://other/place" in jobs(moved, "t", [0])[0].overrides
    with pytest.raises(UserError, match=r"--data drown=...: the suite has no such data set; did you mean 'drawn'\?"):
        with_urls(suite(tmp_path), {"drown": "x"})


@pytest.mark.parametrize(("text", "seeds"), [("0-2", [0, 1, 2]), ("5", [5]), ("0,3,7-8", [0, 3, 7, 8])])
def test_seeds_are_numbers_and_ranges(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,1", "-2", "0-99", "1-", "0-99999999999999"])
def test_other_seeds_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^--seeds: "):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("baseline: sl}", "baseline: nothing}", r"rows.tuned.baseline: no row 'nothing' before this one"),
        ("init_from: ssl", "init_from: other", r"rows.tuned.init_from: no row 'other' before this one"),
        ("recipe: synthetic_ssl, data: drawn", "recipe: synthetic_ssl, data: gone", r"no data set 'gone'; there are"),
        ("recipe: synthetic_ssl,", "", r"give one of recipe, probe and runs_of"),
        ("metric:", "metrics:", r"unknown key 'metrics'; did you mean 'metric'\?"),
    ],
)
def test_a_suite_that_does_not_fit_together_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        suite(tmp_path, SUITE.replace(old, new, 1))


def test_an_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"suite 'sintetic': no suite of this name is shipped; did you mean 'synthe"):
        load_suite("sintetic")


def test_an_unsound_row_is_named_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^row sl: train\.epoch: unknown key"):
        check(jobs(suite(tmp_path), "t", [0], settings=["train.epoch=1"]))


def test_a_dry_run_prints_the_papers_figures_and_what_each_row_needs(capfd: pytest.CaptureFixture[str]) -> None:
    assert CliRunner().invoke(app, ["reproduce", "paper", "--dry-run"]).exit_code == 0
    said = capfd.readouterr().out
    metrics = ("60.34", "60.35", "61.09", "61.32", "61.72", "52.46", "54.98", "55.36", "98.23")
    assert [metric for metric in metrics if metric not in said] == []
    assert "data build affectnet" in said
    assert "data build ckplus" in said
