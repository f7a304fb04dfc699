"""Continuous integration fails where a test that could have run was skipped."""

from collections.abc import Callable

import pytest

from tests.strict_skips import FAILED_AND_SKIPPED

pytest_plugins = ["pytester"]

Run = Callable[..., int]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs one test file in a pytest session of its own and returns its exit code."""

    def run(test: str, *arguments: str, faces: str = "") -> int:
        monkeypatch.setenv("HMTL_TEST_FACES", faces)
        file = pytester.makepyfile(f"import pytest\n\n{test}\n")
        return int(pytester.runpytest_inprocess("-p", "tests.strict_skips", *arguments, str(file)).ret)

    return run


SKIPPED = "def test_one(): pytest.skip('not today')"
MODULE = "pytest.skip('not today', allow_module_level=True)"
FACES = "def test_one(): pytest.skip('HMTL_TEST_FACES is not set')"
XFAIL = "@pytest.mark.xfail(strict=True)\ndef test_one(): raise ValueError"


@pytest.mark.parametrize("workers", [(), ("-n", "1")])
def test_skipped_test_fails_a_strict_session(run: Run, workers: tuple[str, ...]) -> None:
    assert run(SKIPPED, "--strict-skips", *workers) == pytest.ExitCode.TESTS_FAILED


def test_skipped_test_passes_an_ordinary_session(run: Run) -> None:
    assert run(SKIPPED) == pytest.ExitCode.OK


def test_skipped_module_fails_a_strict_session(run: Run) -> None:
    assert run(MODULE, "--strict-skips") == pytest.ExitCode.TESTS_FAILED


def test_skip_beside_a_failure_has_an_exit_status_of_its_own(run: Run) -> None:
    assert run(SKIPPED + "\ndef test_two(): assert False", "--strict-skips") == FAILED_AND_SKIPPED


def test_expected_failure_is_no_skip(run: Run) -> None:
    assert run(XFAIL, "--strict-skips") == pytest.ExitCode.OK


def test_real_faces_may_be_missing_where_they_are_not_named(run: Run) -> None:
    assert run(FACES, "--strict-skips") == pytest.ExitCode.OK


def test_real_faces_must_be_used_where_they_are_named(run: Run) -> None:
    assert run(FACES, "--strict-skips", faces="somewhere") == pytest.ExitCode.TESTS_FAILED


def test_gpu_test_is_skipped_without_a_device_and_run_with_one(run: Run) -> None:
    import torch

    test = f"@pytest.mark.gpu\ndef test_one(): assert {torch.cuda.is_available()}"
    assert run(test, "--strict-skips") == pytest.ExitCode.OK
