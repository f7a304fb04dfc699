"""A pytest plugin: what "everything ran" means, on this machine.

Tests marked `gpu` are skipped where there is no CUDA device. With `--strict-skips` any other skipped test fails the
session: a check that this machine can run but did not run is not a check that passed.
"""

import functools
from collections.abc import Sequence

import pytest

_NO_CUDA = "no CUDA device"
_unexpected: list[str] = []


@functools.cache
def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--strict-skips`."""
    parser.addoption("--strict-skips", action="store_true", help="fail if a test is skipped that this machine can run")


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Skip `gpu` tests without a device; torch is imported only if there is such a test."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items and not _has_cuda():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason=_NO_CUDA))


def _note(report: pytest.TestReport | pytest.CollectReport, keywords: Sequence[str]) -> None:
    if not report.skipped or hasattr(report, "wasxfail") or ("gpu" in keywords and _NO_CUDA in str(report.longrepr)):
        return
    _unexpected.append(report.nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember an unexpected skip (called in the process that holds the terminal, with xdist too)."""
    _note(report, list(report.keywords))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Remember a module that skipped itself whole."""
    _note(report, [])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session under `--strict-skips` if something was skipped that could have run."""
    if session.config.getoption("--strict-skips") and _unexpected and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name the tests that should not have been skipped."""
    if config.getoption("--strict-skips") and _unexpected:
        terminalreporter.section("skipped although --strict-skips", red=True)
        for nodeid in _unexpected:
            terminalreporter.write_line(nodeid)
