"""Registered versions are found and downloaded, from a server's registry and from a database's."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hmtl_dist.augment import AugmentConfig
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.errors import UserError
from hmtl_dist.inference.folder import MODEL_FILE, write_model
from hmtl_dist.model.hmtl import HMTLModel, ModelConfig
from hmtl_dist.tasks.base import CLEAN
from hmtl_dist.tasks.classification import ClassificationConfig
from hmtl_dist.tasks.registry import build_tasks
from hmtl_dist.tracking.config import TrackingConfig
from hmtl_dist.tracking.logged_model import record_model
from hmtl_dist.tracking.registry import NoSuchVersionError, download_version, find_version, move_alias
from hmtl_dist.tracking.runs import create_run

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stored model's folder."""
    fields = {"mood": Field(kind="category", classes=("calm", "glad"))}
    tasks = build_tasks({"mood": ClassificationConfig()}, fields, {}, {}, 32)
    config = ModelConfig(backbone="test_byobnet")
    net = HMTLModel(config, {task.name: task.head_spec() for task in tasks}, {"mood": (CLEAN,)})
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, net.state_dict(), config=config, augment=AugmentConfig(), image_size=32, tasks=tasks)
    return folder


@pytest.mark.parametrize("store", ["server", "database"])
def test_a_registered_model_is_found_by_alias_and_version_and_downloaded(
    store: str, mlflow_server: str, model: Path, tmp_path: Path
) -> None:
    uri = mlflow_server if store == "server" else f"sqlite:///{tmp_path / 'mlflow.db'}"
    config = TrackingConfig(uri=uri, experiment="registry", register_model="moods", register_alias="candidate")
    record_model(config, create_run(config, name="run") or "", model)

    version = find_version(config, "models:/moods@candidate")
    assert str(version) == "moods version 1"
    got = download_version(config, version, tmp_path / "got")
    assert (got / MODEL_FILE).read_bytes() == (model / MODEL_FILE).read_bytes()

    move_alias(config, version, "champion", {"note": "first"})
    assert find_version(config, "models:/moods@champion") == find_version(config, "models:/moods/1")


def test_the_documented_lines_ask_the_champion(model: Path, tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "inference.md"
    (lines,) = re.findall(r"```python\n(import mlflow.*?)```", page.read_text(), re.DOTALL)
    (tmp_path / "lines.py").write_text(lines + "print(list(table.columns), len(table))\n")
    Image.new("RGB", (40, 40)).save(tmp_path / "photo.jpg")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    config = TrackingConfig(uri=uri, experiment="registry", register_model="faces", register_alias="champion")
    record_model(config, create_run(config, name="run") or "", model)

    ended = subprocess.run(
        [sys.executable, "lines.py"],
        cwd=tmp_path,
        env=os.environ | {"MLFLOW_TRACKING_URI": uri},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.stdout.splitlines()[-1:] == ["['mood.calm', 'mood.glad'] 1"], ended.stderr


@pytest.mark.parametrize("uri", ["models:/moods@nobody", "models:/moods/99", "models:/nothing/1"])
def test_what_is_not_registered_is_told_in_one_line(uri: str, mlflow_server: str) -> None:
    with pytest.raises(NoSuchVersionError, match=rf"^{re.escape(uri)}: MLflow at http.* knows no such version$"):
        find_version(TrackingConfig(uri=mlflow_server), uri)


def test_a_mistyped_address_and_a_server_that_is_away_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = TrackingConfig(uri="http://127.0.0.1:1", timeout_seconds=1)
    with pytest.raises(UserError, match=r"give models:/NAME@ALIAS or models:/NAME/VERSION"):
        find_version(config, "models:/moods")
    with pytest.raises(
        UserError, match=r"^MLflow at http://127\.0\.0\.1:1 does not answer \(connection refused\); start it"
    ):
        find_version(config, "models:/moods/1")
