"""The page about what MLflow holds: from runs on a real server to what a browser shows."""

import html
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hmtl_dist.cli.app import app
from hmtl_dist.report.page import write_page
from hmtl_dist.report.study import Study, find_study, read_groups
from hmtl_dist.tracking.config import TrackingConfig
from hmtl_dist.tracking.history import History

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def study(tracking: TrackingConfig) -> Study:
    history = History(tracking)
    found = find_study("made", history)
    assert list(read_groups(found, history)) == [1, 2]
    return found


def test_runs_of_a_row_are_one_group_whatever_their_seed(study: Study) -> None:
    groups = {group.name: group for group in study.groups}
    assert {name: len(group.runs) for name, group in groups.items()} == {"sl": 3, "puzzling": 3}
    assert sorted(groups["sl"].metrics()["expression accuracy"]) == pytest.approx([0.61, 0.62, 0.63])
    assert [[step for step, _ in curve] for curve in groups["sl"].curves["train/loss/expression"]] == [[10, 20, 30]] * 3


def test_confusions_of_the_last_evaluation_are_added_over_seeds(study: Study) -> None:
    confusion = study.groups[0].confusions["expression"]
    assert confusion.classes == ("calm", "happy")
    assert confusion.counts == ((21, 3), (6, 15))


def test_the_newest_picture_of_each_name_is_shown_and_no_curves(study: Study) -> None:
    shown = {group.name: [(picture.name, picture.step) for picture in group.pictures] for group in study.groups}
    assert shown == {"sl": [], "puzzling": [("puzzling/solved", 30)]}


def test_an_experiment_has_the_runs_of_its_suites(tracking: TrackingConfig) -> None:
    found = find_study("made-experiment", History(tracking))
    assert len(found.runs) == 6
    assert [table.name for table in found.suites] == ["made"]


def test_the_page_tells_figures_of_the_paper_beside_ours_and_escapes_names(study: Study) -> None:
    page = write_page(study)
    text = html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"data:[^\"]+", "", page)))
    assert "Faces & puzzles" in text
    assert "Supervised &lt;alone&gt;" in page
    assert "<alone>" not in page
    sl = next(line for line in re.findall(r"<tr>.*?</tr>", page, re.DOTALL) if "Supervised" in line)
    assert "60.80" in re.findall(r"<td>(.*?)</td>", sl)
    assert "6: 1 failed, 5 finished" in text
    assert "1.50" in text  # what six runs cost
    assert f"{6 * 30 * 16:,}" in text


def test_the_page_needs_nothing_else(study: Study) -> None:
    page = write_page(study)
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)
    assert "<script" not in page


def test_the_page_in_a_browser(study: Study, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium is installed")
    from playwright.sync_api import sync_playwright

    file = tmp_path / "report.html"
    file.write_text(write_page(study))
    trouble: list[Any] = []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 900, "height": 700})
        page.on("console", lambda said: trouble.append(said.text))
        page.on("request", lambda request: trouble.append(request.url) if request.url.startswith("http") else None)
        page.goto(file.as_uri())
        pictures = page.get_by_role("img").all()
        assert len(pictures) == 2 + 2 + 1  # the suite's charts, two curves, a puzzle
        assert all(picture.get_attribute("alt") for picture in pictures)
        assert all(picture.evaluate("one => one.complete && one.naturalWidth > 0") for picture in pictures)
        page.get_by_role("link", name="Confusion matrices").click()
        matrix = page.get_by_role("table", name="expression, sl")
        assert matrix.get_by_role("cell", name="87.5 %").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert trouble == []
        chromium.close()


def test_what_mlflow_does_not_have_is_one_line(tracking: TrackingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tracking.uri))
    for name in ("nothing-of-this-name", "made-empty", "it's"):
        done = CliRunner().invoke(app, ["report", name])
        assert done.exit_code == 2
        (line,) = done.stderr.strip().splitlines()
        assert name in line


def test_a_folder_that_is_not_there_is_one_line_before_anything_is_read(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", "made", "--out", str(tmp_path / "gone" / "page.html")])
    assert (done.exit_code, len(done.stderr.strip().splitlines())) == (2, 1)


def test_the_command_writes_the_page(tracking: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tracking.uri))
    done = CliRunner().invoke(app, ["report", "made", "--out", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert "Faces &amp; puzzles" in (tmp_path / "page.html").read_text()
