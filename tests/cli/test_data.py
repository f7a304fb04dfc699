"""The commands of `data`, with the answers that scripts read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from hmtl_dist.cli.app import app
from hmtl_dist.data.dataset.build import BuildSettings, build
from hmtl_dist.data.drawn.faces import SyntheticAdapter, SyntheticSettings, face_jpeg
from tests.data.catalog.fabricate import ckplus, class_folders

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


def test_plan_tells_what_is_drawn_of_each_set(drawn: str, run: Run) -> None:
    options = ("--world-size", "2", "--batch-size", "8", "--lanes", "4")
    mix = f"data.mix=[{{url: {drawn}, split: val, ratio: 0.5}}]"
    code, answer = run("plan", drawn, *options, "data.folds=4", "data.balance=gender", mix, "--json")
    found = json.loads(answer)
    assert code == 0
    first, second = found["sources"]
    assert (first["samples"], second["samples"], second["split"]) == (48, 12, "val")
    assert abs(first["chosen"] - 36) <= 3
    assert first["draws"] == first["chosen"]
    assert second["draws"] == round(first["draws"] / 2)
    assert found["draws"] == first["draws"] + second["draws"] == found["steps_per_epoch"] * 8 + found["leftover"]
    female, male = found["label_counts"]["gender"].values()
    assert abs(female - male) <= 2
    assert run("plan", drawn, *options, mix)[0] == 0


def test_a_folder_is_built_from_its_table(tmp_path: Path, drawn: str, run: Run) -> None:
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


def test_a_picture_with_different_labels_is_told_by_builds_and_indexing(tmp_path: Path, run: Run) -> None:
    source = tmp_path / "pictures"
    source.mkdir()
    for name, number in (("a", 0), ("b", 1), ("again", 0)):
        (source / f"{name}.jpg").write_bytes(face_jpeg(0, number, 10, 32))
    (tmp_path / "labels.csv").write_text("file,mood\na.jpg,calm\nb.jpg,glad\nagain.jpg,glad\n")
    table = ("--labels", str(tmp_path / "labels.csv"), "--label", "mood", "--split", "train=1", "--num-workers", "1")
    code, answer = run("build", "folder", str(source), str(tmp_path / "one"), *table)
    assert code == 0
    assert "again.jpg: the same picture as a.jpg, which has other labels" in answer
    code, answer = run("build", "folder", str(source), str(tmp_path / "both"), *table, "--keep-duplicates")
    assert code == 0
    assert "pictures that are there twice, with different labels: 1\n" in answer
    assert ": mood calm and glad\n" in answer or ": mood glad and calm\n" in answer
    for out, more in (("one", ()), ("both", ("--keep-duplicates",))):
        assert run("build", "folder", str(source), str(tmp_path / out), *table, *more, "--strict")[0] == 2
    code, answer = run("index", str(tmp_path / "both"), "--num-workers", "1")
    assert code == 0
    assert "pictures that are there twice, with different labels: 1\n" in answer
    assert run("index", str(tmp_path / "both"), "--num-workers", "1", "--strict")[0] == 2


def test_values_that_are_taken_for_none_are_counted_by_builds_and_indexing(tmp_path: Path, run: Run) -> None:
    source, out = tmp_path / "pictures", str(tmp_path / "out")
    source.mkdir()
    rows = ["file,mood,age"]
    for n, values in enumerate(("calm,30", "glad,n/a", "NA,", "calm,41")):
        (source / f"{n}.jpg").write_bytes(face_jpeg(0, n, 10, 32))
        rows.append(f"{n}.jpg,{values}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    labels = ("--label", "mood", "--label", "age:number:years")
    table = ("--labels", str(tmp_path / "labels.csv"), *labels, "--split", "train=1", "--num-workers", "1")
    for command in (("build", "folder", str(source), out, *table), ("index", out, "--num-workers", "1")):
        code, answer = run(*command)
        assert code == 0
        assert "no age: 2 samples\nno mood: 1 samples\n" in answer
        assert json.loads(run(*command, "--json")[1])["unlabelled"] == {"mood": 1, "age": 2}
        assert run(*command, "--strict")[0] == 2


def test_a_folder_a_class_is_built_without_a_table(tmp_path: Path, run: Run) -> None:
    source = class_folders(tmp_path / "src", ("train", "val"))
    code, answer = run("build", "folder", str(source), str(tmp_path / "out"), "--num-workers", "1", "--json")
    found = json.loads(answer)
    assert code == 0
    assert {name: header["num_samples"] for name, header in found["splits"].items()} == {"train": 10, "val": 10}
    assert found["splits"]["train"]["fields"]["expression"]["classes"] == ["calm", "glad"]


def test_drawn_faces_are_a_set_like_any_other(tmp_path: Path, drawn: str, run: Run) -> None:
    adapter = SyntheticAdapter(SyntheticSettings(samples=60, identities=20, image_size=32))
    settings = BuildSettings(dataset="faces", splits={"train": 0.8, "val": 0.2}, shard_samples=250)
    known = build(adapter, str(tmp_path / "direct"), settings).headers
    options = ("--samples", "60", "--identities", "20", "--image-size", "32", "--num-workers", "1", "--json")
    for url in (str(tmp_path / "direct"), drawn):  # the same build, which finds all there
        code, answer = run("build", "synth", url, "--name", "faces", *options)
        assert code == 0
        digests = {name: header["digest"] for name, header in json.loads(answer)["splits"].items()}
        assert digests == {name: header.digest for name, header in known.items()}


def test_every_build_shows_the_options_that_its_set_states(run: Run) -> None:
    code, answer = run("build", "ckplus", "--help")
    assert code == 0
    shown = " ".join(answer.split())
    assert "--neutral" in shown
    assert "--no-neutral" in shown
    assert "Last frames of a sequence" in shown
    assert "--shard-samples" in shown


def test_a_set_of_the_catalogue_is_built_with_its_options(tmp_path: Path, run: Run) -> None:
    source, out = ckplus(tmp_path / "src", subjects=4, sequences=1), tmp_path / "out"
    split = ("--split", "train=0.5,val=0.5", "--num-workers", "1", "--json")
    code, answer = run("build", "ckplus", str(source), str(out), "--frames", "1", "--neutral", *split)
    found = json.loads(answer)
    assert code == 0
    assert {name: header["num_samples"] for name, header in found["splits"].items()} == {"train": 4, "val": 4}
    assert found["splits"]["train"]["group"] == "subject"


def test_the_catalogue_says_labels_licence_and_where_to_ask(run: Run) -> None:
    code, answer = run("catalog", "--json")
    rows = {row["name"]: row for row in json.loads(answer)}
    assert code == 0
    assert rows["affectnet"]["labels"] == ["expression", "valence", "arousal"]
    assert rows["affectnet"]["options"]["expressions"]["default"] == 8
    assert all(
        row["url"].startswith("http") == (row["licence"] not in ("yours", "ours (Apache-2.0)")) for row in rows.values()
    )


def test_the_catalogue_is_a_table_for_people(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("catalog")[0] == 0
    assert {"valence,", "arousal"} <= set(capfd.readouterr().out.split())


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
        (("plan", "x", "--world-size", "1", "--batch-size", "8", "data.fold=1"), "data.fold: given 1, allowed only"),
        (("plan", "x", "--world-size", "1", "--batch-size", "8", "data.folds=3", "data.fold=3"), "allowed 0 to 2"),
        (("plan", "x", "--world-size", "1", "--batch-size", "8", "data.subst=1"), "did you mean 'subset'?"),
        (("synth", "/nowhere/x", "--split", "train=2"), "split 'train=2' is not understood"),
        (("build", "folder", "/nowhere", "/nowhere/x", "--labels", "x.csv"), "no label is named"),
        (("build", "affectnet", "/nowhere", "/nowhere/x"), "/nowhere holds no AffectNet"),
        (("build", "affectnet", "/nowhere", "/nowhere/x", "--margn", "1"), "No such option: --margn"),
        (("build", "affectnet", "/nowhere", "/nowhere/x", "--margin", "9"), "margin: given 9, allowed at most 2"),
        (("build", "affectnet", "/nowhere", "/nowhere/x", "--expressions", "9"), "expressions: given 9, allowed 8"),
        (("build", "afectnet", "/nowhere", "/nowhere/x"), "No such command 'afectnet'"),
        (("build", "folder", "/nowhere", "/nowhere/x", "--labels", "x.csv", "--label", "a"), "no folder /nowhere"),
        (("build", "folder", "/nowhere", "/nowhere/x"), "no folder /nowhere"),
        (("build", "folder", "s3://there/faces", "/nowhere/x"), "a folder a class is read from a local folder"),
    ],
)
def test_a_mistake_is_one_line(run: Run, arguments: tuple[str, ...], cause: str) -> None:
    code, answer = run(*arguments)
    assert code == 2
    assert answer.startswith("error: ")
    assert cause in answer
    assert answer.count("\n") == 1


def test_info_draws_a_contact_sheet(drawn: str, run: Run, tmp_path: Path) -> None:
    code, answer = run("info", drawn, "--sheet", str(tmp_path / "new" / "sheet.png"), "--split", "val")
    assert code == 0
    assert answer.startswith(f"contact sheet of val: {tmp_path}/new/sheet.png\n")
    with Image.open(tmp_path / "new" / "sheet.png") as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        assert picture.width > 1000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sheet", "sheet.png", "--split", "vall"), "has no split 'vall'; did you mean 'val'?"),
        (("--sheet", "sheet.pdf"), "--sheet: sheet.pdf is no PNG file; name one, such as sheet.png"),
        (("--sheet", "/dev/null/sheet.png"), "/dev/null/sheet.png"),
    ],
)
def test_a_contact_sheet_that_cannot_be_is_one_line(
    drawn: str, run: Run, options: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, answer = run("info", drawn, *options)
    assert code == 2
    assert said in answer
    assert not [*tmp_path.glob("sheet.*")]
