"""A run goes on by its name, its folder or its URL."""

from pathlib import Path

import pytest

from hmtl_dist.errors import UserError
from hmtl_dist.launch.place import run_folder
from hmtl_dist.launch.record import check_place, load_run, write_record
from hmtl_dist.run_config import RunConfig
from tests.servers import S3Server
from tests.train.toy import config


def recorded(name: str, storage: str | None = None) -> RunConfig:
    tree = config(name=name, launch={"kind": "local", "storage": storage}, tracking={"run_id": "abc"})
    write_record(tree, run_folder(tree), uri_from_environment=False)
    return tree


def test_by_its_name_with_overrides() -> None:
    tree = recorded("by-name")
    assert load_run("by-name") == tree
    assert load_run("by-name", ["launch.max_failures=7"]).launch.max_failures == 7


def test_by_its_name_where_it_is_stored_elsewhere(s3_env: S3Server) -> None:
    tree = recorded("on-s3", f"{s3_env.bucket()}/runs")
    assert load_run("on-s3") == tree
    assert load_run(f"{tree.launch.storage}/on-s3") == tree


def test_a_run_that_was_moved_goes_on_where_it_is(tmp_path: Path) -> None:
    recorded("moved", str(tmp_path / "runs"))
    moved = (tmp_path / "runs" / "moved").rename(tmp_path / "elsewhere")
    found = load_run(str(moved))
    assert (found.name, found.launch.storage, found.tracking.run_id) == ("elsewhere", str(tmp_path), "abc")


def test_a_run_that_is_not_there_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^nowhere: no run there; "):
        load_run("nowhere")


def test_another_run_of_the_name_that_keeps_its_checkpoints_elsewhere_is_refused(tmp_path: Path) -> None:
    tree = recorded("twice")
    check_place(tree, run_folder(tree))
    other = config(name="twice", launch={"kind": "local", "storage": str(tmp_path)})
    with pytest.raises(UserError, match=r"^run 'twice' was begun here with its checkpoints in .*runs/twice, not in "):
        check_place(other, run_folder(other))


def test_a_run_whose_storage_was_moved_is_not_another_one(tmp_path: Path) -> None:
    recorded("carried", str(tmp_path / "old"))
    (tmp_path / "old").rename(tmp_path / "new")
    tree = config(name="carried", launch={"kind": "local", "storage": str(tmp_path / "new")})
    check_place(tree, run_folder(tree))


@pytest.mark.parametrize("from_environment", [True, False])
def test_the_address_of_mlflow_is_the_shells_where_it_was_the_shells(
    from_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = config(name="tracked", tracking={"uri": "http://old:5000", "run_id": "abc"})
    write_record(tree, run_folder(tree), uri_from_environment=from_environment)
    assert load_run("tracked").tracking.uri == "http://old:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://new:5000")
    assert load_run("tracked").tracking.uri == (None if from_environment else "http://old:5000")
