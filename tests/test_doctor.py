"""The doctor finds what is wrong and says how to mend it."""

import json
import socket
from pathlib import Path

import pytest

from hmtl_dist import doctor
from hmtl_dist.data.storage import S3Storage, open_storage
from hmtl_dist.doctor import Check
from hmtl_dist.doctor_cluster import look
from hmtl_dist.services import ServicesInfo
from tests.servers import S3Server


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_every_check_is_one_line() -> None:
    checks = [Check("python", "ok", "3.11"), Check("shared memory", "warn", "little", "add some")]
    assert doctor.as_text(checks).splitlines() == [
        "ok    python         3.11",
        "warn  shared memory  little; add some",
    ]


def test_json_holds_every_field() -> None:
    assert json.loads(doctor.as_json([Check("python", "fail", "3.9", "use 3.11")])) == [
        {"name": "python", "status": "fail", "detail": "3.9", "remedy": "use 3.11"}
    ]


def test_this_machine_has_what_the_tests_need() -> None:
    checks = {check.name: check for check in doctor.examine()}
    assert {name: check.status for name, check in checks.items() if check.status == "fail"} == {}


def test_tested_set_covers_what_the_design_rests_on() -> None:
    assert set(doctor.TESTED) <= doctor.tested_versions().keys()


def test_package_of_another_version_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "tested_versions", lambda: {"timm": "0.1"})
    check = next(check for check in doctor.examine() if check.name == "packages")
    assert check.status == "warn"
    assert "(tested 0.1)" in check.detail


def test_lack_of_room_fails(tmp_path: Path) -> None:
    assert doctor.disk("home", tmp_path / "not" / "there", fail_gib=1e9, warn_gib=1e9).status == "fail"


def test_little_room_is_a_warning(tmp_path: Path) -> None:
    assert doctor.disk("home", tmp_path, fail_gib=0, warn_gib=1e9).status == "warn"


def test_broken_check_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, str]:
        raise RuntimeError("ill")

    monkeypatch.setattr(doctor, "tested_versions", broken)
    check = next(check for check in doctor.examine() if check.name == "packages")
    assert (check.status, check.detail) == ("fail", "the check broke: RuntimeError: ill")


# --- S3


def test_readable_bucket_is_fine(s3_env: S3Server) -> None:
    url = s3_env.bucket()
    open_storage(url).write("shard", b"1")
    assert doctor.s3(s3_env.env(), None, url).status == "ok"


def test_missing_bucket_fails(s3_env: S3Server) -> None:
    assert doctor.s3(s3_env.env(), None, "s3://no-such-bucket").status == "fail"


def test_endpoint_without_credentials_is_a_warning(s3: S3Server) -> None:
    check = doctor.s3({"AWS_ENDPOINT_URL": s3.endpoint, "AWS_SHARED_CREDENTIALS_FILE": "/none"}, None)
    assert (check.status, check.detail) == ("warn", f"{s3.endpoint} answers; no credentials")


def test_closed_endpoint_fails_with_the_reason(closed_port: int) -> None:
    check = doctor.s3({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{closed_port}"}, None)
    assert (check.status, check.detail) == ("fail", f"http://127.0.0.1:{closed_port}: connection refused")


@pytest.fixture
def services(s3: S3Server) -> ServicesInfo:
    """What `running` says, with the test's server in the place of the local one."""
    info = ServicesInfo(s3.endpoint, "http://127.0.0.1:1", s3.admin.access_key_id, s3.admin.secret_access_key)
    S3Storage(info.bucket_url, s3.access).create_bucket()
    return info


def test_local_services_are_tried_with_their_own_credentials(services: ServicesInfo) -> None:
    assert doctor.s3({}, services).status == "ok"


def test_stale_credentials_for_the_local_services_fail(s3_env: S3Server, services: ServicesInfo) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "of-last-week")
        check = doctor.s3(s3_env.env(), services)
    assert (check.status, check.remedy) == ("fail", 'run: eval "$(hmtl-dist services env)"')


# --- MLflow


def test_tracking_server_that_answers_is_fine(mlflow_server: str) -> None:
    assert doctor.mlflow({"MLFLOW_TRACKING_URI": mlflow_server}, None) == Check(
        "mlflow", "ok", f"{mlflow_server} answers"
    )


def test_tracking_server_that_a_node_reaches_and_that_lets_it_in_is_fine(
    mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    check = next(check for check in look(None)["checks"] if check["name"] == "mlflow")
    assert check["status"] == "ok"


def test_tracking_server_that_is_away_fails(closed_port: int) -> None:
    check = doctor.mlflow({"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{closed_port}"}, None)
    assert check.status == "fail"


def test_folder_as_a_store_of_runs_is_refused() -> None:
    assert doctor.mlflow({"MLFLOW_TRACKING_URI": "./mlruns"}, None).status == "fail"


def test_password_in_a_tracking_address_is_not_shown(closed_port: int) -> None:
    check = doctor.mlflow({"MLFLOW_TRACKING_URI": f"http://me:secret@127.0.0.1:{closed_port}"}, None)
    assert "secret" not in check.detail + check.remedy


# --- Ray


def test_own_ray_needs_no_token() -> None:
    assert doctor.ray({}).status == "ok"


def test_cluster_without_a_stated_authentication_is_a_warning() -> None:
    assert doctor.ray({"RAY_ADDRESS": "10.0.0.1:6379"}).status == "warn"


def test_token_mode_without_a_token_fails(tmp_path: Path) -> None:
    environment = {
        "RAY_ADDRESS": "10.0.0.1:6379",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "none"),
    }
    assert doctor.ray(environment).status == "fail"


def test_token_file_satisfies_token_mode(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    environment = {
        "RAY_ADDRESS": "10.0.0.1:6379",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
    }
    assert doctor.ray(environment).status == "ok"


def test_folder_that_is_not_there_fails(tmp_path: Path) -> None:
    check = doctor.s3({}, None, str(tmp_path / "gone"))
    assert (check.status, check.detail) == ("fail", f"{tmp_path}/gone: no such folder")
