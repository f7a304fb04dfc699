"""A rank that hangs says where, and ends instead of waiting for ever."""

import subprocess
import sys
from pathlib import Path

from hmtl_dist.train.watchdog import HUNG

PROGRAM = """
import sys, time
from pathlib import Path
from hmtl_dist.train.watchdog import Watchdog

def hangs_here():
    time.sleep(60)

with Watchdog(1 / 60, Path(sys.argv[1]), lambda said: print(said, flush=True)) as watchdog:
    for _ in watchdog.each(range(8)):  # longer than it has patience, but it moves
        time.sleep(0.25)
    print("moved", flush=True)
    hangs_here()
"""


def test_a_rank_that_hangs_writes_its_stacks_and_ends(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == HUNG, done.stderr
    assert done.stdout.startswith("moved\nno step for 0.0166667 minutes: ")
    assert "hangs_here" in (tmp_path / "stacks.txt").read_text()
