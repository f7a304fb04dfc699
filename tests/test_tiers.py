"""Each tier runs its own tests alone, a file that fails gets a second run, and a failure says why."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

pytest_plugins = ["pytester"]

REPOSITORY = Path(__file__).resolve().parents[1]

MIXED = """
import pytest
pytestmark = pytest.mark.nightly
def test_nightly(): pass
@pytest.mark.slow
def test_slow(): pass
@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_both(number): pass
"""


@pytest.mark.parametrize(
    ("tier", "expected"),
    [("slow", ["test_slow", "test_both[2]"]), ("nightly", ["test_nightly", "test_both[1]"]), ("quick", [])],
)
def test_nearest_marker_decides(pytester: pytest.Pytester, tier: str, expected: list[str]) -> None:
    file = pytester.makepyfile(MIXED)
    arguments = ("-p", "tests.tiers", "--tier", tier, "--collect-only", "-q", str(file))
    shown = pytester.runpytest_inprocess(*arguments).stdout.str()
    assert re.findall(r"::(\S+)", shown) == expected


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

Run = Callable[[str], "subprocess.CompletedProcess[str]"]
ONCE = """
import pathlib, pytest
@pytest.mark.slow
def test_first_time_wrong():
    here = pathlib.Path("been-here")
    been = here.exists()
    here.touch()
    assert been, "a hiccup"
@pytest.mark.slow
def test_right(): pass
"""
ALWAYS = "import pytest\n@pytest.mark.slow\ndef test_wrong(): raise ValueError('always')\n"
LEAVES = """
import subprocess, sys, pytest
@pytest.mark.slow
def test_leaves_one_running():
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    open("left", "w").write(str(started.pid))
    started.returncode = 0  # nobody waits for it
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the slow tier of one test file in a process of its own."""

    def run(text: str) -> "subprocess.CompletedProcess[str]":
        (tmp_path / "tests").mkdir()
        (tmp_path / "tests" / "test_it.py").write_text(text)
        return subprocess.run(
            [sys.executable, "-m", "tests.run_tier", "slow", "--", "-p", "tests.tiers"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_file_that_passes_the_second_time_is_flaky_and_says_why(run: Run) -> None:
    ended = run(ONCE)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "flaky: tests/test_it.py" in ended.stdout
    assert "a hiccup" in ended.stdout
    assert "slow: 2 passed, 0 failed, 0 skipped" in ended.stdout


def test_file_that_fails_twice_fails(run: Run) -> None:
    ended = run(ALWAYS)
    assert ended.returncode == 1
    assert "failed twice: tests/test_it.py" in ended.stdout
    assert "slow: 0 passed, 1 failed, 0 skipped" in ended.stdout


def test_nothing_of_a_file_runs_on_after_it(run: Run, tmp_path: Path) -> None:
    ended = run(LEAVES)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    left = int((tmp_path / "left").read_text())
    assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE
