"""Each tier runs its own tests alone, a file that fails gets a second run, and a failure says why."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.tiers import tier_of

pytest_plugins = ["pytester"]

REPOSITORY = Path(__file__).resolve().parents[1]

MIXED = """
import pytest
pytestmark = pytest.MARK.nightly
def test_nightly(): pass
@pytest.MARK.slow
def test_slow(): pass
@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.MARK.slow)])
def test_both(number): pass
""".replace("MARK", "mark")  # this file itself is no file of these tiers


def test_nearest_marker_decides(pytester: pytest.Pytester) -> None:
    pytester.plugins = ["tests.tiers"]
    tiers = {item.name: tier_of(item) for item in pytester.getitems(MIXED)}
    assert tiers == {"test_nightly": "nightly", "test_slow": "slow", "test_both[1]": "nightly", "test_both[2]": "slow"}


def test_other_tiers_are_left_out(pytester: pytest.Pytester) -> None:
    file = pytester.makepyfile(MIXED + "def test_more(): pass")
    ended = pytester.runpytest_inprocess("-p", "tests.tiers", "--tier", "slow,quick", str(file))
    ended.assert_outcomes(passed=2, deselected=3)


def test_unknown_tier_is_refused(pytester: pytest.Pytester) -> None:
    ended = pytester.runpytest_inprocess("-p", "tests.tiers", "--tier", "weekly")
    assert ended.ret == pytest.ExitCode.USAGE_ERROR
    ended.stderr.fnmatch_lines(["*given 'weekly', allowed are quick, slow, nightly"])


def test_failure_shows_the_end_of_the_logs_written_meanwhile(pytester: pytest.Pytester) -> None:
    file = pytester.makepyfile(
        """
        def test_before(tmp_path): (tmp_path / "before.log").write_text("long ago")
        def test_now(tmp_path):
            (tmp_path / "server.log").write_text("".join(f"line {number}\\n" for number in range(100)))
            assert False
        """
    )
    shown = pytester.runpytest_inprocess("-p", "tests.tiers", "-p", "no:cacheprovider", str(file)).stdout.str()
    assert "server.log" in shown
    assert "line 99\n" in shown
    assert "line 60\n" in shown
    assert "line 59\n" not in shown
    assert "before.log" not in shown


@pytest.mark.nightly
def test_time_out_shows_the_stacks_of_started_processes(pytester: pytest.Pytester) -> None:
    file = pytester.makepyfile(
        """
        import subprocess, sys
        def test_waits():
            program = "import time\\ndef waits_for_nothing(): time.sleep(60)\\nwaits_for_nothing()"
            subprocess.run([sys.executable, "-c", program])
        """
    )
    shown = pytester.runpytest_subprocess("-p", "tests.tiers", "--timeout=8", str(file)).stdout.str()
    assert "stacks of the processes it started" in shown
    assert "waits_for_nothing" in shown


# --- files that fail ----------------------------------------------------------------------------------------------

ONCE = """
import pathlib, pytest
@pytest.MARK.slow
def test_first_time_wrong():
    here = pathlib.Path("been-here")
    been = here.exists()
    here.touch()
    assert been, "a hiccup"
@pytest.MARK.slow
def test_right(): pass
"""
ALWAYS = "import pytest\n@pytest.MARK.slow\ndef test_wrong(): raise ValueError('always')\n"
LEAVES = """
import subprocess, sys, pytest
@pytest.MARK.slow
def test_leaves_one_running():
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    open("left", "w").write(str(started.pid))
    started.returncode = 0  # nobody waits for it
"""


def run(folder: Path, *selected: str, tier: str = "slow", **tests: str) -> "subprocess.CompletedProcess[str]":
    """Runs a tier of some test files in a process of its own."""
    (folder / "tests").mkdir()
    for name, text in tests.items():
        (folder / "tests" / f"test_{name}.py").write_text(text.replace("MARK", "mark"))
    return subprocess.run(
        [sys.executable, "-m", "tests.run_tier", tier, *selected, "--", "-p", "tests.tiers"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_file_that_fails_is_flaky_if_it_passes_once_more_and_says_why(tmp_path: Path) -> None:
    ended = run(tmp_path, once=ONCE)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "flaky: tests/test_once.py" in ended.stdout
    assert "a hiccup" in ended.stdout
    assert "slow: 2 passed, 0 failed, 0 skipped" in ended.stdout


@pytest.mark.nightly
def test_file_that_fails_twice_fails_and_nothing_runs_on_after_another(tmp_path: Path) -> None:
    ended = run(tmp_path, always=ALWAYS, leaves=LEAVES)
    assert ended.returncode == 1
    assert "failed twice: tests/test_always.py" in ended.stdout
    assert "slow: 1 passed, 1 failed, 0 skipped" in ended.stdout
    left = int((tmp_path / "left").read_text())
    assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE


@pytest.mark.nightly
def test_quick_file_that_fails_runs_once_more_too(tmp_path: Path) -> None:
    ended = run(tmp_path, tier="quick", once=ONCE.replace("@pytest.MARK.slow\n", ""))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "flaky: tests/test_once.py" in ended.stdout


@pytest.mark.nightly
def test_each_of_several_tests_of_a_file_is_run(tmp_path: Path) -> None:
    selected = ("tests/test_once.py::test_right", "tests/test_once.py::test_first_time_wrong")
    ended = run(tmp_path, *selected, once=ONCE)
    assert f"[1/2] {selected[0]} 1 passed" in ended.stdout
    assert f"[2/2] {selected[1]} 1 failed" in ended.stdout


@pytest.mark.nightly
def test_tier_without_a_test_there_is_said(tmp_path: Path) -> None:
    ended = run(tmp_path, tier="nightly", once=ONCE)
    assert (ended.returncode, ended.stdout) == (5, "no test of the nightly tier there\n")
