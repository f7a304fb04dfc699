"""`runs`: what was trained here, on records, journals and checkpoints as a run writes them."""

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hmtl_dist.cli.app import app
from hmtl_dist.data.storage import open_storage
from hmtl_dist.engine.base import EngineState
from hmtl_dist.engine.checkpoint import save_checkpoint
from hmtl_dist.launch.folders import run_folder
from hmtl_dist.launch.kept import read_run
from hmtl_dist.launch.record import write_record
from hmtl_dist.tracking.base import RunStatus
from hmtl_dist.tracking.config import Recording
from hmtl_dist.tracking.jsonl import Journal
from hmtl_dist.train.base import RunContext
from hmtl_dist.train.saving import checkpoints_folder
from tests.servers import S3Server
from tests.train.toy import config

Said = Callable[..., str]

pytestmark = pytest.mark.usefixtures("own_home")


def trained(
    name: str, steps: int = 20, *, ends: RunStatus | None = "FINISHED", storage: str | None = None, **sections: Any
) -> Path:
    """Leaves what a run of four steps an epoch leaves, and returns its folder here."""
    sections = {"tracking": {"enabled": False}} | sections
    tree = config(name=name, launch={"kind": "local", "storage": storage}, **sections)
    folder = run_folder(tree)
    write_record(tree, RunContext(folder, Recording(run_id=f"id-of-{name}")))
    here = read_run(name).config
    journal = Journal(own(name) / "rank-0", f"id-of-{name}")
    for step in range(1, steps + 1):
        journal.metrics({"train/epoch": step / 4, "train/loss/total": 1 / step}, step)
        if step % 10 == 0:
            journal.metrics({"eval/mood/accuracy": step / 100, "eval/mood/loss": 1.5}, step)
            state = EngineState(model={}, optimizer={}, counters={"global_step": step, "micro_step": step})
            save_checkpoint(checkpoints_folder(folder), step, state, {}, {})
    journal.close(ends or "KILLED")
    if ends is None:  # killed before it could say so
        *lines, _ = journal.path.read_bytes().splitlines(keepends=True)
        journal.path.write_bytes(b"".join(lines))
    assert here.name == name
    return own(name)


def own(name: str) -> Path:
    from hmtl_dist.config.io import home

    return home() / "runs" / name


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Said:
    """Runs `hmtl-dist runs` and returns what it says."""

    def run(*words: str) -> str:
        assert app(["runs", *words], standalone_mode=False) in (None, 0)
        return capfd.readouterr().out

    return run


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Said:
    """Runs `hmtl-dist runs`, which ends with exit code 2, and returns its one line."""

    def run(*words: str) -> str:
        assert app(["runs", *words], standalone_mode=False) == 2
        (line,) = capfd.readouterr().err.splitlines()
        return line.removeprefix("error: ")

    return run


def test_every_run_is_listed_with_how_far_it_came(said: Said) -> None:
    trained("done")
    trained("broken", 10, ends="FAILED")
    trained("halted", 13, ends="KILLED")
    trained("dead", 3, ends=None)
    listed = {run["name"]: run for run in json.loads(said("ls", "--json"))}
    assert {name: (run["status"], run["step"], run["epoch"]) for name, run in listed.items()} == {
        "done": ("finished", 20, 5.0),
        "broken": ("failed", 10, 2.5),
        "halted": ("stopped", 13, 3.25),
        "dead": ("killed", 3, 0.75),
    }
    assert listed["done"]["metrics"] == {"eval/mood/accuracy": 0.2, "eval/mood/loss": 1.5}
    assert listed["dead"]["metrics"] == {}
    size = sum(path.stat().st_size for path in own("done").rglob("*") if path.is_file())
    assert listed["done"]["bytes"] == size
    rows = said("ls").splitlines()
    assert [[*row.split()[:3], row.split()[-3]] for row in rows[1:]] == [
        ["done", "finished", "5/10", "20"],
        ["broken", "failed", "2.5/10", "10"],
        ["halted", "stopped", "3.25/10", "13"],
        ["dead", "killed", "0.75/10", "3"],
    ]
    assert "mood/accuracy 0.2000" in rows[1]


def test_where_nothing_was_trained_it_says_so(said: Said) -> None:
    assert said("ls") == "no runs here yet; `hmtl-dist demo` trains one\n"


def test_a_run_under_way_is_known_by_its_lock(said: Said) -> None:
    folder = trained("busy", 3, ends=None)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert json.loads(said("ls", "--json"))[0]["status"] == "training"


