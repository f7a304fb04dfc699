"""Runs a tier of tests: `python -m tests.run_tier TIER [PATH...] [-- PYTEST ARGUMENT...]`, TIER quick, slow or nightly.

quick: all files in parallel, in one session
slow, nightly: one file at a time, each in a process of its own, nothing beside it
a file that fails runs once more, whole, in a new process; passing then, it is printed as flaky, with what went wrong
more than MOST_AGAIN files that fail are no accident: none of them is run again

Writes JUnit files to build/tests/TIER/. `python -m tests.run_tier summary` prints counts and the slowest tests of them.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.tiers import TIERS, stacks_under

RESULTS = Path("build/tests")
MOST_AGAIN = 3
SLOWEST = 5
SESSION_SECONDS = {"quick": 2100.0, "slow": 700.0, "nightly": 7200.0}
"""How long one session of a tier may take before it is ended: three times what it takes beside two busy loops."""
TEST_SECONDS = {"quick": 300, "slow": 600, "nightly": 900}
"""How long one test of a tier may take, unless its own marker says otherwise."""
OF_THIS_SESSION = "HMTL_TEST_SESSION"
"""A variable that all processes of a session inherit."""


@dataclass(frozen=True)
class Case:
    """One test as a JUnit file has it."""

    file: str
    name: str
    seconds: float
    outcome: str


@dataclass
class Session:
    """One process of pytest that has ended."""

    code: int
    seconds: float
    output: str
    cases: list[Case] = field(default_factory=list[Case])

    def count(self, outcome: str) -> int:
        """How many tests ended like this."""
        return sum(case.outcome == outcome for case in self.cases)


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for and return the exit code."""
    at = list(arguments).index("--") if "--" in arguments else len(arguments)
    ours, theirs = arguments[:at], arguments[at + 1 :]
    parser = argparse.ArgumentParser(prog="python -m tests.run_tier", description="Run a tier of tests, or sum up.")
    parser.add_argument("tier", choices=[*TIERS, "summary"])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--workers", type=int, default=2, help="test processes of the quick tier")
    given = parser.parse_args(ours)
    if given.tier == "summary":
        for tier in TIERS:
            _summarize(tier)
        return 0
    if missing := [str(path) for path in given.paths if not Path(str(path).partition("::")[0]).exists()]:
        parser.error(f"nothing there: {', '.join(missing)}")
    shutil.rmtree(RESULTS / given.tier, ignore_errors=True)
    (RESULTS / given.tier).mkdir(parents=True)
    if given.tier == "quick":
        return _run_quick(given.paths, given.workers, theirs)
    return _run_one_by_one(given.tier, given.paths, theirs)


def _run_quick(paths: Sequence[Path], workers: int, extra: Sequence[str]) -> int:
    where = [str(path) for path in paths]
    # in the order of the folders: by number of tests, as xdist has it, the files of one long test would come last
    parallel = ["--numprocesses", str(workers), "--dist", "loadfile", "--no-loadscope-reorder"]
    first = _pytest("quick", "all", [*where, *parallel, *extra], show=True)
    failed = sorted({case.file for case in first.cases if case.outcome == "failed"})
    if first.code == pytest.ExitCode.TESTS_FAILED and failed:  # and nothing else was wrong
        return _again("quick", failed, extra)
    return first.code


def _run_one_by_one(tier: str, paths: Sequence[Path], extra: Sequence[str]) -> int:
    failed: list[str] = []
    selections = selections_of(tier, paths)
    if not selections:
        print(f"no test of the {tier} tier there")
        return pytest.ExitCode.NO_TESTS_COLLECTED
    for number, selected in enumerate(selections, 1):
        print(f"[{number}/{len(selections)}] {selected}", end=" ", flush=True)
        ended = _pytest(tier, selected, [selected, *extra])
        print(f"{_counts(ended)} in {ended.seconds:.0f} s", flush=True)
        if ended.code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            print(ended.output, flush=True)
            failed.append(selected)
    code = _again(tier, failed, extra) if failed else 0
    _summarize(tier)
    return code


