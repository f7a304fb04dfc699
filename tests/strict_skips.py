"""A pytest plugin: what "everything ran" means, on this machine.

Tests marked `gpu` are skipped where there is no CUDA device, those on real faces where `HMTL_TEST_FACES` names no
folder, those that fill a small disk where none can be mounted, those that render Kubernetes overlays where there is
no kubectl, that of network namespaces where none can be made. With `--strict-skips` any other skipped test fails the
session: a check that this machine can run but did not run is not a check that passed.
"""

import functools
import os
import shutil
from collections.abc import Sequence

import pytest

FAILED_AND_SKIPPED = 6
"""Exit status of a session that failed, and skipped a test too that this machine can run; pytest's own end at 5."""
_NO_CUDA = "no CUDA device"


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


def pytest_configure(config: pytest.Config) -> None:
    """Watch for skips if asked to."""
    if config.getoption("--strict-skips"):
        config.pluginmanager.register(_StrictSkips())


class _StrictSkips:
    """Remembers unexpected skips; in the process that holds the terminal, with xdist too."""

    def __init__(self) -> None:
        self.unexpected: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report, list(report.keywords))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report, [])

    def _note(self, report: pytest.TestReport | pytest.CollectReport, keywords: Sequence[str]) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = str(report.longrepr)
        no_device = "gpu" in keywords and _NO_CUDA in reason
        no_faces = "HMTL_TEST_FACES" in reason and not os.environ.get("HMTL_TEST_FACES")
        no_mount = "no right to mount" in reason
        no_kubectl = "kubectl is not installed" in reason and shutil.which("kubectl") is None
        no_network = "no right to make a network namespace" in reason
        if not (no_device or no_faces or no_mount or no_kubectl or no_network):
            self.unexpected.append(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self.unexpected:
            return
        if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        elif session.exitstatus == pytest.ExitCode.TESTS_FAILED:  # to run what failed once more would not be enough
            session.exitstatus = FAILED_AND_SKIPPED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unexpected:
            terminalreporter.section("skipped although --strict-skips", red=True)
            for nodeid in self.unexpected:
                terminalreporter.write_line(nodeid)
