"""A trained model in Python: `hmtl_dist.load`, and the lines of the README that use it."""

import doctest
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

import hmtl_dist
from hmtl_dist.augment import AugmentConfig
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.errors import UserError
from hmtl_dist.inference.folder import write_model
from hmtl_dist.inference.predictor import Predictor
from hmtl_dist.model.hmtl import HMTLModel, ModelConfig
from hmtl_dist.tasks.base import CLEAN
from hmtl_dist.tasks.classification import ClassificationConfig
from hmtl_dist.tasks.registry import build_tasks
from hmtl_dist.tasks.regression import RegressionConfig

SIZE = 32
CONFIG = ModelConfig(backbone="test_efficientnet")
README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a model in `heavier` and a picture in `photo.jpg`."""
    fields = {"expression": Field(kind="category", classes=("happy", "sad")), "age": Field(kind="number")}
    tasks = build_tasks({"expression": ClassificationConfig(), "age": RegressionConfig()}, fields, {}, {}, SIZE)
    model = HMTLModel(CONFIG, {task.name: task.head_spec() for task in tasks}, dict.fromkeys(fields, (CLEAN,)))
    write_model(
        tmp_path / "heavier",
        model.state_dict(),
        config=CONFIG,
        augment=AugmentConfig(),
        image_size=SIZE,
        tasks=tasks,
    )
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_lines_of_the_readme_say_what_a_picture_shows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (lines,) = [block for block in blocks if "hmtl_dist.load" in block]
    found: dict[str, Any] = {}
    exec(compile(lines, str(README), "exec"), found)  # noqa: S102 - the README's own
    answers = found["answers"]
    assert list(answers) == ["expression.happy", "expression.sad", "age.age"]
    assert answers["expression.happy"] + answers["expression.sad"] == pytest.approx(np.ones(1), abs=1e-6)
    assert "expression.happy" in capsys.readouterr().out


@pytest.mark.parametrize("public", [hmtl_dist.load, Predictor.predict], ids=lambda public: public.__qualname__)
def test_the_examples_of_the_public_functions_are_true(folder: Path, public: Callable[..., Any]) -> None:
    (examples,) = doctest.DocTestFinder(recurse=False).find(public, globs={})
    assert examples.examples
    assert doctest.DocTestRunner().run(examples).failed == 0


def test_a_picture_is_the_same_by_its_path_its_bytes_and_its_pixels(folder: Path) -> None:
    model = hmtl_dist.load(folder / "heavier")
    encoded = (folder / "photo.jpg").read_bytes()
    answers = model.predict([folder / "photo.jpg", encoded, model.decode([encoded])[0]])
    for values in answers.values():
        assert values.shape == (3,)
        assert values == pytest.approx(np.full(3, values[0]), abs=1e-6)


def test_what_is_no_picture_and_what_is_no_model_is_named(folder: Path) -> None:
    model = hmtl_dist.load(folder / "heavier")
    with pytest.raises(UserError, match=r"gone\.jpg: no such file or directory"):
        model.predict([folder / "gone.jpg"])
    (folder / "notes.txt").write_text("no picture")
    with pytest.raises(UserError, match=r"notes\.txt: .*give a JPEG or PNG file"):
        model.predict([folder / "photo.jpg", folder / "notes.txt"])
    with pytest.raises(UserError, match=r"picture 70: .*give uint8"):
        model.predict([*[folder / "photo.jpg"] * 70, np.zeros((3, 3, 3), np.uint8)])
    with pytest.raises(UserError, match="nowhere"):
        hmtl_dist.load("nowhere")


@pytest.mark.parametrize("alone", ["photo.jpg", b"photo", Path("photo.jpg")])
def test_one_picture_alone_is_told_to_be_given_in_a_list(folder: Path, alone: str | bytes | Path) -> None:
    with pytest.raises(UserError, match="give a list of them"):
        hmtl_dist.load(folder / "heavier").predict(cast(Any, alone))


def test_a_path_as_text_is_told_how_to_be_given(folder: Path) -> None:
    with pytest.raises(UserError, match=r"picture 0: 'photo\.jpg' is no file in base64, and a path is a pathlib\.Path"):
        hmtl_dist.load(folder / "heavier").predict(["photo.jpg"])


def test_pictures_are_taken_from_any_iterable_and_none_are_none(folder: Path) -> None:
    model = hmtl_dist.load(folder / "heavier")
    assert [len(values) for values in model.predict(folder.glob("*.jpg")).values()] == [1, 1, 1]
    assert [len(values) for values in model.predict([]).values()] == [0, 0, 0]


def test_a_stored_model_has_one_kind_of_weights_and_a_device_must_be_there(folder: Path) -> None:
    with pytest.raises(UserError, match=r"weights best: .*heavier holds one kind only"):
        hmtl_dist.load(folder / "heavier", weights="best")
    with pytest.raises(UserError, match="device 'toaster' cannot be used"):
        hmtl_dist.load(folder / "heavier", device="toaster")
