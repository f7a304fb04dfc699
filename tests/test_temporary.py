"""Temporary folders of dead processes are removed, those of living ones and of others are not."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest

from hmtl_dist.temporary import FRESH_SECONDS, temporary_folder

MAKE = """
import sys, time
from hmtl_dist.temporary import temporary_folder
with temporary_folder("test", sys.argv[1]) as folder:
    (folder / "left").write_text("much")
    print(folder, flush=True)
    time.sleep(600)
"""


def old(folder: Path) -> Path:
    before = time.time() - 2 * FRESH_SECONDS
    os.utime(folder, (before, before), follow_symlinks=False)
    return folder


def make_another(parent: Path) -> None:
    with temporary_folder("other", str(parent)):
        pass


def test_it_is_gone_behind_its_block_also_by_an_error(tmp_path: Path) -> None:
    seen: list[Path] = []

    def fail() -> NoReturn:
        with temporary_folder("test", str(tmp_path)) as folder:
            seen.append(folder)
            (folder / "deep").mkdir()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen[0].name.startswith("hmtl_tmp-test-")
    assert not seen[0].exists()


def test_a_killed_process_has_its_folder_until_the_next_one_is_made(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", MAKE, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        old(folder)
        make_another(tmp_path)
        assert (folder / "left").exists()  # it lives
        process.kill()
        process.wait()
        old(folder)
        make_another(tmp_path)
        assert not folder.exists()


def test_what_is_fresh_or_called_otherwise_stays(tmp_path: Path) -> None:
    (tmp_path / "hmtl_tmp-test-fresh").mkdir()
    old_ones = [tmp_path / "hmtl_ray_logs-abc", tmp_path / "hmtl-test-abc"]
    for folder in old_ones:
        folder.mkdir()
        old(folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = tmp_path / "hmtl_tmp-test-link"
    link.symlink_to(elsewhere)
    for one in (elsewhere, link):
        old(one)
    make_another(tmp_path)
    assert elsewhere.exists()
    assert (tmp_path / "hmtl_tmp-test-fresh").exists()
    assert all(folder.exists() for folder in old_ones)
