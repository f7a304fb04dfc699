"""Every command line in the documentation is one that the program takes: its options, arguments, recipes and keys."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from hmtl_dist.cli.app import app
from hmtl_dist.config.io import check_tree, read_recipe
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tune.space import load_space

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = (
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "cluster").rglob("*.md")),
)
OWN = {"best.yaml", "mine.yaml"}
"""Files that a reader has made."""


def commands_of(page: Path) -> list[str]:
    """The command lines of its blocks of shell, each in one line; variables before one belong to the shell."""
    text = page.read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    blocks += re.findall(r"(?:^    \S.*\n(?:^    .*\n)*)", text, re.MULTILINE)
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    lines = [re.sub(r"^(?:[A-Z_]+=\S+ +)+", "", line) for line in lines]
    return [line for line in lines if line.startswith("hmtl-dist ")]


CASES = [(page.relative_to(REPOSITORY).as_posix(), line) for page in PAGES for line in commands_of(page)]


def parsed(words: list[str]) -> tuple[Any, dict[str, Any]]:
    """The context and the arguments of the innermost command, as the program itself reads them."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("hmtl-dist", [], resilient_parsing=True)
    name = ""
    while hasattr(command, "get_command"):
        name, *words = words
        command = command.get_command(context, name)
        assert command is not None, name
        if hasattr(command, "get_command"):
            context = command.make_context(name, [], parent=context, resilient_parsing=True)
    made = command.make_context(name, words, parent=context)
    return command, made.params


def check(words: list[str]) -> None:
    command, given = parsed(words)
    if command.name == "submit":
        if given["words"]:
            check(given["words"])
        return
    recipe = given.get("recipe")
    if recipe and recipe not in OWN:
        check_tree(RunConfig, read_recipe(RunConfig, recipe), given.get("overrides") or ())
    if space := given.get("space"):
        load_space(space, given.get("settings") or ())


def test_the_pages_hold_many() -> None:
    assert len(CASES) > 60
    assert len({page for page, _ in CASES}) > 8


@pytest.mark.parametrize(("page", "line"), CASES, ids=lambda value: str(value)[:70])
def test_a_documented_command_is_taken(page: str, line: str) -> None:
    check(shlex.split(line, comments=True)[1:])


@pytest.mark.parametrize(
    "line",
    ["data build imagefolder A B", "data build folder A B --labl x", "train demo tasks.puzling=null", "trian demo"],
)
def test_a_command_that_is_not_there_is_found(line: str) -> None:
    with pytest.raises(Exception, match=r"imagefolder|labl|puzling|trian"):
        check(line.split())
