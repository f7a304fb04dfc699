"""The collector is told when looking is of no use, and goes back to its own habits for training."""

import gc
import subprocess
import sys
from collections.abc import Generator

import pytest

from hmtl_dist import garbage

USUAL = "import gc; print(gc.get_threshold())"


@pytest.fixture(autouse=True)
def own_collector() -> Generator[None]:
    """Whatever a test does to it, the collector of the test process stays as it was."""
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


def test_training_collects_as_python_does_by_itself() -> None:
    usual = subprocess.run([sys.executable, "-c", USUAL], capture_output=True, text=True, check=True).stdout.strip()
    garbage.collect_rarely()
    assert gc.get_threshold()[0] == 100_000
    garbage.collect_as_usual()
    assert str(gc.get_threshold()) == usual
    assert gc.get_freeze_count() > 10_000


def test_what_one_trial_leaves_is_collected_in_the_next() -> None:
    garbage.collect_rarely()
    garbage.collect_as_usual()
    frozen = gc.get_freeze_count()
    left = [[] for _ in range(1000)]  # pyright: ignore[reportUnknownVariableType]
    garbage.collect_as_usual()
    assert gc.get_freeze_count() <= frozen
    del left


def test_the_choice_of_a_program_that_calls_us_stays() -> None:
    gc.set_threshold(5000, 20, 30)
    frozen = gc.get_freeze_count()
    garbage.collect_as_usual()
    assert gc.get_threshold() == (5000, 20, 30)
    assert gc.get_freeze_count() <= frozen


def test_a_command_leaves_without_a_last_look() -> None:
    told = (
        "import atexit, gc, os, sys; from hmtl_dist import cli; sys.argv = ['hmtl-dist', '--version'];"
        "atexit.register(lambda: print(gc.get_freeze_count() > 10_000, flush=True)); cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "hmtl-dist"
    assert done.stdout.split()[-1] == "True"
