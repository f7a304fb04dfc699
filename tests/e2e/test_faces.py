"""The shipped recipe for a few hundred real faces, from S3, on two Ray workers."""

import json
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.servers import S3Server

pytestmark = pytest.mark.nightly


def hmtl_dist(*arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "hmtl_dist", *arguments], capture_output=True, text=True, timeout=1800, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def london(s3: S3Server, faces: Path) -> Generator[str]:
    """The real faces in S3, and the environment that leads there."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.env().items():
            patch.setenv(name, value)
        url = f"{s3.bucket()}/london"
        folder = faces / "london"
        labels = ["--labels", str(folder / "labels.csv"), "--label", "expression", "--label", "gender"]
        hmtl_dist("data", "build", "folder", str(folder / "images"), url, *labels, "--group", "subject")
        yield url


def trained(url: str, name: str, *changes: str) -> dict[str, float]:
    said = hmtl_dist(
        "train", "faces_small", f"data.url={url}", "tracking.enabled=false", f"name={name}", *changes, "--json"
    )
    return json.loads(said)["metrics"]


SMALL = ["data.image_size=48", "model.backbone=test_resnet", "optim.learning_rate=0.003", "optim.warmup_epochs=1"]
HERE = ["launch.kind=local", "launch.num_workers=1"]


@pytest.mark.slow
def test_a_small_network_tells_a_smile_after_a_few_epochs(london: str) -> None:
    metrics = trained(london, "few", "train.epochs=10", *SMALL, *HERE)
    assert metrics["eval/expression/accuracy"] >= 0.75  # half of the pictures smile


@pytest.mark.timeout(2400)
def test_expression_and_gender_of_people_it_never_saw(london: str) -> None:
    metrics = trained(london, "real")
    assert metrics["eval/expression/accuracy"] >= 0.85
    assert metrics["eval/gender/accuracy"] >= 0.85
