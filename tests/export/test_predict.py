"""Pictures to predictions: from files, folders and S3; what cannot be read is told, and the rest done."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

import hmtl_dist
from hmtl_dist.data.storage import open_storage
from hmtl_dist.errors import UserError
from hmtl_dist.export.folder import open_model
from hmtl_dist.export.pictures import MAX_BYTES, find_pictures, predict_files
from hmtl_dist.inference.info import output_columns
from hmtl_dist.inference.predictor import MAX_BATCH
from hmtl_dist.launch.export import export_model
from hmtl_dist.launch.models import predictor_of
from hmtl_dist.tracking.config import TrackingConfig
from tests.export import trained
from tests.servers import S3Server

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported model of a small run."""
    folder = tmp_path_factory.mktemp("predict")
    trained.train(folder, "tiny")
    return Path(export_model("tiny", form="safetensors", out=folder / "model").folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of more pictures than a batch, with some files that are none."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "below").mkdir()
    noise = np.random.default_rng(0)
    for number in range(MAX_BATCH + 6):
        place = folder / "below" if number % 2 else folder
        pixels = noise.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:03}.{('png', 'jpg')[number % 3 == 0]}")
    (folder / "007.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (folder / "cut.png").write_bytes((folder / "002.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("not by its name")
    return folder


def test_every_picture_of_a_folder_is_answered_as_alone(model: Path, pictures: Path) -> None:
    predictor = open_model(model)
    files, passed_over = find_pictures([str(pictures)])
    answers = list(predict_files(predictor, files))
    assert passed_over == 1
    assert [Path(answer.name).name for answer in answers if answer.error] == ["007.jpg", "cut.png"]
    good = [answer for answer in answers if not answer.error]
    assert len(good) == MAX_BATCH + 6
    for answer in good[:: MAX_BATCH // 2]:
        alone = predictor.predict(predictor.decode([Path(answer.name).read_bytes()]))
        assert answer.values == pytest.approx({name: float(values[0]) for name, values in alone.items()}, abs=1e-5)


def test_a_run_answers_as_its_export(model: Path, pictures: Path) -> None:
    files, _ = find_pictures([str(pictures / "002.png")])
    exported = list(predict_files(open_model(model), files))
    with predictor_of("tiny", TrackingConfig()) as predictor:
        assert list(predict_files(predictor, files)) == exported


def test_a_run_is_loaded_by_its_name_and_leaves_the_callers_random_numbers_alone(model: Path, pictures: Path) -> None:
    torch.manual_seed(5)  # pyright: ignore[reportUnknownMemberType]  # partial in torch
    expected = torch.rand(3)
    torch.manual_seed(5)  # pyright: ignore[reportUnknownMemberType]  # partial in torch
    loaded = hmtl_dist.load("tiny")
    assert torch.equal(torch.rand(3), expected)
    answers, exported = (one.predict([pictures / "002.png"]) for one in (loaded, hmtl_dist.load(model)))
    assert {name: values.tolist() for name, values in answers.items()} == {
        name: values.tolist() for name, values in exported.items()
    }
    with pytest.raises(UserError, match="weights: given 'bset', allowed are last, ema, best"):
        hmtl_dist.load("tiny", weights=cast("Any", "bset"))


def test_pictures_are_read_from_s3(model: Path, pictures: Path, s3_env: S3Server) -> None:
    url = s3_env.bucket()
    storage = open_storage(url)
    for name in ("002.png", "cut.png"):
        storage.write(f"faces/{name}", (pictures / name).read_bytes())
    predictor = open_model(model)
    local = list(predict_files(predictor, find_pictures([str(pictures / "002.png")])[0]))
    folder = list(predict_files(predictor, find_pictures([f"{url}/faces"])[0]))
    assert [bool(answer.error) for answer in folder] == [False, True]
    assert folder[0].values == local[0].values
    (alone,) = predict_files(predictor, find_pictures([f"{url}/faces/002.png"])[0])
    assert alone.values == local[0].values


def test_a_huge_file_is_not_read(model: Path, tmp_path: Path) -> None:
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    (answer,) = predict_files(open_model(model), find_pictures([str(tmp_path)])[0])
    assert answer.error == f"{MAX_BYTES + 1:,} bytes; at most {MAX_BYTES:,} are read"


def test_what_is_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.jpg: no picture there; give a file, a folder or s3"):
        find_pictures([str(tmp_path / "nowhere.jpg")])
    with pytest.raises(UserError, match="no pictures there"):
        find_pictures([str(tmp_path)])


def test_the_command_writes_a_table_json_and_csv_and_says_what_it_could_not_read(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    shutil.copy(pictures / "002.png", tmp_path / "good.png")
    shutil.copy(pictures / "cut.png", tmp_path / "cut.png")

    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hmtl_dist", "predict", str(model), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    told = ask(".")
    assert told.returncode == 1
    assert "pictures: 1; each picture is taken as the face" in told.stdout
    assert "expression" in told.stdout
    assert told.stderr.startswith("warning: ")
    assert "cut.png: " in told.stderr

    answer = json.loads(ask("good.png", "--json", "--csv", "out.csv").stdout)
    assert answer["failed"] == []
    assert sum(answer["pictures"][0]["expression"].values()) == pytest.approx(1)
    with (tmp_path / "out.csv").open(newline="") as file:
        header, row = csv.reader(file)
    assert header == ["file", *output_columns(open_model(model).info), "error"]
    assert float(row[header.index("age.age")]) == pytest.approx(answer["pictures"][0]["age"]["age"])
