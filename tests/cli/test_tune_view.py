"""What a sweep shows: the time left, by the pictures that are left, and a table that any terminal has room for."""

from pathlib import Path

import pytest

from hmtl_dist.cli.tune_view import SweepView, seconds_left
from hmtl_dist.console import Console
from hmtl_dist.data.storage.waits import Wait
from hmtl_dist.tune.ledger import Record
from tests.terminal import frames
from tests.tune.spaces import space


def trial(number: int, images: int, *, ended: bool = False) -> Record:
    """A trial of 100 steps of 16 pictures that has told so many of them."""
    status = "FINISHED" if ended else "RUNNING"
    return Record(number=number, params={}, status=status, images=images, step=images // 16, batch_size=16)


def test_nothing_is_foretold_before_a_trial_has_ended() -> None:
    assert seconds_left([trial(0, 800)], {0: 60}, total=4, images_before=0, seconds=10) is None


def test_pictures_left_are_divided_by_the_speed_so_far() -> None:
    records = [trial(0, 1600, ended=True), trial(1, 480)]
    # 2,400 pictures in 24 s; 800 are left of the second trial, and two more are to come
    assert seconds_left(records, {1: 50}, total=4, images_before=0, seconds=24) == 40


def test_pictures_of_an_earlier_part_are_no_speed_of_this_one() -> None:
    records = [trial(0, 1600, ended=True), trial(1, 480)]
    assert seconds_left(records, {1: 50}, total=2, images_before=2080, seconds=4) == 10


def test_the_time_left_falls_as_time_passes_although_no_trial_ends() -> None:
    records = [trial(0, 1600, ended=True), trial(1, 0)]
    told = [seconds_left(records, {1: step}, 3, images_before=0, seconds=10 + step / 10) for step in (10, 50, 90)]
    assert told == [3040 / (1760 / 11), 2400 / (2400 / 15), 1760 / (3040 / 19)]


def test_a_trial_that_takes_longer_than_those_that_ended_owes_nothing() -> None:
    records = [trial(0, 160, ended=True), trial(1, 1440)]
    assert seconds_left(records, {1: 95}, total=2, images_before=0, seconds=10) == 0


def test_what_is_waited_for_is_told_before_there_is_a_table(capfd: pytest.CaptureFixture[str]) -> None:
    with Console() as console:
        SweepView(console, space()).wait(Wait("s3://faces", 12.0))
    assert capfd.readouterr().out == "waiting for s3://faces 12s\n"


PROGRESS = """
import sys
from hmtl_dist.cli.tune_view import SweepView
from hmtl_dist.console import Console
from hmtl_dist.data.storage.waits import Wait
from hmtl_dist.train.base import Progress
from hmtl_dist.tune.book import Book
from hmtl_dist.tune.ledger import Ledger
from hmtl_dist.tune.member import News
from hmtl_dist.tune.space import load_space
space = load_space("joint")
book = Book(space, Ledger(sys.argv[1]), 1188)
for number in range(3):
    book.begin(book.next().number)
    book.hear(number, News(step=132, metrics={space.metric: 0.4275}, total_steps=1188, batch_size=24, images=3168), {})
with Console() as console:
    view = SweepView(console, space)
    view.begin("demo-joint", book, 3, 0.0, None)
    view.progress(0, Progress("train", 140, 1188, 1.2, 118.2, 0.02, 0.001, eta_seconds=200))
    view.wait(Wait("s3://a-bucket/of-a-sweep-whose-address-is-long/and-has-no-room-on-a-terminal/of-80-columns", 12))
    view.tick()
    view.end()
"""


@pytest.mark.parametrize(("columns", "settings"), [(80, 1), (120, 5), (200, 7)])
def test_the_table_keeps_trials_metric_and_time_left_at_any_width(columns: int, settings: int, tmp_path: Path) -> None:
    drawn = frames(PROGRESS, columns, str(tmp_path))
    assert max(map(len, drawn)) <= columns
    assert not any("…" in line for line in drawn if not line.startswith("waiting"))
    row = next(line for line in drawn if line.startswith("│ 0"))
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[:6] == ["0", "running", "140/1188", "0.4275", "3m20s", "118.2"]
    assert len(cells) == 6 + settings
    assert any(line.startswith("demo-joint [0/48]  3 running") for line in drawn)
    assert next(line for line in drawn if line.startswith("waiting for")).endswith("of-80-columns 12s")
