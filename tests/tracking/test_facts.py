"""What a run's record says of its code."""

import subprocess
from pathlib import Path

import torch

from hmtl_dist.tracking.facts import code_tags, versions


def checkout(folder: Path) -> str:
    author = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    (folder / "file").write_text("one")
    for args in (("init", "-q"), ("add", "file"), (*author, "commit", "-q", "-m", "one")):
        subprocess.run(("git", "-C", str(folder), *args), check=True)
    command = ("git", "-C", str(folder), "rev-parse", "HEAD")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_clean_checkout_is_named_by_its_commit(tmp_path: Path) -> None:
    commit = checkout(tmp_path)
    assert code_tags(tmp_path) == {"mlflow.source.git.commit": commit, "git.dirty": "false"}


def test_a_changed_checkout_is_called_dirty(tmp_path: Path) -> None:
    checkout(tmp_path)
    (tmp_path / "file").write_text("two")
    assert code_tags(tmp_path)["git.dirty"] == "true"


def test_an_installed_package_has_no_commit(tmp_path: Path) -> None:
    assert code_tags(tmp_path) == {}


def test_versions_are_those_that_run() -> None:
    assert versions()["version.torch"].partition("+")[0] == torch.__version__.partition("+")[0]