def _again(tier: str, failed: Sequence[str], extra: Sequence[str]) -> int:
    """Runs files that failed once more, each in a new process, and says which of them are flaky."""
    if len(failed) > MOST_AGAIN:
        print(f"{len(failed)} files failed, more than {MOST_AGAIN}: none is run again")
        return 1
    verdicts: list[str] = []
    broken = False
    for selected in failed:
        print(f"once more, in a new process: {selected}", end=" ", flush=True)
        ended = _pytest(tier, f"{selected}-again", [selected, *extra])
        print(f"{_counts(ended)} in {ended.seconds:.0f} s", flush=True)
        if ended.code == 0:
            verdicts.append(f"flaky: {selected} (what went wrong the first time stands above)")
        else:
            broken = True
            print(ended.output, flush=True)
            verdicts.append(f"failed twice: {selected}")
    print(*verdicts, sep="\n", flush=True)
    return int(broken)


def selections_of(tier: str, paths: Sequence[Path]) -> list[str]:
    """Files that hold tests of a tier, and single tests (`FILE::TEST`) as they were given, each once."""
    found: dict[str, None] = {}
    for path in paths or [Path("tests")]:
        for one in sorted(path.rglob("test_*.py")) if path.is_dir() else [path]:
            file = Path(str(one).partition("::")[0])
            if re.search(rf"\bmark\.{tier}\b", file.read_text(encoding="utf-8")):
                found[str(one)] = None
    return list(found)


def _pytest(tier: str, name: str, arguments: Sequence[str], *, show: bool = False) -> Session:
    """Runs a session of its own, waits for it, and ends whatever it has left running."""
    result = RESULTS / tier / (re.sub(r"[^\w.-]+", ".", name) + ".xml")
    session = f"{os.getpid()}-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "pytest", "--tier", tier, f"--timeout={TEST_SECONDS[tier]}"]
    command += [f"--junitxml={result}", "-o", "junit_family=xunit1"]
    begun = time.monotonic()
    log = result.with_suffix(".txt")
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=None if show else file,
            stderr=None if show else subprocess.STDOUT,
            env=os.environ | {OF_THIS_SESSION: session},
            start_new_session=True,
        )
        try:
            process.wait(timeout=SESSION_SECONDS[tier])
        except subprocess.TimeoutExpired:
            stacks = stacks_under(psutil.Process(process.pid))
            print(f"ended after {SESSION_SECONDS[tier]:.0f} s; stacks of its processes:\n{stacks}", flush=True)
        finally:
            _end(session)
            process.kill()
            process.wait()
    output = log.read_text(encoding="utf-8", errors="replace")
    return Session(process.returncode, time.monotonic() - begun, output, _cases(result))


def _end(session: str) -> None:
    """Ends processes that a session has started, by the variable that they inherit."""
    left: list[psutil.Process] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(OF_THIS_SESSION) == session:
                left.append(process)
    for process in left:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=10)


def _cases(result: Path) -> list[Case]:
    try:
        root = ET.parse(result).getroot()
    except (OSError, ET.ParseError):  # the session broke before it wrote any
        return []
    cases: list[Case] = []
    for node in root.iter("testcase"):
        kinds = {child.tag for child in node}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        file = node.get("file") or node.get("classname", "").replace(".", "/") + ".py"
        cases.append(Case(file, node.get("name", ""), float(node.get("time", "0")), outcome))
    return cases


def _counts(session: Session) -> str:
    parts = [f"{number} {outcome}" for outcome in ("passed", "failed", "skipped") if (number := session.count(outcome))]
    return ", ".join(parts) or f"no test ended (exit code {session.code})"


def _summarize(tier: str) -> None:
    """Prints counts, seconds and the slowest tests of a tier's last run; nothing if there was none."""
    results = sorted((RESULTS / tier).glob("*.xml"))
    again = {path.name.replace("-again", "") for path in results if path.stem.endswith("-again")}
    cases = [case for path in results if path.name not in again for case in _cases(path)]
    if not cases:
        return
    count = {outcome: sum(case.outcome == outcome for case in cases) for outcome in ("passed", "failed", "skipped")}
    print(f"the slowest of the {tier} tier:")
    for case in sorted(cases, key=lambda case: -case.seconds)[:SLOWEST]:
        print(f"  {case.seconds:6.1f} s  {case.file}::{case.name}")
    print(f"{tier}: {count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
