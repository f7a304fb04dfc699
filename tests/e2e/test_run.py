"""A run is a pure function of its configuration: whole runs in this process, compared to the last bit."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from hmtl_dist.launch.driver import Finished, drive
from hmtl_dist.launch.evaluate import evaluate_run
from hmtl_dist.run_config import RunConfig
from hmtl_dist.train.base import Progress
from tests.e2e.drawn import EPOCHS, STEPS_PER_EPOCH, config, draw, journal, weights

TOTAL_STEPS = EPOCHS * STEPS_PER_EPOCH
MID_EPOCH = STEPS_PER_EPOCH + 2


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return draw(str(tmp_path_factory.mktemp("drawn") / "set"))


@pytest.fixture(scope="module")
def uninterrupted(url: str) -> Finished:
    """The run that the others are compared with."""
    return finish(config("uninterrupted", url))


def finish(tree: RunConfig, show: Callable[[Progress], None] = lambda progress: None) -> Finished:
    finished = drive(tree, show)
    assert (finished.outcome.status, finished.outcome.global_step) == ("FINISHED", TOTAL_STEPS)
    return finished


def stop_in_mid_epoch(tree: RunConfig) -> None:
    """Runs until Ctrl-C, pressed when the step before has been shown."""

    def press(progress: Progress) -> None:
        if progress.global_step == MID_EPOCH - 1:
            signal.raise_signal(signal.SIGINT)

    outcome = drive(tree, press).outcome
    assert (outcome.status, outcome.global_step) == ("STOPPED", MID_EPOCH)


@pytest.fixture(scope="module")
def resumed(url: str) -> Finished:
    """The same run, stopped once on its way."""
    stop_in_mid_epoch(config("resumed", url))
    return finish(config("resumed", url))


def test_the_same_run_twice_gives_the_same_weights_while_somebody_watches_it_evaluate(
    uninterrupted: Finished, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hmtl_dist.train.worker.TELL_SECONDS", 0.0)
    shown: list[Progress] = []
    again = finish(config("again", url), shown.append)
    assert weights(again.outcome.checkpoint) == weights(uninterrupted.outcome.checkpoint)
    assert again.outcome.metrics == uninterrupted.outcome.metrics
    told = [(line.global_step, line.share) for line in shown if line.phase == "evaluating"]
    averaged_and_last = [STEPS_PER_EPOCH * (epoch + 1) for epoch in range(EPOCHS)] + [TOTAL_STEPS]
    assert told == [(step, share) for step in averaged_and_last for share in (16 / 24, 1.0)]


@pytest.mark.nightly
def test_another_seed_gives_other_weights(uninterrupted: Finished, url: str) -> None:
    other = finish(config("other", url, seed=1))
    assert weights(other.outcome.checkpoint) != weights(uninterrupted.outcome.checkpoint)


def test_a_run_stopped_in_mid_epoch_ends_like_the_uninterrupted_one(resumed: Finished, uninterrupted: Finished) -> None:
    assert weights(resumed.outcome.checkpoint) == weights(uninterrupted.outcome.checkpoint)
    assert resumed.outcome.metrics == uninterrupted.outcome.metrics


@pytest.mark.nightly
def test_a_finished_run_that_is_made_longer_ends_like_one_that_was_begun_so(url: str) -> None:
    constant = {"schedule": "constant"}
    begun_so = finish(config("begun-so", url, optim=constant))
    short = drive(config("longer", url, optim=constant, train={"max_steps": MID_EPOCH}), lambda progress: None).outcome
    assert (short.status, short.global_step) == ("FINISHED", MID_EPOCH)
    longer = finish(config("longer", url, optim=constant))
    assert weights(longer.outcome.checkpoint) == weights(begun_so.outcome.checkpoint)
    assert longer.outcome.metrics == begun_so.outcome.metrics


def test_a_stopped_run_is_recorded_once_a_step(resumed: Finished) -> None:
    events = journal(resumed.folder)
    steps = [event["step"] for event in events if "train/loss/total" in event.get("values", {})]
    assert steps == list(range(1, TOTAL_STEPS + 1))
    assert [event["status"] for event in events if event["event"] == "end"] == ["KILLED", "FINISHED"]


@pytest.mark.parametrize("num_workers", [1, pytest.param(3, marks=pytest.mark.nightly)])
def test_loader_workers_and_evaluations_move_no_weight(uninterrupted: Finished, url: str, num_workers: int) -> None:
    tree = config(
        f"workers-{num_workers}", url, data={"num_workers": num_workers}, train={"evaluate_every_epochs": EPOCHS}
    )
    assert weights(finish(tree).outcome.checkpoint) == weights(uninterrupted.outcome.checkpoint)


def test_a_saved_run_is_evaluated_as_at_its_end(uninterrupted: Finished) -> None:
    told: list[tuple[int, int]] = []
    evaluation, checkpoint = evaluate_run("uninterrupted", on_progress=lambda done, total: told.append((done, total)))
    assert checkpoint == uninterrupted.outcome.checkpoint
    assert evaluation.num_samples == 24
    assert told == [(0, 24), (16, 24), (24, 24)]
    # A concordance near 0 is a difference of nearly equal numbers, hence the absolute part.
    assert evaluation.metrics == pytest.approx(of(uninterrupted, "eval/"), rel=1e-6, abs=1e-7)


@pytest.mark.nightly
def test_groups_of_people_make_up_the_whole(url: str) -> None:
    grouped = finish(config("grouped", url, train={"groups": ["gender", "age"]}))
    metrics = evaluate_run("grouped", groups={"gender": (), "age": (30, 50)})[0].metrics
    for label, names in (("gender", ("female", "male")), ("age", ("under_30", "30_to_50", "50_and_over"))):
        for metric in ("expression/{}accuracy", "age/{}mae_age"):
            groups = [metric.format(f"group/{label}/{name}/") for name in names]
            counts = [metrics.get(f"eval/{group.rpartition('/')[0]}/samples", 0) for group in groups]
            values = [metrics.get(f"eval/{group}", 0) for group in groups]
            assert sum(counts) == 24
            mean = sum(count * value for count, value in zip(counts, values, strict=True)) / 24
            assert mean == pytest.approx(metrics["eval/" + metric.format("")], rel=1e-5)
            there = [value for count, value in zip(counts, values, strict=True) if count]
            gap = metrics["eval/" + metric.format(f"gap/{label}/")]
            assert gap == pytest.approx(max(there) - min(there), abs=1e-6)
    assert "eval/expression/gap/gender/accuracy" in grouped.outcome.metrics


def of(run: Finished, kind: str) -> dict[str, float]:
    """The figures at a run's end that belong to one kind of weights, named as an evaluation's."""
    metrics = run.outcome.metrics
    return {"eval/" + name.removeprefix(kind): value for name, value in metrics.items() if name.startswith(kind)}


def test_last_and_averaged_weights_are_told_apart(uninterrupted: Finished) -> None:
    last, ema = of(uninterrupted, "last/"), of(uninterrupted, "ema/")
    assert ema == of(uninterrupted, "eval/")
    assert last != ema
    assert evaluate_run("uninterrupted", weights="last")[0].metrics == pytest.approx(last, rel=1e-6, abs=1e-7)
    assert evaluate_run("uninterrupted", weights="ema")[0].metrics == pytest.approx(ema, rel=1e-6, abs=1e-7)


@pytest.mark.nightly
def test_the_best_checkpoint_is_kept_through_an_interruption(uninterrupted: Finished, url: str) -> None:
    # So short a run only gets worse at this, which makes an evaluation the best that is not the last.
    monitored = {"monitor": "eval/age/mae_age", "monitor_mode": "min", "keep_checkpoints": 1}
    stop_in_mid_epoch(config("best", url, train=monitored))
    metrics = finish(config("best", url, train=monitored)).outcome.metrics
    folder = Path(str(uninterrupted.folder)).parent / "best" / "checkpoints"
    best = int(metrics["best/step"])
    assert best < TOTAL_STEPS
    whole = {path.parent.name for path in folder.glob("*/manifest.json")}
    assert whole == {f"step-{best:08d}", f"step-{TOTAL_STEPS:08d}"}
    evaluation, checkpoint = evaluate_run("best", weights="best")
    assert checkpoint == f"{folder}/step-{best:08d}"
    assert evaluation.metrics["eval/age/mae_age"] == pytest.approx(metrics["best/age/mae_age"], rel=1e-6)
    assert metrics["best/age/mae_age"] < metrics["eval/age/mae_age"]


def test_a_checkpoint_is_evaluated_by_its_own_path(uninterrupted: Finished) -> None:
    assert uninterrupted.outcome.checkpoint is not None
    _, checkpoint = evaluate_run(uninterrupted.outcome.checkpoint)
    assert checkpoint == uninterrupted.outcome.checkpoint


@pytest.mark.nightly
def test_data_that_moved_elsewhere_go_on(uninterrupted: Finished, url: str, tmp_path: Path) -> None:
    stop_in_mid_epoch(config("moved", url))
    elsewhere = shutil.copytree(url, tmp_path / "elsewhere")
    moved = finish(config("moved", str(elsewhere)))
    assert weights(moved.outcome.checkpoint) == weights(uninterrupted.outcome.checkpoint)


@pytest.mark.nightly
def test_deepspeed_gives_the_weights_of_the_plain_engine(uninterrupted: Finished, url: str) -> None:
    deepspeed = finish(config("deepspeed", url, engine={"kind": "deepspeed"}))
    assert weights(deepspeed.outcome.checkpoint) == weights(uninterrupted.outcome.checkpoint)
    assert deepspeed.outcome.metrics == uninterrupted.outcome.metrics


@pytest.mark.nightly
def test_deepspeed_leaves_no_process_group_behind(url: str) -> None:
    finish(config("group", url, engine={"kind": "deepspeed"}))
    assert not dist.is_initialized()
