"""What MLflow's page tells of a run before any figure."""

from pathlib import Path

from hmtl_dist.config.io import load_tree
from hmtl_dist.launch.about import notes
from hmtl_dist.run_config import RunConfig

RECIPE = """
name: tired
data: {url: s3://faces/all, batch_size: 64, image_size: 96}
tasks:
  pose: {type: head_pose}
  years: {type: age, weight: 0.5}
train: {epochs: 3}
"""


def test_the_page_of_a_run_tells_what_learns_what_from_which_pictures(tmp_path: Path) -> None:
    recipe = tmp_path / "heads.yaml"
    recipe.write_text(RECIPE)
    told = notes(load_tree(RunConfig, str(recipe), ["seed=7", "train.max_steps=50"]))
    assert (told["tasks"], told["mlflow.source.name"]) == ("pose, years", "heads")
    for words in (
        "pose (head_pose, weight 1), years (age, weight 0.5)",
        "pictures of 96 px",
        "s3://faces/all, 3 epoch(s) or 50 steps, if sooner, of batch 64, seed 7",
        "hmtl-dist resume tired",
        "`pose/mae` in degrees; `years/mae` in years",
    ):
        assert words in told["mlflow.note.content"]


def test_a_recipe_that_was_made_of_another_keeps_the_name_it_gives_itself(tmp_path: Path) -> None:
    recipe = tmp_path / "config.yaml"
    recipe.write_text(RECIPE + "recipe: heads\n")
    assert load_tree(RunConfig, str(recipe)).recipe == "heads"
    assert load_tree(RunConfig, str(recipe), ["recipe=mine"]).recipe == "mine"
