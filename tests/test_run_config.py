"""What no section of the configuration can see alone."""

import re
from pathlib import Path

import pytest

from hmtl_dist.config.base import changeable, may_change
from hmtl_dist.config.io import describe, list_shipped, load_tree
from hmtl_dist.errors import UserError
from hmtl_dist.run_config import RunConfig

REPOSITORY = Path(__file__).parents[1]
RECIPE = """
data: {url: faces, batch_size: 32, lanes: 8}
tasks:
  expression: {type: classification}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return str(path)


def refused(recipe: str, *overrides: str) -> str:
    with pytest.raises(UserError, match=r".+") as caught:
        load_tree(RunConfig, recipe, overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", list_shipped("recipes"))
def test_shipped_recipe_is_valid_and_named_after_its_file(name: str) -> None:
    assert load_tree(RunConfig, name).name == name


def test_lanes_must_divide_the_batch(recipe: str) -> None:
    message = refused(recipe, "data.batch_size=30")
    assert message == "data.batch_size: 30 is not a multiple of data.lanes=8; use 24 or change data.lanes"


def test_a_batch_smaller_than_the_lanes_is_told_the_least_one(recipe: str) -> None:
    assert "use 8 or change data.lanes" in refused(recipe, "data.batch_size=4")


def test_workers_must_divide_the_lanes(recipe: str) -> None:
    message = refused(recipe, "launch.num_workers=3")
    assert message == ("launch.num_workers: 3 does not divide data.lanes=8; use a divisor of 8 or change data.lanes")


def test_workers_are_a_number_or_auto(recipe: str) -> None:
    assert load_tree(RunConfig, recipe, ["launch.num_workers=auto"]).launch.num_workers == "auto"
    message = refused(recipe, "launch.num_workers=0")
    assert message.startswith("launch.num_workers: given 0, allowed ")
    assert "at least 1" in message
    assert "auto" in message


def test_type_of_gpus_needs_gpus(recipe: str) -> None:
    message = refused(recipe, "launch.accelerator_type=H100")
    assert message == (
        "launch.accelerator_type: given 'H100', but launch.gpus_per_worker is 0; use launch.gpus_per_worker=1"
    )


def test_accumulation_must_divide_the_share_of_a_worker(recipe: str) -> None:
    message = refused(recipe, "launch.num_workers=4", "engine.accumulation_steps=3")
    assert message.startswith("engine.accumulation_steps: 3 does not divide the 8 samples that a worker takes a step")


def test_accumulation_over_the_whole_share_is_allowed(recipe: str) -> None:
    tree = load_tree(RunConfig, recipe, ["launch.num_workers=4", "engine.accumulation_steps=8"])
    assert tree.engine.accumulation_steps == 8


def test_some_task_is_needed(recipe: str) -> None:
    assert refused(recipe, "tasks.expression=null").startswith("tasks: no task given; name at least one")


def test_a_task_may_not_take_the_name_of_the_weighting(recipe: str) -> None:
    assert refused(recipe, "tasks.weighting.type=puzzling").startswith("tasks: a task may not be named 'weighting'")


def test_a_run_is_named_by_a_file_name(recipe: str) -> None:
    assert refused(recipe, "name=../escape").startswith("name: given '../escape', allowed text that matches")


def test_launcher_may_be_named_alone(recipe: str) -> None:
    assert load_tree(RunConfig, recipe, ["launch=local"]).launch.kind == "local"


def test_settings_follow_the_launcher_named_alone(recipe: str) -> None:
    launch = load_tree(RunConfig, recipe, ["launch=local", "launch.cpus_per_worker=2"]).launch
    assert (launch.kind, launch.cpus_per_worker) == ("local", 2.0)


def test_unknown_launcher_is_told_what_there_is(recipe: str) -> None:
    message = refused(recipe, "launch=locl")
    assert message.startswith("launch.kind: given 'locl', allowed ray, local")


def test_resolved_tree_reads_back_as_itself(recipe: str, tmp_path: Path) -> None:
    tree = load_tree(RunConfig, recipe, ["launch=local", "tasks.puzzling.type=puzzling"])
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(describe(tree))
    assert load_tree(RunConfig, str(resolved)) == tree


def test_which_samples_take_part_may_not_depend_on_the_workers(recipe: str) -> None:
    message = refused(
        recipe, "launch.num_workers=8", "tasks.p.type=puzzling", "tasks.p.supervise=clean", "tasks.p.every=8"
    )
    assert message.startswith("tasks.p.every: 8 does not divide the 4 samples that a worker takes at once")


def test_documentation_names_what_may_change_in_a_begun_run() -> None:
    text = (REPOSITORY / "docs" / "reliability.md").read_text()
    said = text.partition("- *Changed settings*")[2].partition("The option")[0]
    assert sorted(re.findall(r"`([^`]+)`", said)) == sorted(changeable(RunConfig))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("name", True),
        ("launch.num_workers", True),
        ("tracking.tags.owner", True),
        ("data.cache.folder", True),
        ("data.cached", False),
        ("train.epochs", False),
        ("tasks.name.type", False),
    ],
)
def test_a_path_may_change_if_it_or_a_section_above_is_marked(key: str, *, expected: bool) -> None:
    assert may_change(RunConfig, key) == expected
