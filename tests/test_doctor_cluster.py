"""What the nodes of a cluster say becomes one line a check; tests/e2e/test_ray_job.py asks real nodes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hmtl_dist import doctor
from hmtl_dist.data.storage import open_storage
from hmtl_dist.doctor import Check
from hmtl_dist.doctor_cluster import judge, look
from tests.servers import S3Server

VERSIONS = {"python": "3.11.7", **{name: doctor.tested_versions()[name] for name in doctor.TESTED}}


def node(name: str, **different: Any) -> dict[str, Any]:
    """What a node without fault says, and what is otherwise."""
    checks = [Check(kind, "ok", "fine") for kind in ("home", "shared memory", "s3", "mlflow")]
    checks += [Check("gpu", "ok", "none; training runs on the CPU")]
    said = {"node": name, "gpus": 0.0, "clock": 0.01, "error": None, "versions": VERSIONS, "processor": "Xeon"}
    return said | {"checks": [asdict(check) for check in checks]} | different


def with_check(name: str, check: Check) -> dict[str, Any]:
    fine = node(name)
    return fine | {"checks": [asdict(check) if old["name"] == check.name else old for old in fine["checks"]]}


def found(checks: list[Check], name: str) -> list[Check]:
    return [check for check in checks if check.name == name]


def test_nodes_without_fault_are_one_line_a_check() -> None:
    checks = judge([node("a"), node("b")])
    assert [check.status for check in checks] == ["ok"] * len(checks)
    assert len({check.name for check in checks}) == len(checks)
    assert checks[0] == Check("nodes", "ok", "2 of 2 answered")


def test_node_that_does_not_answer_is_named_and_the_others_are_heard() -> None:
    checks = judge([node("a"), {"node": "b", "error": "GetTimeoutError: too late"}])
    assert [check.detail for check in found(checks, "nodes")] == ["1 of 2 answered", "b: GetTimeoutError: too late"]
    assert found(checks, "s3")[0].status == "ok"


def test_no_answer_at_all_is_a_failure() -> None:
    assert [check.status for check in judge([{"node": "b", "error": "gone"}])] == ["fail", "fail"]


def test_node_with_another_version_is_named() -> None:
    (check,) = found(judge([node("a"), node("b", versions=VERSIONS | {"torch": "1.0"})]), "versions")
    assert (check.status, check.detail) == ("fail", f"b: torch 1.0 (not {VERSIONS['torch']})")
    assert check.remedy


def test_all_nodes_of_an_untested_version_are_a_warning() -> None:
    other = VERSIONS | {"timm": "0.1"}
    checks = found(judge([node("a", versions=other), node("b", versions=other)]), "versions")
    assert [check.status for check in checks] == ["warn", "warn"]


def test_machines_of_two_types_are_a_warning() -> None:
    (check,) = found(judge([node("a"), node("b", processor="EPYC")]), "processors")
    assert (check.status, check.detail) == ("warn", "1 x Xeon, 1 x EPYC")


@pytest.mark.parametrize(
    ("ahead", "status", "detail"),
    [(-2.0, "ok", "at most 2.00 s apart"), (20.0, "warn", "b: 20 s ahead of"), (-900.0, "fail", "b: 900 s behind")],
)
def test_clock_that_is_wrong_is_named(ahead: float, status: str, detail: str) -> None:
    (check,) = found(judge([node("a"), node("b", clock=ahead)]), "clocks")
    assert (check.status, check.detail.startswith(detail)) == (status, True)


def test_gpus_that_ray_does_not_count_are_named() -> None:
    two = with_check("b", Check("gpu", "ok", "H100, H100"))
    (check,) = found(judge([node("a"), two | {"gpus": 1.0}]), "gpu")
    assert (check.status, check.detail) == ("fail", "b: Ray counts 1 GPUs, the driver 2")
    (fine,) = found(judge([node("a"), two | {"gpus": 2.0}]), "gpu")
    assert (fine.status, fine.detail) == ("ok", "2 in all; training runs on the GPU")


def test_check_that_fails_on_one_node_is_told_with_its_remedy() -> None:
    denied = with_check("b", Check("s3", "fail", "access denied", "give it a key"))
    assert found(judge([node("a"), denied]), "s3") == [Check("s3", "fail", "b: access denied", "give it a key")]


def test_this_machine_reads_s3_and_says_how_fast(s3_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    url = s3_env.bucket()
    open_storage(url).write("shard", bytes(2 << 20))
    checks = {check["name"]: check for check in look(url)["checks"]}
    assert "MB/s over 2.1 MB" in checks["s3"]["detail"]
    assert checks["mlflow"]["status"] == "warn"


def test_this_machine_without_a_key_says_so(s3_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = s3_env.bucket()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    check = next(check for check in look(url)["checks"] if check["name"] == "s3")
    assert (check["status"], "AWS_SHARED_CREDENTIALS_FILE" in check["remedy"]) == ("fail", True)


def test_missing_folder_is_a_failed_check(tmp_path: Path) -> None:
    check = next(check for check in look(str(tmp_path / "gone"))["checks"] if check["name"] == "s3")
    assert check["status"] in ("warn", "fail")
