"""One process trains one trial after another, and tells what the schedule needs; without Ray."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from hmtl_dist.data.storage.waits import Wait
from hmtl_dist.train.base import Progress
from hmtl_dist.tune.member import Member
from hmtl_dist.tune.trials import Recipe, Trial
from tests.e2e.drawn import STEPS_PER_EPOCH, draw, tree
from tests.tune.spaces import METRIC

pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("own_home")]
PUZZLING = "tasks.puzzling.weight"


@pytest.fixture(scope="module")
def faces_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return draw(str(tmp_path_factory.mktemp("member") / "faces"))


@pytest.fixture
def member() -> Generator[Member]:
    lines: list[Progress | Wait] = []
    one = Member(lambda number, line: lines.append(line))
    yield one
    assert one.end()
    assert all(line.total_steps for line in lines if isinstance(line, Progress))


def trial(url: str, storage: Path, number: int = 0, seeds: tuple[int, ...] = (0,), **sections: Any) -> Trial:
    tasks = {"expression": {"type": "classification"}, "puzzling": {"type": "puzzling"}}
    recipe = tree(url, launch={"storage": str(storage)}, **sections) | {"tasks": tasks, "name": "faces"}
    settings = ("tracking.model=false", "tracking.pictures=false")
    return Trial(
        sweep="sweep", number=number, seeds=seeds, recipe=Recipe(tree=recipe), settings=settings, metrics=(METRIC,)
    )


def test_a_trial_tells_every_evaluation_and_its_end(faces_url: str, tmp_path: Path, member: Member) -> None:
    member.start(trial(faces_url, tmp_path), {PUZZLING: 0.5})
    told = [member.next(), member.next(), member.next()]
    assert [news.step for news in told] == [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH, 3 * STEPS_PER_EPOCH]
    assert [news.status for news in told] == ["RUNNING", "RUNNING", "FINISHED"]
    assert all(METRIC in news.metrics for news in told)
    assert told[-1].images == 3 * STEPS_PER_EPOCH * 16


def test_a_trial_that_writes_no_checkpoint_keeps_nobody_waiting_for_one(
    faces_url: str, tmp_path: Path, member: Member
) -> None:
    member.start(trial(faces_url, tmp_path, train={"checkpoint_every_epochs": 100}), {PUZZLING: 0.5})
    member.next()
    assert member.checkpoint() is None


def test_a_trial_that_is_stopped_early_leaves_its_process_to_the_next(
    faces_url: str, tmp_path: Path, member: Member
) -> None:
    member.start(trial(faces_url, tmp_path), {PUZZLING: 0.5})
    member.next()
    assert member.end()
    member.start(trial(faces_url, tmp_path, number=1), {PUZZLING: 2.0})
    assert [member.next().status for _ in range(3)] == ["RUNNING", "RUNNING", "FINISHED"]


def test_a_trial_asked_to_stop_goes_on_later_to_the_same_end(faces_url: str, tmp_path: Path) -> None:
    whole, first, second = (Member(lambda number, line: None) for _ in range(3))
    whole.start(trial(faces_url, tmp_path, number=1), {PUZZLING: 0.5})
    expected = [whole.next(), whole.next(), whole.next()][-1]

    first.start(trial(faces_url, tmp_path), {PUZZLING: 0.5})
    first.next()
    first.ask_to_stop()
    stopped = first.next()
    assert stopped.status == "STOPPED"
    assert STEPS_PER_EPOCH <= stopped.step < 2 * STEPS_PER_EPOCH

    second.start(trial(faces_url, tmp_path), {PUZZLING: 0.5})
    news = second.next()
    while news.status == "RUNNING":
        news = second.next()
    assert news.metrics == expected.metrics


def test_an_evaluation_that_was_lost_on_its_way_is_told_from_its_checkpoint(faces_url: str, tmp_path: Path) -> None:
    first, again, further = (Member(lambda number, line: None) for _ in range(3))
    one = trial(faces_url, tmp_path)
    first.start(one, {PUZZLING: 0.5})
    lost = first.next()
    assert first.end()  # its checkpoint is there, but nobody has heard it

    again.start(one, {PUZZLING: 0.5})
    told = again.next()
    assert (told.step, told.status, told.metrics) == (STEPS_PER_EPOCH, "RUNNING", lost.metrics)
    assert again.end()
    further.start(one, {PUZZLING: 0.5}, told_step=STEPS_PER_EPOCH)
    assert further.next().step == 2 * STEPS_PER_EPOCH
    assert further.end()


def test_a_trial_that_breaks_is_told_with_its_reason_and_the_process_goes_on(
    faces_url: str, tmp_path: Path, member: Member
) -> None:
    member.start(trial(f"{faces_url}/nowhere", tmp_path), {PUZZLING: 0.5})
    news = member.next()
    assert news.status == "FAILED"
    assert "nowhere" in news.error
    assert "\n" not in news.error
    assert news.seconds > 0  # which it has cost
    member.start(trial(faces_url, tmp_path, number=1), {PUZZLING: 0.5})
    assert member.next().status == "RUNNING"


def test_a_metric_that_is_not_evaluated_is_told_with_the_nearest(
    faces_url: str, tmp_path: Path, member: Member
) -> None:
    wrong = trial(faces_url, tmp_path).model_copy(update={"metrics": ("eval/expression/acuracy",)})
    member.start(wrong, {PUZZLING: 0.5})
    news = member.next()
    assert news.status == "FAILED"
    said = "metric: no figure 'eval/expression/acuracy' was evaluated; did you mean 'eval/expression/accuracy'?"
    assert news.error == said


def test_several_seeds_are_trained_one_after_another_and_their_mean_is_told(
    faces_url: str, tmp_path: Path, member: Member
) -> None:
    member.start(trial(faces_url, tmp_path, seeds=(0, 1), train={"epochs": 2}), {PUZZLING: 0.5})
    news = member.next()
    while news.status == "RUNNING":
        news = member.next()
    assert news.status == "FINISHED"
    assert list(news.by_seed) == ["0", "1"]
    assert list(news.runs) == ["sweep-0000", "sweep-0000-1"]
    mean = (news.by_seed["0"][METRIC] + news.by_seed["1"][METRIC]) / 2
    assert news.metrics[METRIC] == pytest.approx(mean)
    assert news.images == 2 * 2 * STEPS_PER_EPOCH * 16
