"""The champion changes only for a better candidate, told by pictures that both were asked."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from hmtl_dist.errors import UserError
from hmtl_dist.export.paired import Compared
from hmtl_dist.launch.export import export_model
from hmtl_dist.launch.models import TrainedModel, load_trained, predictor_of, read_pictures
from hmtl_dist.launch.promote import judge, promote
from hmtl_dist.launch.register import register_run
from hmtl_dist.tracking.config import TrackingConfig
from hmtl_dist.tracking.logged_model import record_model
from hmtl_dist.tracking.runs import create_run
from tests.export import trained

# MLflow's own `mlflow.types.responses` makes it warn of itself when `mlflow.pyfunc` is imported.
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

Register = Callable[[str, str, TrainedModel], None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    trained.train(tmp_path_factory.mktemp("drawn"), "tiny")
    return load_trained("tiny")


@pytest.fixture(scope="module")
def tracking(mlflow_server: str) -> TrackingConfig:
    return TrackingConfig(uri=mlflow_server, experiment="promote", system_metrics=False)


@pytest.fixture(scope="module")
def register(tracking: TrackingConfig, tmp_path_factory: pytest.TempPathFactory) -> Register:
    """Registers a model's version under a name and an alias."""
    run_id = create_run(tracking, name="run") or ""

    def register(name: str, alias: str, model: TrainedModel) -> None:
        folder = tmp_path_factory.mktemp("version") / "model"
        model.write(folder)
        wanted = tracking.model_copy(update={"register_model": name, "register_alias": alias})
        record_model(wanted, run_id, folder)

    return register


def older(model: TrainedModel, years: float) -> TrainedModel:
    """The same model, which says so many years more."""
    other = load_trained("tiny")
    with torch.no_grad():
        other.model.get_parameter("heads.age.linear.bias").add_(years / 20)  # the label's scale
    return replace(model, model=other.model)


def champion(tracking: TrackingConfig, name: str) -> str:
    client = MlflowClient(tracking.uri, tracking.uri)
    return str(client.get_model_version_by_alias(name, "champion").version)


@pytest.fixture(scope="module")
def two(model: TrainedModel, register: Register) -> str:
    """A champion (version 1) that says forty years more than the candidate (version 2)."""
    register("contenders", "champion", older(model, 40))
    register("contenders", "candidate", model)
    return "contenders"


def test_a_candidate_that_is_not_better_is_kept_back_by_the_command_with_exit_code_1(
    two: str, tracking: TrackingConfig
) -> None:
    # the two say the same of the expression
    command = [sys.executable, "-m", "hmtl_dist", "promote", two, "--head", "expression", "--json"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": str(tracking.uri)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert (found["outcome"], found["reason"]) == ("kept", "no difference at expression")
    assert [one["head"] for one in found["heads"]] == ["expression", "age", "pose"]
    assert champion(tracking, two) == "1"


def test_a_better_candidate_becomes_champion_and_then_a_worse_one_does_not(
    two: str, tracking: TrackingConfig, model: TrainedModel, register: Register
) -> None:
    found = promote(two, head="age", tracking=tracking)
    assert (found.outcome, found.champion, found.candidate) == ("moved", "1", "2")
    assert found.reason == "better at age, worse at none"
    assert [one.num_samples for one in found.heads] == [24, 24, 24]
    assert [one.metric for one in found.heads] == ["mean error", "accuracy", "mean error in scales"]
    assert found.heads[0].champion - found.heads[0].candidate > 10  # of the 40 years that the champion is off
    assert champion(tracking, two) == "2"
    tags = MlflowClient(tracking.uri, tracking.uri).get_model_version(two, "2").tags
    assert tags["promote.before"] == "1"
    assert "the candidate lowers it by" in tags["promote.age"]

    register(two, "candidate", older(model, 30))
    worse = promote(two, head="age", tracking=tracking)
    assert (worse.outcome, worse.reason) == ("kept", "worse at age")
    elsewhere = promote(two, head="expression", tracking=tracking)
    assert (elsewhere.outcome, elsewhere.reason) == ("kept", "worse at age")
    assert champion(tracking, two) == "2"
    forced = promote(two, tracking=tracking, force=True)
    assert (forced.outcome, forced.reason) == ("moved", "forced; worse at age")
    assert champion(tracking, two) == "3"


def test_a_head_that_is_not_there_is_refused_even_if_forced(
    model: TrainedModel, tracking: TrackingConfig, register: Register
) -> None:
    register("mistaken", "champion", model)
    register("mistaken", "candidate", older(model, 2))
    with pytest.raises(UserError, match=r"--head: 'agee' is not one of .*; did you mean 'age'\?$"):
        promote("mistaken", head="agee", tracking=tracking, force=True)
    assert champion(tracking, "mistaken") == "1"


def test_a_candidate_of_another_test_set_is_refused_unless_forced(
    model: TrainedModel, tracking: TrackingConfig, register: Register
) -> None:
    register("mixed", "champion", model)
    test_set = model.origin.test_set.model_copy(update={"split": "train", "digest": "0" * 64})
    register(
        "mixed", "candidate", replace(older(model, 1), origin=model.origin.model_copy(update={"test_set": test_set}))
    )
    with pytest.raises(UserError, match=r"figures of different test sets do not compare"):
        promote("mixed", tracking=tracking)
    assert champion(tracking, "mixed") == "1"
    found = promote("mixed", tracking=tracking, force=True)
    assert (found.outcome, found.heads) == ("moved", ())
    assert found.reason.startswith("forced; not compared: ")


def test_the_first_candidate_becomes_champion_and_no_candidate_is_refused(
    model: TrainedModel, tracking: TrackingConfig, register: Register
) -> None:
    with pytest.raises(UserError, match=r"models:/first@candidate: MLflow at .* knows no such version"):
        promote("first", tracking=tracking)
    register("first", "candidate", model)
    found = promote("first", tracking=tracking)
    assert (found.outcome, found.reason) == ("moved", "there was no champion to compare with")
    assert promote("first", tracking=tracking).reason == "the candidate is the champion already"


def test_a_run_that_is_registered_afterwards_says_what_it_was_evaluated_on(
    model: TrainedModel, tracking: TrackingConfig
) -> None:
    register_run("tiny", tracking, create_run(tracking, name="run") or "", name="winner", alias="candidate")
    with predictor_of("models:/winner@candidate", tracking) as predictor:
        origin = predictor.info.origin
    assert origin is not None
    assert origin.test_set == model.origin.test_set
    assert origin.metrics == model.origin.metrics


def test_a_registered_model_predicts_and_is_exported(
    two: str, tracking: TrackingConfig, model: TrainedModel, tmp_path: Path
) -> None:
    images = read_pictures(model.config, model.evaluation, 4)
    with predictor_of(f"models:/{two}/2", tracking) as predictor:
        said = predictor.answer(images)
    assert torch.allclose(said["age"], model.answer(images)["age"], atol=1e-4)
    found = export_model(f"models:/{two}/2", form="pt2", out=tmp_path / "out", heads=["age"], tracking=tracking)
    assert list(found.info.tasks) == ["age"]
    assert found.info.parity is not None


def test_worse_at_another_head_outweighs_better_at_the_deciding_one() -> None:
    def one(head: str, verdict: str) -> Compared:
        return Compared(head, "accuracy", 10, 0.5, 0.5, verdict, "")  # pyright: ignore[reportArgumentType]

    assert judge([one("a", "better"), one("b", "no difference")])[0]
    assert judge([one("a", "better"), one("b", "worse")]) == (False, "worse at b")
    assert judge([one("a", "no difference"), one("b", "better")]) == (False, "no difference at a")
