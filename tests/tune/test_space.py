"""Spaces are read without Ray, checked by the configuration, and every mistake is one line that says how to mend it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hmtl_dist.config.io import find_shipped, list_shipped, read_recipe
from hmtl_dist.errors import UserError
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tune.request import Request
from hmtl_dist.tune.space import load_space
from hmtl_dist.tune.trials import Recipe, check_space, fitted, overrides_of
from tests.tune.spaces import METRIC, WEIGHTS, recipe, space, tree

LOG = {"type": "loguniform", "low": 0.05, "high": 5.0}
DWA = {"weighting.type": {"type": "choice", "values": ["sum", "dwa"]}}
PBT: dict[str, Any] = {"search": "random", "schedule": "pbt"}


@pytest.mark.parametrize("name", list_shipped("tune_spaces"))
@pytest.mark.parametrize("recipe", ["demo", "faces_small", "affectnet_puzzling_b0", "affectnet_inpainting_b0"])
def test_a_shipped_space_is_sound_for_recipes_with_pretext_tasks(name: str, recipe: str) -> None:
    tree = Recipe(tree=read_recipe(RunConfig, recipe))
    check_space(fitted(load_space(name), tree), tree)


def test_the_example_of_the_documentation_is_sound(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tune.md").read_text()
    file = tmp_path / "space.yaml"
    file.write_text(page.split("```yaml\n")[1].split("```")[0])
    check_space(load_space(str(file)), Recipe(tree=read_recipe(RunConfig, "demo")))


def test_a_shipped_space_says_what_it_is_for_and_what_it_costs() -> None:
    for name in list_shipped("tune_spaces"):
        comment = [line for line in find_shipped("tune_spaces", name).read_text().splitlines() if line.startswith("#")]
        assert len(comment) >= 2
        assert "Cost:" in " ".join(comment)


def test_reading_and_checking_a_space_loads_neither_ray_nor_torch() -> None:
    code = (
        "import sys\n"
        "from tests.tune.spaces import space, recipe\n"
        "from hmtl_dist.tune.trials import check_space\n"
        "check_space(space(), recipe())\n"
        "print([name for name in ('ray', 'optuna', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown section": ({"serach": "random"}, "serach: unknown key 'serach'; did you mean 'search'?"),
    "no budget": ({"budget": None}, "budget: required, but not given: What the sweep may cost"),
    "empty budget": ({"budget": {}}, "budget: give trials or hours, or both"),
    "no trials": ({"budget": {"trials": 0}}, "budget.trials: given 0, allowed at least 1"),
    "too many trials": ({"budget": {"trials": 10**6}}, "budget.trials: given 1000000, allowed at most 10000"),
    "negative hours": ({"budget": {"hours": -1}}, "budget.hours: given -1, allowed above 0"),
    "hours in words": ({"budget": {"hours": "two"}}, "budget.hours: given 'two', allowed a number"),
    "no metric": ({"metric": None}, "metric: required, but not given: Figure of the last evaluation that decides"),
    "wrong mode": ({"mode": "maximum"}, "mode: given 'maximum', allowed max, min"),
    "metric of no task": (
        {"metric": "expresion/accuracy"},
        "metric: eval/expresion/accuracy: the recipe has no task 'expresion'; did you mean 'expression'?",
    ),
    "weight below nothing": (
        {"params": {"tasks.puzzling.weight": {"type": "uniform", "low": -1, "high": 5}}},
        "params.tasks.puzzling.weight: -1.0: tasks.puzzling.weight: given -1.0, allowed at least 0",
    ),
    "nothing varied": ({"params": {"tasks.puzzling.weight": 1.0}}, "params: nothing varies"),
    "unknown distribution": (
        {"params": {"tasks.puzzling.weight": {"type": "loguniforn", "low": 1, "high": 2}}},
        "params.tasks.puzzling.weight.type: given 'loguniforn', allowed uniform, loguniform,",
    ),
    "misspelt bound": (
        {"params": {"tasks.puzzling.weight": {**LOG, "hihg": 5}}},
        "params.tasks.puzzling.weight.hihg: unknown key 'hihg'; did you mean 'high'?",
    ),
    "bounds the wrong way": (
        {"params": {"tasks.puzzling.weight": {"type": "uniform", "low": 2, "high": 1}}},
        "params.tasks.puzzling.weight: low=2 is not below high=1; give low below high",
    ),
    "log of zero": (
        {"params": {"tasks.puzzling.weight": {"type": "loguniform", "low": 0, "high": 1}}},
        "params.tasks.puzzling.weight: low=0 is not above 0, which a loguniform needs; raise it or use uniform",
    ),
    "steps that do not fit": (
        {"params": {"tasks.puzzling.weight": {"type": "quniform", "low": 0, "high": 1, "q": 0.3}}},
        "params.tasks.puzzling.weight: q=0.3 does not divide the range from 0 to 1",
    ),
    "nothing to choose from": (
        {"params": {"weighting.type": {"type": "choice", "values": []}}},
        "params.weighting.type.values:",
    ),
    "a choice twice": (
        {"params": {"weighting.type": {"type": "choice", "values": ["sum", "sum"]}}},
        "params.weighting.type: values: 'sum' stands twice; leave one of them out",
    ),
    "a path of no task": (
        {"params": {"tasks.puzling.weight": LOG}},
        "params.tasks.puzling.weight: 0.05: tasks.puzling.weight: no task 'puzling'; did you mean 'puzzling'?",
    ),
    "a path of no key": (
        {"params": {"optim.learning_rat": LOG}},
        "params.optim.learning_rat: 0.05: optim.learning_rat: unknown key 'learning_rat'; did you mean",
    ),
    "a bound outside of the schema": (
        {"params": {"augment.flip": {"type": "uniform", "low": 0, "high": 1.5}}},
        "params.augment.flip: 1.5: augment.flip: given 1.5, allowed at most 1",
    ),
    "a choice outside of the schema": (
        {"params": {"weighting.type": {"type": "choice", "values": ["sum", "dvwa"]}}},
        "params.weighting.type: 'dvwa': weighting.type: given 'dvwa', allowed sum, geometric, uncertainty, dwa",
    ),
    "a choice that breaks the whole": (
        {"params": {"data.batch_size": {"type": "choice", "values": [16, 30]}}},
        "params.data.batch_size: 30: data.batch_size: 30 is not a multiple of data.lanes=4",
    ),
    "what the sweep sets itself": (
        {"params": {"seed": {"type": "randint", "low": 0, "high": 9}}},
        "params.seed: a sweep sets seed itself; use seeds: N",
    ),
    "a section and a key in it": (
        {"params": {**DWA, "weighting": {"type": "choice", "values": ["sum", "dwa"]}}},
        "params.weighting.type: params.weighting sets the section it is in; vary one of them",
    ),
    "a condition on nothing": (
        {"params": {**WEIGHTS, "weighting.temperature": {**LOG, "when": {"weighting.tpye": "dwa"}}}},
        "params.weighting.temperature.when: no parameter 'weighting.tpye'",
    ),
    "a condition that is never met": (
        {"params": {**DWA, "weighting.temperature": {**LOG, "when": {"weighting.type": "dvwa"}}}},
        "params.weighting.temperature.when.weighting.type: given 'dvwa', allowed sum, dwa",
    ),
    "conditions in a circle": (
        {
            "params": {
                **WEIGHTS,
                "optim.learning_rate": {**LOG, "when": {"optim.weight_decay": 0.1}},
                "optim.weight_decay": {**LOG, "when": {"optim.learning_rate": 0.1}},
            }
        },
        "params: the conditions of optim.learning_rate, optim.weight_decay wait for one another; break the circle",
    ),
    "a point outside": (
        {"points": [{"tasks.puzzling.weight": 9}]},
        "points.0.tasks.puzzling.weight: given 9, allowed 0.05 to 5",
    ),
    "a point of no parameter": (
        {"points": [{"tasks.puzzling.wieght": 1}]},
        "points.0: no parameter 'tasks.puzzling.wieght'; did you mean 'tasks.puzzling.weight'?",
    ),
    "a sum of no parameter": (
        {"constraints": [{"sum": ["tasks.puzzling"], "max": 1}]},
        "constraints: no parameter 'tasks.puzzling'",
    ),
    "a constraint without a bound": (
        {"constraints": [{"metric": "expression/accuracy"}]},
        "constraints.0: give max or min, or both",
    ),
    "a grid over a range": (
        {"search": "grid", "budget": {}},
        "params.tasks.puzzling.weight: a loguniform has no end of values, which a grid needs",
    ),
    "a grid of another size": (
        {"search": "grid", "params": DWA, "budget": {"trials": 5}},
        "budget.trials: given 5, but the grid has 2 combinations; leave it out",
    ),
    "cmaes over a choice": (
        {"search": {"method": "optuna", "sampler": "cmaes"}, "params": DWA},
        "params.weighting.type: cmaes needs plain numbers; use sampler: tpe",
    ),
    "a sampler without optuna": (
        {"search": {"method": "random", "sampler": "gp"}},
        "search.sampler: means something with method: optuna only; leave it out",
    ),
    "grace as long as a trial": (
        {"schedule": {"type": "asha", "grace_epochs": 9}},
        "schedule.grace_epochs: 9 given, but a trial has train.epochs=9; raise budget.epochs or lower it",
    ),
    "grace as long as the budget's trial": (
        {"schedule": {"type": "asha", "grace_epochs": 3}, "budget": {"trials": 3, "epochs": 3}},
        "schedule.grace_epochs: 3 given, but a trial has budget.epochs=3; nothing could be stopped early",
    ),
    "a population that learns": ({"schedule": "pbt"}, "search.method: pbt begins with random draws"),
    "a population of one": ({**PBT, "budget": {"trials": 1}}, "budget.trials: pbt needs a population"),
    "a population of several seeds": ({**PBT, "seeds": 2}, "seeds: pbt exchanges weights between trials"),
    "bandits over a choice": (
        {"search": "random", "schedule": "pb2", "params": DWA},
        "params.weighting.type: pb2 needs a range of numbers, uniform or loguniform; use pbt",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_line_with_its_path_and_what_is_allowed(case: str) -> None:
    sections, said = WRONG[case]
    with pytest.raises(UserError) as caught:
        check_space(space(**sections), recipe())
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("every", "evaluated"), [(9, 2), (1, 1)])
def test_a_trial_that_may_be_stopped_early_is_evaluated_as_often_as_it_is_judged(every: int, evaluated: int) -> None:
    judged = space(schedule={"type": "asha", "grace_epochs": 2})
    config = check_space(judged, recipe(train={"epochs": 9, "evaluate_every_epochs": every}))
    assert config.train.evaluate_every_epochs == evaluated


OPTIONAL = {path: {**distribution, "optional": True} for path, distribution in WEIGHTS.items()}
PUZZLING, INPAINTING = OPTIONAL


def test_an_optional_parameter_is_left_out_where_the_recipe_has_no_such_task() -> None:
    wanted = space(
        params={
            **OPTIONAL,
            "optim.learning_rate": {**LOG, "when": {INPAINTING: 0.1}},
            "augment.noise": {"type": "uniform", "low": 0, "high": 0.1},
        },
        points=[{PUZZLING: 1.0, INPAINTING: 2.0}, {INPAINTING: 0.5}],
        constraints=[
            {"sum": [PUZZLING, INPAINTING], "max": 6},
            {"sum": [INPAINTING], "max": 3},
            {"metric": METRIC, "min": 0.5},
        ],
    )
    without = recipe(tasks={"expression": {"type": "classification"}, "puzzling": {"type": "puzzling"}})
    found = fitted(wanted, without)
    assert list(found.params) == [PUZZLING, "augment.noise"]
    assert found.points == ({PUZZLING: 1.0},)
    assert [one.sum for one in found.constraints] == [(PUZZLING,), None]
    assert fitted(wanted, recipe()) == wanted
    request = Request.of(wanted, "weights", without.tree)
    assert (request.space, request.left_out) == (found, (INPAINTING, "optim.learning_rate"))
    with pytest.raises(UserError, match=r"^params.tasks.inpainting.weight: .*no task 'inpainting'"):
        check_space(space(), without)


def test_a_space_of_which_a_recipe_has_nothing_is_refused() -> None:
    without = recipe(tasks={"expression": {"type": "classification"}})
    with pytest.raises(UserError, match=r"^params: the recipe has no tasks.inpainting and no tasks.puzzling, and noth"):
        fitted(space(params=OPTIONAL), without)


def test_a_short_metric_is_one_of_evaluation() -> None:
    assert space(metric="expression/accuracy").metric == METRIC


def test_the_command_line_may_change_the_budget(tmp_path: Path) -> None:
    import yaml

    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tree()))
    assert load_space(str(path), ["budget.trials=3"]).num_trials == 3


def test_a_grid_leaves_out_what_its_conditions_switch_off() -> None:
    temperature = {"type": "choice", "values": [1.0, 2.0], "when": {"weighting.type": "dwa"}}
    found = space(search="grid", budget={}, params={**DWA, "weighting.temperature": temperature})
    assert found.grid() == [
        {"weighting.type": "sum"},
        {"weighting.type": "dwa", "weighting.temperature": 1.0},
        {"weighting.type": "dwa", "weighting.temperature": 2.0},
    ]
    assert found.num_trials == 3


def test_a_whole_task_can_be_a_choice() -> None:
    params = {"tasks.puzzling": {"type": "choice", "values": [None, {"type": "puzzling", "weight": 2.0}]}}
    found = space(search="grid", budget={}, params=params)
    check_space(found, recipe())
    without, heavy = (recipe().resolve(overrides_of(drawn)) for drawn in found.grid())
    assert list(without.tasks) == ["expression", "inpainting"]
    assert heavy.tasks["puzzling"].weight == 2.0


def test_a_preset_is_drawn_with_all_its_parameters() -> None:
    params = {"augment": {"type": "choice", "values": ["none", "strong"]}}
    found = space(params=params)
    check_space(found, recipe())
    assert recipe().resolve(overrides_of({"augment": "strong"})).augment.jitter_probability == 0.9
