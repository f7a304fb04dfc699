"""The batch script on one node with a real Ray; only Slurm's own two commands are stood in for."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import pytest

pytestmark = pytest.mark.nightly

REPOSITORY = Path(__file__).resolve().parents[2]
SRUN = '#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n'
ALONE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
"""Among processes of its own: `ray stop`, with which the script ends, ends every Ray that it sees."""


@pytest.fixture
def folder() -> Generator[Path]:
    """A folder for the whole of it, with Slurm's commands in `bin`."""
    folder = Path(tempfile.mkdtemp(prefix="hmtl-slurm-", dir="/tmp"))
    (folder / "bin").mkdir()
    (folder / "venv").mkdir()
    for name, text in {"srun": SRUN, "scontrol": f"#!/bin/sh\necho {socket.gethostname()}\n"}.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_signal_before_the_time_limit_ends_the_run_with_a_checkpoint(folder: Path) -> None:
    if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to mount /proc for processes of its own")
    faces = [sys.executable, "-m", "hmtl_dist", "data", "synth", str(folder / "faces"), "--image-size=32"]
    subprocess.run([*faces, "--num-workers=1", "--samples=96", "--identities=24"], check=True, capture_output=True)
    job = 100_000 + os.getpid() % 9_000
    environment = os.environ | {
        "HOME": str(folder),
        "HMTL_HOME": str(folder / "home"),
        "HMTL_VENV": str(Path(sys.executable).parent.parent),
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NODELIST": socket.gethostname(),
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_SUBMIT_DIR": str(REPOSITORY),
    }
    words = ["train", "demo", f"data.url={folder}/faces", "name=batch", "data.image_size=32", "data.batch_size=16"]
    words += ["data.lanes=2", "model.backbone=test_efficientnet", "tracking.enabled=false", "launch.num_workers=1"]
    words += ["train.epochs=100000", "train.max_steps=100000", "train.report_every_steps=1"]
    log = folder / "log"
    script = ["bash", "cluster/slurm/train.sbatch"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*ALONE, *script, *words], cwd=REPOSITORY, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 240
        while not re.search(r"train \d+/100000", log.read_text()):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        # as Slurm does: to the batch script alone, which has another number in here
        (batch,) = [
            int(status.parent.name)
            for status in Path("/proc").glob("[0-9]*/status")
            if is_batch_script(status.parent, process.pid)
        ]
        os.kill(batch, signal.SIGTERM)
        assert process.wait(timeout=120) == 130, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert re.search(r"stopped at step \d+ of 100000; the same command again goes on", log.read_text())
    assert list((folder / "home" / "runs" / "batch" / "checkpoints").iterdir())
    assert not list(folder.glob(".hmtl-slurm-*")), "the token's folder is left"


def is_batch_script(process: Path, unshare: int) -> bool:
    try:
        parent = int(process.joinpath("stat").read_text().rpartition(")")[2].split()[1])
        return parent == unshare and b"train.sbatch" in process.joinpath("cmdline").read_bytes()
    except OSError:
        return False
