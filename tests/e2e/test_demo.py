"""The demo as a stranger runs it: services, drawn faces, two Ray workers, MLflow."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.nightly


@pytest.mark.timeout(1200)
def test_the_demo_learns_expression_and_gender_of_people_it_never_saw(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "RAY_"))}
    environment = kept | {"HMTL_HOME": str(tmp_path / "home")}

    def hmtl_dist(*arguments: str) -> str:
        command = [sys.executable, "-m", "hmtl_dist", *arguments]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    try:
        said = hmtl_dist("demo")
    finally:
        hmtl_dist("services", "stop")

    accuracy = {task: float(value) for task, value in re.findall(r"(\w+) +│ accuracy +│ ([\d.]+)", said)}
    assert accuracy["expression"] >= 4 / 8
    assert accuracy["gender"] >= 0.85
    assert "demo done in" in said
    assert re.search(r"MLflow +http://127\.0\.0\.1:\d+/#/experiments/\d+/runs/[0-9a-f]{32}", said)
