"""A job takes code and recipes along, and nothing that is secret or large."""

from pathlib import Path

import pytest

from hmtl_dist.errors import UserError
from hmtl_dist.launch.package import check_words, pack, packed_name


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small package in a checkout, with what must stay behind in and around it."""
    package = tmp_path / "checkout" / "hmtl_dist"
    for name in ("code.py", "recipes/demo.yaml", "__pycache__/code.pyc", ".cache/large", "../tune_spaces/weights.yaml"):
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    for name in ("constraints.txt", ".git", ".venv", "data.tar", "README.md"):
        (package.parent / name).write_text(name)
    return package


def packed(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_code_recipes_and_spaces_go_along_and_nothing_else(package: Path, tmp_path: Path) -> None:
    pack(tmp_path / "job", {"mine.yaml": "name: mine"}, package)
    assert packed(tmp_path / "job") == {
        "hmtl_dist/code.py",
        "hmtl_dist/recipes/demo.yaml",
        "tune_spaces/weights.yaml",
        "constraints.txt",
        "mine.yaml",
    }


def test_this_package_is_small(tmp_path: Path) -> None:
    assert pack(tmp_path / "job", {}) < 4 << 20
    assert {"hmtl_dist/__main__.py", "hmtl_dist/recipes/demo.yaml", "tune_spaces/joint.yaml", "constraints.txt"} <= (
        packed(tmp_path / "job")
    )


def test_data_left_in_the_package_is_refused(package: Path, tmp_path: Path) -> None:
    with (package / "weights.bin").open("wb") as file:
        file.truncate(33 << 20)
    with pytest.raises(UserError, match=r"allowed 32 MiB; its largest file is hmtl_dist/weights\.bin \(33\.0 MiB\)"):
        pack(tmp_path / "job", {}, package)


def test_credential_in_a_file_is_refused_by_its_line(package: Path, tmp_path: Path) -> None:
    text = "name: mine\ntracking: {uri: 'http://me:hunter22@mlflow'}\n"
    with pytest.raises(UserError, match=r"mine\.yaml, line 2: ") as refused:
        pack(tmp_path / "job", {"mine.yaml": text}, package)
    assert "hunter22" not in str(refused.value)


@pytest.mark.parametrize("word", ["tracking.uri=http://me:hunter22@mlflow:5000", "tracking.tags.token=hunter22"])
def test_credential_on_the_command_line_is_refused_without_being_shown(word: str) -> None:
    with pytest.raises(UserError, match=rf"^{word.partition('=')[0]}: ") as refused:
        check_words(["train", "demo", word])
    assert "hunter22" not in str(refused.value)


def test_ordinary_command_line_passes() -> None:
    check_words(["train", "demo", "data.url=s3://faces/london", "tasks.puzzling.weight=0.5", "--json"])


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("mine.yaml", "mine.yaml"),
        ("recipes/mine.yaml", "recipes/mine.yaml"),
        ("../mine.yaml", "submitted/mine.yaml"),
        ("/home/me/mine.yaml", "submitted/mine.yaml"),
        ("hmtl_dist/recipes/demo.yaml", "submitted/demo.yaml"),
    ],
)
def test_own_file_has_a_place_in_the_job(source: str, name: str) -> None:
    assert packed_name(source) == name
