"""Whatever a stranger can do wrong is one line that says what to do, and exit code 2."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex

import cv2
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from hmtl_dist.cli.app import app
from hmtl_dist.data.catalog.folder import FolderAdapter
from hmtl_dist.data.dataset.build import BuildSettings, build
from hmtl_dist.data.dataset.labels import parse_labels
from tests.e2e.drawn import draw, tree
from tests.servers import S3Server

NOBODY = "http://127.0.0.1:9"
"""Where no server listens."""

Fails = Callable[..., str]


def fails(*arguments: object) -> str:
    """What a command that must fail says, without `error: `."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), (result.exception, result.stderr)
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    return result.stderr.removeprefix("error: ").rstrip("\n")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return draw(str(tmp_path_factory.mktemp("drawn") / "set"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("HMTL_HOME", str(home))
    return home


@pytest.fixture
def recipe(url: str, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree(url, train={"max_steps": 1})))
    return path


@pytest.fixture
def train_fails(recipe: Path) -> Fails:
    return lambda *overrides: fails("train", recipe, *overrides)


# --- recipes and settings ----------------------------------------------------------------------------------------


def test_unknown_recipe_is_told_the_nearest() -> None:
    assert fails("train", "demmo").startswith("recipe 'demmo': no recipe of this name is shipped; did you mean 'demo'?")


def test_missing_file(tmp_path: Path) -> None:
    assert fails("train", tmp_path / "mine.yaml") == f"recipe '{tmp_path}/mine.yaml': no such file"


def test_a_run_that_is_refused_leaves_no_folder_but_one_that_is_there_stays(train_fails: Fails, home: Path) -> None:
    train_fails("data.url=nowhere", "name=new", "tracking.enabled=false")
    assert not [*home.glob("runs/*")]
    kept = home / "runs" / "old" / "log.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("what was\n")
    train_fails("data.url=nowhere", "name=old", "tracking.enabled=false")
    assert kept.read_text() == "what was\n"


@pytest.mark.nightly
def test_a_finished_run_that_is_started_again_says_so(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    for _ in range(2):
        assert CliRunner().invoke(app, ["train", str(recipe), "name=again", "tracking.enabled=false"]).exit_code == 0
        said.append(capfd.readouterr().out)
    first, second = said
    assert "finished at step 1\n" in first
    assert "next       hmtl-dist predict again PICTURE.jpg\n           hmtl-dist runs show again\n" in first
    assert "goes on from step 1\n" in second
    assert "finished at step 1 before: nothing was left to train\n" in second


def test_figure_that_its_task_does_not_have_is_told_before_anything_is_trained(train_fails: Fails, home: Path) -> None:
    said = train_fails("train.monitor=eval/expression/mae", "tracking.enabled=false")
    assert said.startswith("train.monitor: 'eval/expression/mae' is not one of eval/expression/accuracy, ")
    assert not list(home.glob("runs/*/checkpoints/*"))


def test_data_and_labels_are_looked_at_before_ray_is_started_and_mlflow_is_told(train_fails: Fails, home: Path) -> None:
    on_ray = ("launch.kind=ray", "launch.num_workers=2", "data.lanes=4", "tracking.enabled=true")
    assert train_fails("data.url=/nowhere", *on_ray).startswith("no data set at /nowhere")
    assert train_fails("tasks.expression.label=emotion", *on_ray).startswith("tasks.expression.label: ")
    assert not (home / "mlflow.db").exists()


def test_metric_of_a_search_that_its_task_does_not_have(recipe: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(
        "metric: expression/mae\nmode: min\nbudget: {trials: 2}\n"
        "params: {optim.learning_rate: {type: uniform, low: 0.001, high: 0.01}}\n"
    )
    assert fails("tune", space, recipe).startswith("metric: 'eval/expression/mae' is not one of eval/expression/acc")


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    assert fails("train", f"{tmp_path}/").endswith("is a folder, not a file")


def test_file_that_is_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("tasks: [a,\n  b: }")
    assert fails("train", tmp_path / "bad.yaml").startswith(f"{tmp_path}/bad.yaml, line 2: ")


def test_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(bytes(range(256)))
    assert fails("config", tmp_path / "bad.yaml") == f"{tmp_path}/bad.yaml: not a text file in UTF-8"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batchsize=8", "data.batchsize: unknown key 'batchsize'; did you mean 'batch_size'?"),
        ("train.epochs=many", "train.epochs: given 'many', allowed a whole number"),
        ("train.epochs=0", "train.epochs: given 0, allowed at least 1"),
        ("launch.num_workers=3", "launch.num_workers: 3 does not divide data.lanes=4; "),
        ("tasks.expresion.weight=2", "tasks.expresion.weight: no task 'expresion'; did you mean 'expression'?"),
        (
            "tasks.expression.type=clasification",
            "tasks.expression.type: given 'clasification', allowed classification,",
        ),
        ("train.epochs", "override 'train.epochs': write it as path.to.key=value"),
        (
            "name=my run",
            "name: given 'my run', allowed text that matches ^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$, such as 'my-run'",
        ),
    ],
)
def test_mistyped_setting(train_fails: Fails, override: str, message: str) -> None:
    assert train_fails(override).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tasks.smile.type=classification", "tasks.smile.label: 'smile' is not one of expression, gender (the "),
        ("tasks.gendr.type=classification", "tasks.gendr.label: 'gendr' is not one of expression, gender; did you "),
        ("tasks.type.type=puzzling", "tasks.type: the name may not be "),
        ("data.fields=[expression, yaw, roll]", "tasks.age.labels: 'age' is not one of roll, yaw"),
        ("data.fields=[smile]", "data.fields: no label 'smile' in "),
        ("data.batch_size=160", "data.batch_size=160 is larger than the data set of 72 samples: "),
        ("data.subset=0.0001", "data.subset=0.0001: not one of the 18 groups of "),
        ("data.balance=smile", "data.balance: no category label 'smile'; "),
        ("model.backbone=test_byobnt", "model.backbone: timm has no model 'test_byobnt'; did you mean 'test_byobnet'?"),
        (
            "model.backbone=vit_tiny_patch16_224",
            "model.backbone: timm's 'vit_tiny_patch16_224' cannot read pictures of 32 x 32 pixels (Input ",
        ),
        ("model.options.depth=5", "model.backbone: timm's 'test_byobnet': cannot build it: "),
        ("model.init_from=/nowhere", "model.init_from: /nowhere holds no complete checkpoint; "),
        ("tasks.inpainting.layers=[0, 9]", "tasks.inpainting.layers: 9 is too deep; "),
        (
            "tasks.inpainting.frozen=vit_tiny_patch16_224",
            "tasks.inpainting.frozen: timm's 'vit_tiny_patch16_224' cannot read ",
        ),
        ("engine.sync_batchnorm=true", "engine.sync_batchnorm=true needs GPUs, given cpu; "),
        ("train.groups=[smile]", "train.groups: 'smile' is not one of "),
        ("train.gap_metrics=[expression/mae]", "train.gap_metrics: 'expression/mae' is not one of "),
        ("launch.gpus_per_worker=1", "launch.gpus_per_worker: "),
    ],
)
def test_what_does_not_fit_the_data_or_the_machine_is_refused_before_anything_begins(
    train_fails: Fails, home: Path, override: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for kind in ("ray", "local"):
        assert train_fails(f"launch.kind={kind}", "tracking.enabled=true", override).startswith(message)
    assert {path.name for path in home.rglob("*")} <= {"runs"}


def test_workers_that_one_process_is_not(train_fails: Fails) -> None:
    message = train_fails("launch.num_workers=2")
    assert message.startswith("launch.num_workers: 2 given, but launch.kind=local trains in this one process; ")


@pytest.mark.parametrize(
    ("moods", "message"),
    [
        ({"a.jpg": "sad"}, "tasks.mood.label: 'mood' has one class, sad: there is nothing to tell apart; "),
        ({"a.jpg": "sad", "b.jpg": "glad"}, "tasks.mood: the pictures that are trained on have only 'sad' as 'mood': "),
    ],
)
def test_a_label_of_one_class_teaches_nothing(home: Path, tmp_path: Path, moods: dict[str, str], message: str) -> None:
    table = pictures(tmp_path / "faces", moods | {f"{n}.jpg": "sad" for n in range(16)})
    specs = parse_labels(["mood"])
    adapter = FolderAdapter(str(tmp_path / "faces"), table, file_column="file", specs=specs)
    settings = BuildSettings(dataset="moods", splits={"train": 0.5, "val": 0.5}, seed=1)
    build(adapter, str(tmp_path / "moods"), settings)
    mine = tmp_path / "mine.yaml"
    tasks = {"mood": {"type": "classification"}}
    mine.write_text(yaml.safe_dump(tree(str(tmp_path / "moods"), data={"batch_size": 4}) | {"tasks": tasks}))
    assert fails("train", mine, "tracking.enabled=true", "weighting.type=sum").startswith(message)
    assert {path.name for path in home.rglob("*")} <= {"runs"}


# --- data that cannot be read ------------------------------------------------------------------------------------


def test_data_that_are_not_there(train_fails: Fails) -> None:
    assert train_fails("data.url=/nowhere/set").startswith("no data set at /nowhere/set (dataset.json is missing): ")


def test_shards_without_an_index(train_fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "bare" / "train").mkdir(parents=True)
    (tmp_path / "bare" / "train" / "shard-000000.tar").write_bytes(bytes(1024))
    assert train_fails(f"data.url={tmp_path}/bare").endswith(f"with 'hmtl-dist data index {tmp_path}/bare'")


def test_split_that_is_not_there(train_fails: Fails) -> None:
    assert train_fails("data.eval_split=test").endswith("has no split 'test': its splits are train, val")


@pytest.mark.parametrize("wrong", ["gs://bucket/set", "s3:/bucket/set", "s3://"])
def test_url_of_no_storage(train_fails: Fails, wrong: str) -> None:
    assert train_fails(f"data.url={wrong}").endswith(("or a local folder", "give s3://BUCKET/PREFIX"))


def test_missing_bucket(train_fails: Fails, s3_env: S3Server) -> None:
    message = train_fails("data.url=s3://no-such-bucket/set")
    assert message.startswith(f"bucket 'no-such-bucket' does not exist at {s3_env.endpoint}: ")


def test_bucket_without_a_data_set(train_fails: Fails, s3_env: S3Server) -> None:
    bucket = s3_env.bucket()
    assert train_fails(f"data.url={bucket}/set").startswith(f"no data set at {bucket}/set (dataset.json is missing): ")


def test_no_credentials(train_fails: Fails, s3_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in train_fails("data.url=s3://bucket/set")


def test_wrong_secret_key_is_not_repeated(
    train_fails: Fails, s3_env: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mistyped-secret")
    message = train_fails("data.url=s3://bucket/set")
    assert "refuses the secret key: check AWS_SECRET_ACCESS_KEY" in message
    assert "mistyped-secret" not in message


def test_who_may_only_read_the_data_cannot_write_beside_them(
    train_fails: Fails, s3_env: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = draw(f"s3://open/{token_hex(4)}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_env.reader.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_env.reader.secret_access_key)
    for message in (
        train_fails(f"data.url={url}", f"launch.storage={url}"),
        fails("data", "synth", f"{url}-more", "--samples=8", "--identities=4", "--image-size=32", "--num-workers=1"),
    ):
        assert message.startswith("access to s3://open/")
        assert "is denied" in message
        assert "these credentials lack the right to do this" in message


def test_s3_server_that_is_down(train_fails: Fails, s3_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", NOBODY)
    message = train_fails("data.url=s3://bucket/set")
    assert message.startswith(f"{NOBODY} does not answer ")
    assert message.endswith("start it (`hmtl-dist services start`), or correct AWS_ENDPOINT_URL")


def test_mlflow_server_that_is_down_and_required(train_fails: Fails) -> None:
    message = train_fails("tracking.enabled=true", "tracking.required=true", f"tracking.uri={NOBODY}")
    assert message.startswith(f"MLflow at {NOBODY} does not answer ")
    assert message.endswith(
        "start it (`hmtl-dist services start`) or correct tracking.uri, or set tracking.required=false"
    )


@pytest.mark.nightly
def test_mlflow_server_that_is_down_is_told_at_the_start_and_at_the_end(
    recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    away = ("tracking.enabled=true", f"tracking.uri={NOBODY}", "tracking.close_seconds=1")
    assert CliRunner().invoke(app, ["train", str(recipe), "name=alone", *away]).exit_code == 0
    said = capfd.readouterr()
    first = said.out.splitlines()[1]
    assert first.startswith(f"MLflow at {NOBODY} does not answer (connection refused); start it ")
    assert first.endswith("until then this run is recorded in its journal only")
    assert said.err.endswith(" events wait for MLflow; `hmtl-dist sync alone` delivers them\n")


# --- runs --------------------------------------------------------------------------------------------------------


def test_run_name_used_with_other_settings(recipe: Path, train_fails: Fails) -> None:
    assert CliRunner().invoke(app, ["train", str(recipe), "name=mine"]).exit_code == 0
    message = train_fails("name=mine", "optim.learning_rate=0.5")
    assert message.startswith("run 'mine' was begun with optim.learning_rate=0.001, now it is 0.5; set it back, ")


@pytest.mark.nightly
def test_syncing_what_cannot_be(recipe: Path, home: Path) -> None:
    assert fails("sync", "mine").startswith("mine: no run there; ")
    assert CliRunner().invoke(app, ["train", str(recipe), "name=mine"]).exit_code == 0
    assert fails("sync", "mine").startswith("run 'mine' has tracking.enabled=false; ")
    away = ("tracking.enabled=true", f"tracking.uri={NOBODY}")
    assert fails("sync", "mine", *away).startswith(f"MLflow at {NOBODY} does not answer: ")
    (home / "runs" / "mine" / "rank-0" / "journal.jsonl").unlink()
    assert "journal.jsonl is missing" in fails("sync", "mine", *away)


def test_evaluating_a_run_that_is_not_there(home: Path) -> None:
    assert fails("evaluate", "mine").startswith(f"{home}/runs/mine: no run and no complete checkpoint there; ")


@pytest.mark.nightly
def test_evaluating_on_data_with_other_classes(recipe: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "faces", {"a.jpg": "sad", "b.jpg": "glad"})
    specs = parse_labels(["expression", "gender", "age:number", "yaw:number", "roll:number"])
    (tmp_path / "labels.csv").write_text(
        "file,expression,gender,age,yaw,roll\na.jpg,sad,female,30,0,0\nb.jpg,glad,male,40,0,0\n"
    )
    adapter = FolderAdapter(str(tmp_path / "faces"), tmp_path / "labels.csv", file_column="file", specs=specs)
    build(adapter, str(tmp_path / "other"), BuildSettings(dataset="other", splits={"val": 1.0}))
    assert CliRunner().invoke(app, ["train", str(recipe), "name=mine"]).exit_code == 0
    message = fails("evaluate", "mine", "--data", tmp_path / "other")
    assert message.startswith(
        f"{tmp_path}/other, split val: label 'expression' is one of glad, sad there, the model is trained on "
    )


# --- building ----------------------------------------------------------------------------------------------------


def pictures(folder: Path, labels: dict[str, str], broken: tuple[str, ...] = ()) -> Path:
    """A folder of pictures, some of them none, and beside it a table of their moods, which is returned."""
    folder.mkdir()
    for number, name in enumerate(labels):
        grey = np.full((40, 40, 3), 60 * number % 251, np.uint8)
        (folder / name).write_bytes(b"no picture" if name in broken else cv2.imencode(".jpg", grey)[1].tobytes())
    table = folder.with_suffix(".csv")
    table.write_text("file,mood\n" + "".join(f"{name},{mood}\n" for name, mood in labels.items()))
    return table


def building(tmp_path: Path, table: Path, *more: object) -> list[object]:
    command = ["data", "build", "folder", tmp_path / "faces", tmp_path / "out", "--labels", table, "--label", "mood"]
    return [*command, "--split", "train=1", "--num-workers", "1", *more]


def test_file_that_is_no_picture_is_left_out_and_told(tmp_path: Path) -> None:
    table = pictures(tmp_path / "faces", {"a.jpg": "sad", "b.jpg": "glad"}, broken=("a.jpg",))
    result = CliRunner().invoke(app, [str(word) for word in building(tmp_path, table)])
    assert result.exit_code == 0
    assert "a.jpg: no picture that can be decoded" in result.stdout
    assert (tmp_path / "out" / "rejected.csv").read_text().splitlines()[1:] == ["a.jpg,no picture that can be decoded"]


def test_folder_without_any_picture(tmp_path: Path) -> None:
    table = pictures(tmp_path / "faces", {"a.jpg": "sad", "b.jpg": "glad"}, broken=("a.jpg", "b.jpg"))
    message = fails(*building(tmp_path, table))
    assert message.startswith("no sample of split train is usable (2 left out, ")


def test_labels_file_that_is_not_there(tmp_path: Path) -> None:
    pictures(tmp_path / "faces", {"a.jpg": "sad"})
    message = fails(*building(tmp_path, tmp_path / "none.csv"))
    assert message == f"cannot read {tmp_path}/none.csv: No such file or directory; give the CSV file with --labels"


def test_column_that_is_not_there(tmp_path: Path) -> None:
    table = pictures(tmp_path / "faces", {"a.jpg": "sad"})
    assert fails(*building(tmp_path, table, "--label", "smile")).endswith("its columns are file, mood")


def test_column_of_files_that_is_not_there(tmp_path: Path) -> None:
    table = pictures(tmp_path / "faces", {"a.jpg": "sad"})
    assert "has no column 'path'" in fails(*building(tmp_path, table, "--file-column", "path"))


def test_folder_of_pictures_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,mood\na.jpg,sad\n")
    assert fails(*building(tmp_path, tmp_path / "labels.csv")).startswith(f"no folder {tmp_path}/faces: ")


def test_file_in_place_of_the_folder_to_build(tmp_path: Path) -> None:
    table = pictures(tmp_path / "faces", {"a.jpg": "sad"})
    (tmp_path / "out").write_text("precious")
    assert fails(*building(tmp_path, table)).startswith(f"{tmp_path}/out/")
    assert (tmp_path / "out").read_text() == "precious"


def test_another_data_set_is_not_overwritten(url: str) -> None:
    before = sorted(path.stat().st_mtime_ns for path in Path(url).rglob("*"))
    message = fails("data", "synth", url, "--samples=8", "--identities=4", "--num-workers=1", "--split=train=1")
    assert message.startswith(f"{url} already holds a data set built with ")
    assert sorted(path.stat().st_mtime_ns for path in Path(url).rglob("*")) == before


# --- the home folder ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "evaluate", "services start", "services env", "demo"])
def test_file_in_place_of_the_home_folder(command: str, home: Path, recipe: Path) -> None:
    home.write_text("precious")
    arguments = {"train": [recipe], "evaluate": ["mine"]}.get(command, [])
    assert str(home) in fails(*command.split(), *arguments)
    assert home.read_text() == "precious"


@pytest.mark.nightly
def test_disk_that_is_full_at_the_first_checkpoint(recipe: Path, home: Path) -> None:
    """`ulimit -f` stands in for a small disk: no file may grow beyond 100 kB."""
    command = f'ulimit -f 100; exec "{sys.executable}" -m hmtl_dist train "{recipe}"'
    done = subprocess.run(
        ["bash", "-c", command], env=os.environ | {"HMTL_HOME": str(home)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: ")
    assert "model.safetensors" in done.stderr
    assert "free some" in done.stderr
