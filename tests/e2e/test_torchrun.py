"""`hmtl-dist train launch=local` under torchrun: several ranks without Ray, one voice."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.e2e.drawn import draw, tree

pytestmark = pytest.mark.nightly


def test_two_ranks_of_torchrun_train_and_the_first_alone_speaks(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tree(draw(str(tmp_path / "set")), launch={"num_workers": 2})))

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = subprocess.run(
        [*torchrun, "-m", "hmtl_dist", "train", str(recipe), "name=torchrun"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("finished at step 12") == 1
    assert ended.stdout.count("balanced_accuracy │") == 1
