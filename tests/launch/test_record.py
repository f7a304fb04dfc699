"""A run goes on by its name, its folder or its URL."""

import json
from pathlib import Path

import pytest

from hmtl_dist.errors import UserError
from hmtl_dist.launch.folders import run_folder
from hmtl_dist.launch.record import RECORD, check_place, load_run, read_record, write_record
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tracking.config import Recording
from hmtl_dist.train.base import RunContext
from tests.servers import S3Server
from tests.train.toy import config


def recorded(name: str, storage: str | None = None) -> RunConfig:
    tree = config(name=name, launch={"kind": "local", "storage": storage})
    write_record(tree, RunContext(run_folder(tree), Recording(run_id="abc")))
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
    assert (found.name, found.launch.storage) == ("elsewhere", str(tmp_path))
    record = read_record(run_folder(found))
    assert record is not None
    assert record.run_id == "abc"


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


def test_the_record_holds_the_configuration_as_it_was_given_and_beside_it_which_run_it_is() -> None:
    tree = config(name="tracked")
    recording = Recording(uri="http://old:5000", run_id="abc")
    write_record(tree, RunContext(run_folder(tree), recording, parent="def", attempt=3))
    assert load_run("tracked") == tree
    record = read_record(run_folder(tree))
    assert record is not None
    assert (record.run_id, record.tracking_uri, record.parent, record.attempt) == ("abc", "http://old:5000", "def", 3)


def test_a_record_of_before_is_read_without_what_is_no_setting_any_more(hmtl_home: Path) -> None:
    tree = recorded("older")
    file = hmtl_home / "runs" / "older" / RECORD
    record = json.loads(file.read_text())
    record["config"]["tracking"]["run_id"] = "abc"
    file.write_text(json.dumps(record))
    assert load_run("older") == tree


@pytest.mark.parametrize("spoiled", ["[]", '{"config": 3}', '{"config": {}, "attempt": "often"}'])
def test_a_record_of_another_form_is_one_line(hmtl_home: Path, spoiled: str) -> None:
    recorded("spoiled")
    (hmtl_home / "runs" / "spoiled" / RECORD).write_text(spoiled)
    with pytest.raises(UserError, match=r"/spoiled: its record is not of this version .*; remove run\.json there"):
        load_run("spoiled")
