"""The shipped recipe for a few hundred real faces, from S3, on two Ray workers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import S3Server

pytestmark = pytest.mark.slow


def hmtl_dist(*arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "hmtl_dist", *arguments], capture_output=True, text=True, timeout=1800, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.timeout(2400)
def test_expression_and_gender_of_people_it_never_saw(s3_env: S3Server, faces: Path) -> None:
    url = f"{s3_env.bucket()}/london"
    folder = faces / "london"
    labels = ["--labels", str(folder / "labels.csv"), "--label", "expression", "--label", "gender"]
    hmtl_dist("data", "build", "folder", str(folder / "images"), url, *labels, "--group", "subject")

    said = hmtl_dist("train", "faces_small", f"data.url={url}", "tracking.enabled=false", "name=real", "--json")

    metrics = json.loads(said)["metrics"]
    assert metrics["eval/expression/accuracy"] >= 0.85
    assert metrics["eval/gender/accuracy"] >= 0.85
