"""A run's own files go, and nothing else."""

from pathlib import Path

import pytest

from hmtl_dist.data.storage import open_storage
from hmtl_dist.launch.discard import discard
from hmtl_dist.launch.folders import run_folder
from hmtl_dist.launch.record import read_record, write_record
from hmtl_dist.train.base import RunContext
from tests.servers import S3Server
from tests.train.toy import config

OWN = ("checkpoints/step-00000001/manifest.json", "checkpoints/step-00000001/model.safetensors", "adopted.txt")
OTHERS = ("lock", "log.txt", "trials.jsonl", "plots/curve.html", "checkpoints.md")


@pytest.mark.parametrize("place", ["home", "folder", "s3"])
def test_what_a_run_has_left_goes_and_nothing_else(
    place: str, s3_env: S3Server, tmp_path: Path, hmtl_home: Path
) -> None:
    storage = {"home": None, "folder": str(tmp_path / "runs"), "s3": f"{s3_env.bucket()}/runs"}[place]
    tree = config(name="mine", launch={"kind": "local", "storage": storage})
    folder = run_folder(tree)
    for name in ("mine", "mine-2"):
        for key in (*OWN, *OTHERS):
            open_storage(f"{folder.removesuffix('mine')}{name}").write(key, b"{}")
    write_record(tree, RunContext(folder))
    journal = hmtl_home / "runs" / "mine" / "rank-0" / "journal.jsonl"
    journal.parent.mkdir(parents=True, exist_ok=True)
    journal.write_text("")
    (hmtl_home / "runs" / "mine" / "rank-1").mkdir()

    discard(tree)

    assert read_record(folder) is None
    assert {info.key for info in open_storage(folder).list()} == set(OTHERS)
    assert {info.key for info in open_storage(f"{folder}-2").list()} == {*OWN, *OTHERS}
    assert not [path for path in (hmtl_home / "runs" / "mine").glob("*/") if path.name != "plots"]


@pytest.mark.parametrize(("on_s3", "left"), [(False, set[str]()), (True, {"lock"})])
def test_the_lock_of_a_run_on_s3_is_left_to_its_holder_who_renews_it(
    s3_env: S3Server, tmp_path: Path, *, on_s3: bool, left: set[str]
) -> None:
    storage = f"{s3_env.bucket()}/runs" if on_s3 else str(tmp_path)
    tree = config(name="locked", launch={"kind": "local", "storage": storage})
    for key in ("lock", "log.txt", OWN[0]):
        open_storage(run_folder(tree)).write(key, b"{}")
    discard(tree, log=True)
    assert {info.key for info in open_storage(run_folder(tree)).list()} == left


def test_a_run_that_was_never_there_has_left_nothing(tmp_path: Path) -> None:
    discard(config(name="new", launch={"kind": "local", "storage": str(tmp_path / "nowhere")}))
    assert not (tmp_path / "nowhere").exists()
