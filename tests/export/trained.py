"""A small run for the tests of what follows training: trained once a test file, in seconds."""

from pathlib import Path
from typing import Any

from hmtl_dist.launch.driver import Finished, drive
from tests.e2e import drawn

HEADS = ["expression", "age", "pose"]
SIZE = 32


def train(folder: Path, name: str, *, epochs: int = 1, **sections: Any) -> Finished:
    """Train a minute model on the drawn faces in a folder; the first call draws them."""
    url = str(folder / "set")
    if not Path(url).exists():
        drawn.draw(url, image_size=SIZE)
    tree = drawn.tree(url, tasks={"inpainting": None}, train={"epochs": epochs}, weighting="sum", **sections)
    return drive(drawn.RunConfig.model_validate({"name": name} | tree), lambda progress: None)