def test_a_run_that_goes_on_after_its_end_has_not_ended(said: Said) -> None:
    folder = trained("again", 8, ends="KILLED")
    with (folder / "rank-0" / "journal.jsonl").open("a") as journal:
        journal.write('{"time": 1000, "event": "start"}\n')
    assert json.loads(said("ls", "--json"))[0]["status"] == "killed"


def test_a_long_journal_is_read_from_its_end(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    trained("long", 2000)
    monkeypatch.setattr("hmtl_dist.launch.kept.TAIL_BYTES", 5000)
    run = json.loads(said("ls", "--json"))[0]
    assert (run["status"], run["step"], run["epoch"]) == ("finished", 2000, 500.0)


def test_a_run_is_shown_with_its_checkpoints_and_how_it_goes_on(said: Said) -> None:
    folder = trained("shown", 13, ends="KILLED", tracking={"uri": "sqlite:////nowhere.db"})
    lines = said("show", "shown").splitlines()
    assert lines[0] == "shown: stopped at step 13, epoch 3.25/10"
    assert f"checkpoint  {folder}/checkpoints/step-00000010" in lines
    assert "MLflow      mlflow ui --backend-store-uri sqlite:////nowhere.db" in lines
    assert lines[-1] == "goes on by  hmtl-dist resume shown"


def test_runs_are_compared_by_what_differs(said: Said, refused: Said) -> None:
    trained("one", 10, seed=1)
    trained("two", 20, seed=2, optim={"learning_rate": 0.01})
    trained("odd", 3)
    found = json.loads(said("compare", "one", "two", "--json"))
    assert found["settings"] == {
        "seed": {"one": "1", "two": "2"},
        "optim.learning_rate": {"one": "0.001", "two": "0.01"},
    }
    assert found["metrics"]["eval/mood/accuracy"] == {"one": 0.1, "two": 0.2}
    table = said("compare", "o*")
    assert ("two" in table, "odd" in table, "mood/accuracy" in table) == (False, True, True)
    assert refused("compare", "one") == "compare: one is one run; give two or more"


@pytest.mark.parametrize("place", ["home", "folder", "s3"])
def test_a_removed_run_is_gone_wherever_it_was(said: Said, place: str, tmp_path: Path, s3_env: S3Server) -> None:
    storage = {"home": None, "folder": str(tmp_path / "elsewhere"), "s3": f"{s3_env.bucket()}/runs"}[place]
    folder = trained("gone", storage=storage)
    (folder / "log.txt").write_text("what was\n")
    trained("gone-not", storage=storage)
    url = read_run("gone").folder
    assert [*open_storage(url).list()]

    said("rm", "gone", "--yes")

    assert not folder.exists()
    assert not [*open_storage(url).list()]
    assert len([*open_storage(read_run("gone-not").folder).list()]) > 3


def test_nothing_is_removed_unasked(refused: Said) -> None:
    folder = trained("kept")
    assert refused("rm", "kept") == "nothing was removed: nobody is there to ask; say --yes"
    assert folder.exists()


def test_a_name_is_that_of_a_run_and_not_of_a_folder_that_is_called_so(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = trained("demo", 10)
    other = tmp_path / "demo"
    shutil.copytree(ours, other)
    monkeypatch.chdir(tmp_path)
    assert said("show", "demo").startswith("demo: finished at step 10, ")
    said("rm", "demo", "--yes")
    assert (ours.exists(), (other / "run.json").exists()) == (False, True)


def test_what_is_no_runs_own_stays(said: Said) -> None:
    folder = trained("sweep")
    (folder / "trials.jsonl").write_text("")
    said("rm", "sweep", "--yes")
    assert [path.name for path in folder.iterdir()] == ["trials.jsonl"]


def test_a_run_that_is_being_trained_is_not_removed(refused: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmtl_dist.launch.lock.PATIENCE_SECONDS", 0.1)
    folder = trained("busy", ends=None)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert refused("rm", "busy", "--yes").startswith("run 'busy' is being trained by ")
    assert (folder / "run.json").exists()


@pytest.mark.parametrize("command", ["show", "compare", "rm", "ls"])
def test_a_name_that_is_none_leads_to_the_nearest(refused: Said, command: str) -> None:
    trained("expression")
    assert refused(command, "expresion") == "expresion: no run of that name here; did you mean 'expression'?"


def test_a_run_of_another_version_is_named_and_left_out(said: Said, capfd: pytest.CaptureFixture[str]) -> None:
    trained("new")
    record = trained("old") / "run.json"
    record.write_text(json.dumps({"config": {"name": "old"}}))
    app(["runs", "ls", "--json"], standalone_mode=False)
    shown = capfd.readouterr()
    assert [run["name"] for run in json.loads(shown.out)] == ["new"]
    assert "old: its record is not of this version" in shown.err
