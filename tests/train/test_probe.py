"""A head on frozen features: folds of whole people, figures after the last epoch and at their best."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hmtl_dist.errors import UserError
from hmtl_dist.launch.driver import Finished, drive
from hmtl_dist.launch.probe import probe_run
from hmtl_dist.launch.record import load_run
from hmtl_dist.train.features import Features
from hmtl_dist.train.probe import ProbeSettings, check_folds, make_folds, probe
from tests.e2e import drawn

PEOPLE, PICTURES = 40, 4


def rings(seed: int = 0) -> Features:
    """Two classes that no line divides: one lies around the other; each person has pictures of both."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(PICTURES) % 2, PEOPLE)
    angles = rng.uniform(0, 2 * np.pi, len(labels))
    radius = 1 + 2 * labels + rng.normal(0, 0.1, len(labels))
    features = np.column_stack([radius * np.cos(angles), radius * np.sin(angles)]).astype(np.float32)
    groups = np.repeat(np.arange(PEOPLE, dtype=np.uint64) + 1000, PICTURES)
    return Features(features, labels.astype(np.int64), groups, ("inner", "outer"), grouped=True)


def test_no_person_is_in_two_folds_and_every_sample_is_in_one() -> None:
    features = rings()
    folds = make_folds(features.groups, features.labels, 10, seed=0)
    assert np.bincount(folds).tolist() == [PEOPLE * PICTURES // 10] * 10
    for person in np.unique(features.groups):
        assert len(np.unique(folds[features.groups == person])) == 1


def test_a_person_in_two_folds_is_noticed() -> None:
    with pytest.raises(UserError, match=r"^1 groups would fall to more than one fold"):
        check_folds(np.array([1, 1, 2], np.uint64), np.array([0, 1, 1], np.uint8))


def test_more_folds_than_people_are_refused_in_one_line() -> None:
    features = rings()
    with pytest.raises(UserError, match=r"--folds 41: there are only 40 groups with a label; use at most 40"):
        make_folds(features.groups, features.labels, 41, seed=0)


def test_a_hidden_layer_learns_what_no_line_divides() -> None:
    linear = probe(rings(), ProbeSettings(head="linear", folds=5, epochs=40))
    mlp = probe(rings(), ProbeSettings(head="mlp", folds=5, epochs=40, learning_rate=0.01))
    assert linear.last < 0.75
    assert mlp.last > 0.95


def test_figures_are_means_over_folds_and_the_same_again() -> None:
    settings = ProbeSettings(folds=5, epochs=5)
    found = probe(rings(), settings)
    assert found.last == pytest.approx(np.mean(found.last_by_fold))
    assert found.max == pytest.approx(np.mean(found.max_by_fold))
    assert all(best >= last for best, last in zip(found.max_by_fold, found.last_by_fold, strict=True))
    assert (found.samples_by_fold, found.groups_by_fold) == ((32,) * 5, (8,) * 5)
    assert probe(rings(), settings) == found


def test_samples_without_the_label_take_no_part() -> None:
    features = rings()
    features.labels[::PICTURES] = -1
    found = probe(features, ProbeSettings(folds=5, epochs=1))
    assert sum(found.samples_by_fold) == PEOPLE * (PICTURES - 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    url = drawn.draw(str(tmp_path_factory.mktemp("drawn") / "set"))
    return drive(drawn.config("probed", url, train={"epochs": 1}), lambda progress: None)


def test_features_of_a_run_are_extracted_once_for_the_same_weights_and_data(run: Finished, hmtl_home: Path) -> None:
    settings = ProbeSettings(folds=4, epochs=3)
    both = ("train", "val")
    first = probe_run("probed", settings, label="gender", splits=both)
    again = probe_run(str(run.outcome.checkpoint), settings, label="gender", splits=both)
    assert (first.cached, again.cached) == (False, True)
    assert first.metrics == again.metrics
    assert (first.num_samples, sum(first.metrics.groups_by_fold)) == (drawn.SAMPLES, drawn.IDENTITIES)
    assert len(list((hmtl_home / "features").glob("*.npz"))) == 1
    assert first.seen


def test_of_its_own_set_a_run_is_asked_what_it_was_not_trained_on(run: Finished) -> None:
    found = probe_run("probed", ProbeSettings(folds=2, epochs=1), label="gender")
    assert found.num_samples < drawn.SAMPLES
    assert not found.seen
    url = load_run("probed").data.url
    named = probe_run(run.folder, ProbeSettings(folds=2, epochs=1), label="gender", data=url)
    assert named.num_samples == drawn.SAMPLES
    assert named.seen


@pytest.mark.nightly
def test_the_command_answers_in_json_and_refuses_an_unknown_label_in_one_line(run: Finished) -> None:
    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hmtl_dist", "probe", run.folder, "--folds", "3", "--epochs", "2", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    answer = json.loads(ask("--head", "mlp", "--json").stdout)
    assert set(answer["metrics"]) == {"last/expression/accuracy", "best/expression/accuracy"}
    refused = ask("--label", "mood")
    assert refused.returncode == 2
    assert "has no such category; there are expression, gender" in refused.stderr
