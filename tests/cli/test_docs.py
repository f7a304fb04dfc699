"""Every command line in the documentation is one that can be typed: options, recipes, keys, targets and files exist."""

import re
import shlex
import subprocess
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


def lines_of(page: Path) -> list[str]:
    """The lines of its blocks of shell, each whole; variables before one belong to the shell."""
    text = page.read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    blocks += re.findall(r"(?:^    \S.*\n(?:^    .*\n)*)", text, re.MULTILINE)
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    lines = [re.sub(r"^(?:[A-Z_]+=\S+ +)+", "", line) for line in lines]
    return [line for line in lines if line.strip()]


def command_of(line: str) -> list[str] | None:
    """The words that our program is given by a line, be it called by name, as a module or by a batch script."""
    found = re.match(r"(?:hmtl-dist|.*python -m hmtl_dist|sbatch .*train\.sbatch) (.*)", line)
    return None if found is None else shlex.split(found[1].removesuffix("…"), comments=True)


LINES = [(page.relative_to(REPOSITORY).as_posix(), line) for page in PAGES for line in lines_of(page)]
CASES = [(page, line) for page, line in LINES if command_of(line)]


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
    words = command_of(line)
    assert words
    check(words)


def test_the_targets_files_and_modules_that_lines_name_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = 0
    for page, line in LINES:
        assert targets.issuperset(re.findall(r"^make ([a-z-]+)", line)), (page, line)
        modules = re.findall(r"-m (benchmarks[.\w]*)", line)
        files = re.findall(r"(?<![\w/.])(?:cluster|docs|tests)/(?!secrets)[\w./-]+", line)
        files += [module.replace(".", "/") + ".py" for module in modules]
        assert all((REPOSITORY / file).exists() for file in files), (page, line)
        named += len(files)
    assert named > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_of_shell_can_be_parsed(page: Path) -> None:
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        subprocess.run(["bash", "-n"], input=block.replace("…", ""), text=True, check=True)


@pytest.mark.parametrize(
    "line",
    ["data build imagefolder A B", "data build folder A B --labl x", "train demo tasks.puzling=null", "trian demo"],
)
def test_a_command_that_is_not_there_is_found(line: str) -> None:
    with pytest.raises(Exception, match=r"imagefolder|labl|puzling|trian"):
        check(line.split())
