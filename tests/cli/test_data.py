"""The commands of `data`, with the answers that scripts read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hmtl_dist.cli.app import app

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run() -> Run:
    def invoke(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["data", *arguments])
        return result.exit_code, result.output

    return invoke


@pytest.fixture
def drawn(tmp_path: Path, run: Run) -> str:
    url = str(tmp_path / "faces")
    options = ("--samples", "60", "--identities", "20", "--image-size", "32", "--num-workers", "1", "--json")
    code, _ = run("synth", url, *options)
    assert code == 0
    return url


def test_info_tells_what_a_set_holds(drawn: str, run: Run) -> None:
    code, answer = run("info", drawn, "--json")
    found = json.loads(answer)
    assert code == 0
    assert {split: header["num_samples"] for split, header in found.items()} == {"train": 48, "val": 12}
    assert list(found["train"]["fields"]) == ["expression", "gender", "age", "yaw", "pitch", "roll"]


def test_verify_ends_with_0_for_a_sound_set(drawn: str, run: Run) -> None:
    code, answer = run("verify", drawn, "--num-workers", "1", "--json")
    assert (code, json.loads(answer)["sound"]) == (0, True)


def test_verify_ends_with_1_for_a_damaged_set(drawn: str, run: Run) -> None:
    tar = Path(drawn, "train/shard-000000.tar")
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    code, answer = run("verify", drawn, "--num-workers", "1", "--json")
    assert code == 1
    assert len(json.loads(answer)["damage"]) == 1


def test_plan_shares_an_epoch_between_ranks(drawn: str, run: Run) -> None:
    code, answer = run("plan", drawn, "--world-size", "2", "--batch-size", "20", "--lanes", "4", "--json")
    found = json.loads(answer)
    assert code == 0
    assert (found["steps_per_epoch"], found["leftover"]) == (2, 8)
    assert [share["samples"] for share in found["ranks"]] == [20, 20]


def test_a_folder_is_built_from_its_table(tmp_path: Path, drawn: str, run: Run) -> None:
    from hmtl_dist.data.synthetic import face_jpeg

    source = tmp_path / "pictures"
    source.mkdir()
    rows = ["file,who,mood"]
    for n in range(10):
        (source / f"{n}.jpg").write_bytes(face_jpeg(0, n, 10, 32))
        rows.append(f"{n}.jpg,p{n // 2},{('calm', 'glad')[n % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join([*rows, "gone.jpg,p9,calm"]))
    options = ("--labels", str(tmp_path / "labels.csv"), "--label", "mood", "--group", "who", "--num-workers", "1")
    code, answer = run("build", "folder", str(source), str(tmp_path / "out"), *options, "--json")
    found = json.loads(answer)
    assert code == 0
    assert sum(header["num_samples"] for header in found["splits"].values()) == 10
    assert found["rejected"] == [["gone.jpg", f"no such file under {source}"]]


def test_index_accepts_shards_without_an_index(drawn: str, run: Run) -> None:
    for table in Path(drawn).rglob("*.npz"):
        table.unlink()
    code, answer = run("index", drawn, "--group", "identity", "--num-workers", "1", "--json")
    assert code == 0
    assert json.loads(answer)["splits"]["train"]["num_samples"] == 48


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (("info", "/nowhere"), "no data set at /nowhere"),
        (("verify", "/nowhere"), "no data set at /nowhere"),
        (("index", "/nowhere"), "no shards"),
        (("synth", "/nowhere/x", "--split", "train=2"), "split 'train=2' is not understood"),
        (("build", "folder", "/nowhere", "/nowhere/x", "--labels", "x.csv"), "no label is named"),
        (("build", "folder", "/nowhere", "/nowhere/x", "--labels", "x.csv", "--label", "a"), "no folder /nowhere"),
    ],
)
def test_a_mistake_is_one_line(run: Run, arguments: tuple[str, ...], cause: str) -> None:
    code, answer = run(*arguments)
    assert code == 2
    assert answer.startswith("error: ")
    assert cause in answer
    assert answer.count("\n") == 1
