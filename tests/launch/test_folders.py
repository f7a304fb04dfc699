from pathlib import Path

import pytest

from hmtl_dist.launch.folders import run_folder, scratch_folder
from tests.launch.drive import config


def test_runs_lie_in_the_home_folder_by_default(hmtl_home: Path) -> None:
    assert run_folder(config()) == f"{hmtl_home}/runs/toy"


@pytest.mark.parametrize("storage", ["s3://bucket/some/prefix", "s3://bucket/some/prefix/"])
def test_runs_lie_in_the_given_bucket(storage: str) -> None:
    assert run_folder(config(storage=storage)) == "s3://bucket/some/prefix/toy"


def test_a_relative_folder_becomes_absolute_for_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_folder(config(storage="runs")) == f"{tmp_path}/runs/toy"


def test_each_rank_has_a_scratch_folder_that_stays(hmtl_home: Path) -> None:
    (scratch_folder(config(), 1) / "journal").touch()
    assert scratch_folder(config(), 0) != scratch_folder(config(), 1)
    assert (scratch_folder(config(), 1) / "journal").exists()
