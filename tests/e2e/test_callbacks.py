"""Who starts a run may have himself told of it, on every rank and where it trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.drawn import draw


@pytest.mark.nightly
def test_every_rank_of_a_run_on_ray_tells_the_same(tmp_path: Path) -> None:
    url, notes = draw(str(tmp_path / "set")), tmp_path / "notes"
    notes.mkdir()
    command = [sys.executable, "-m", "tests.e2e.callbacks", url, str(notes)]
    subprocess.run(command, env=os.environ | {"HMTL_HOME": str(tmp_path / "home")}, check=True, timeout=300)
    first, second = ([json.loads(line) for line in file.read_text().splitlines()] for file in notes.iterdir())
    assert first == second
    assert [(what, step) for what, step, _ in first] == [
        ("window", 2),
        ("window", 3),
        ("evaluation", 3),
        ("FINISHED", 3),
    ]
    assert "train/loss/total" in first[0][2]
    assert "eval/expression/accuracy" in first[2][2]
