"""Spoilt inputs of every kind end in one clear line, in the checkpoint before, or in the right result.

`HMTL_MUTATIONS=N` tries N seeds of each kind instead of a few.
"""

import os
import random
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from hmtl_dist.errors import UserError
from tests.faults.mutated import KINDS, Files

SECONDS = 60
FEW = {"recipe": 30, "index": 20, "index that is sealed": 30, "checkpoint": 20, "checkpoint that is sealed": 20}
USUAL, PUBLISHED = 15, 4

pytestmark = pytest.mark.nightly


def seeds_of(kind: str) -> range:
    few = PUBLISHED if kind.startswith("labels of") else FEW.get(kind, USUAL)
    return range(int(os.environ.get("HMTL_MUTATIONS", few)))


CASES = [(kind, seed) for kind in KINDS for seed in seeds_of(kind)]


def test_there_are_at_least_two_hundred() -> None:
    assert len(CASES) >= 200


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Files, Any]]:
    """The folder of a whole input, its files, and what reading it gives."""

    @lru_cache
    def make(kind: str) -> tuple[Path, Files, Any]:
        folder = tmp_path_factory.mktemp("whole") / "input"
        folder.mkdir()
        KINDS[kind].make(folder)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        copy = folder.with_name("copy")
        shutil.copytree(folder, copy)
        return copy, files, KINDS[kind].read(folder)

    return make


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize(("kind", "seed"), CASES, ids=lambda value: str(value).replace(" ", "-"))
def test_a_spoilt_input_ends_in_one_line_or_in_the_right_result(
    tmp_path: Path, whole: Callable[[str], tuple[Path, Files, Any]], kind: str, seed: int
) -> None:
    source, files, right = whole(kind)
    folder = tmp_path / "input"
    shutil.copytree(source, folder, copy_function=os.link)
    for name, data in KINDS[kind].spoil(files, random.Random(seed)).items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data)
    said = None
    try:
        found = KINDS[kind].read(folder)
    except UserError as error:
        said = str(error)
    else:
        assert KINDS[kind].allows(found, right)
    assert said is None or (said and "\n" not in said)
    assert [path.name for path in tmp_path.iterdir()] == ["input"]
    shutil.rmtree(folder)
