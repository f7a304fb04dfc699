"""The command line as a person meets it."""

import errno
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import typer
from typer.testing import CliRunner

from hmtl_dist import __version__
from hmtl_dist.cli.app import Commands, app
from hmtl_dist.data.storage import waits
from hmtl_dist.errors import UserError

HEAVY = ("boto3", "deepspeed", "mlflow", "numpy", "ray", "timm", "torch", "webdataset")


@pytest.fixture
def run() -> Callable[..., tuple[int, str, str]]:
    def invoke(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, arguments)
        return result.exit_code, result.stdout, result.stderr

    return invoke


Run = Callable[..., tuple[int, str, str]]


def raising(error: BaseException) -> typer.Typer:
    """A command line whose one command fails."""
    failing = typer.Typer(cls=Commands, pretty_exceptions_enable=False)

    @failing.command()
    def fail() -> NoReturn:
        raise error

    @failing.command()
    def other() -> None: ...

    assert callable(fail)
    assert callable(other)
    return failing


def test_module_runs_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "hmtl_dist", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"hmtl-dist {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom hmtl_dist.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('loaded:', *(name for name in {HEAVY} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded:"


@pytest.mark.parametrize(("missing", "words"), [("typer", ["--version"]), ("torch", ["config", "demo"])])
def test_package_that_is_not_installed_is_one_line(missing: str, words: list[str]) -> None:
    program = f"import sys\nsys.modules[{missing!r}] = None\nfrom hmtl_dist.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: the package '{missing}' is not installed for ")


def test_mistake_of_the_user_is_one_line_and_exit_code_2() -> None:
    result = CliRunner().invoke(raising(UserError("no such thing;\nname another")), ["fail"])
    assert (result.exit_code, result.stderr) == (2, "error: no such thing; name another\n")


def test_interruption_is_exit_code_130() -> None:
    assert CliRunner().invoke(raising(KeyboardInterrupt()), ["fail"]).exit_code == 130


def test_full_disk_is_one_line_and_exit_code_2() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/full/file")
    result = CliRunner().invoke(raising(full), ["fail"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: /full/file: no space is left on the device; ")
    assert result.stderr.count("\n") == 1


def test_fault_of_the_program_is_not_hidden() -> None:
    assert isinstance(CliRunner().invoke(raising(ValueError("bug")), ["fail"]).exception, ValueError)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "error: No such command 'trian'. Did you mean 'train'?; see `hmtl-dist --help`"),
        (["--bogus"], "error: No such option: --bogus; see `hmtl-dist --help`"),
        (["data", "bulid"], "error: No such command 'bulid'. Did you mean 'build'?; see `hmtl-dist data --help`"),
        (["train"], "error: Missing argument 'recipe'; see `hmtl-dist train --help`"),
        (["export", "x", "--format", "onx"], "error: Invalid value for '--format': 'onx' is not one of 'safetensors'"),
        (["reproduce", "paper", "--jobs", "0"], "error: Invalid value for '--jobs': "),
    ],
)
def test_mistyped_command_line_is_one_line_and_exit_code_2(words: list[str], said: str) -> None:
    result = CliRunner().invoke(app, words, prog_name="hmtl-dist")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(said)
    assert result.stderr.count("\n") == 1


def test_command_without_its_own_command_shows_the_help(run: Run) -> None:
    code, out, err = run("data")
    assert code == 2
    assert "verify" in out + err


def test_shipped_spaces_are_listed_with_their_purpose(run: Run) -> None:
    code, out, _ = run("spaces", "ls", "--json")
    assert code == 0
    assert json.loads(out)["task_weights"].startswith("How much each pretext task counts")


def test_shipped_space_is_printed(run: Run) -> None:
    assert "tasks.puzzling.weight" in run("spaces", "cat", "task_weights")[1]


def test_shipped_space_is_copied_into_a_folder(run: Run, tmp_path: Path) -> None:
    assert run("spaces", "cp", "task_weights", str(tmp_path)) == (0, f"{tmp_path}/task_weights.yaml\n", "")
    assert (tmp_path / "task_weights.yaml").read_text() == run("spaces", "cat", "task_weights")[1]


def test_copy_that_fails_leaves_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hmtl_dist.data.storage.local.os.fsync", full)
    code, _, err = run("spaces", "cp", "task_weights", str(tmp_path / "mine.yaml"))
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert f"no space is left for {tmp_path}/mine.yaml" in err


def test_copy_never_overwrites(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("mine")
    code, _, err = run("spaces", "cp", "task_weights", str(tmp_path / "mine.yaml"))
    assert (code, (tmp_path / "mine.yaml").read_text()) == (2, "mine")
    assert "exists already" in err


def test_misspelt_recipe_is_explained(run: Run) -> None:
    code, _, err = run("recipes", "cat", "no_such_recipe")
    assert code == 2
    assert err.startswith("error: recipe 'no_such_recipe': no recipe of this name is shipped;")


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ("age=young", "--group: given 'age=young', allowed LABEL or LABEL=20,40,60"),
        ("age=40,20", "--group: given 'age=40,20', the ends of the groups must ascend"),
    ],
)
def test_groups_that_are_not_understood_are_refused(run: Run, group: str, said: str) -> None:
    code, _, errors = run("evaluate", "nowhere", "--group", group)
    assert (code, errors) == (2, f"error: {said}\n")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_evaluation_says_what_it_waits_for_and_its_json_stays_json(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from hmtl_dist.train.evaluate import Evaluation

    def wait(*_: object, **__: object) -> tuple[Evaluation, str]:
        with waits.waiting_for("s3://faces"):
            time.sleep(0.3)
        return Evaluation({"eval/mood/accuracy": 0.5}, num_samples=3), "step-00000001"

    monkeypatch.setattr(waits, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(waits, "WORTH_TELLING_SECONDS", 0.05)
    monkeypatch.setattr("hmtl_dist.launch.evaluate.evaluate_run", wait)

    app(["evaluate", "run", *options], standalone_mode=False)

    said = capfd.readouterr().out
    assert ("waiting for s3://faces" in said) == (not options)
    if options:
        assert json.loads(said)["metrics"] == {"eval/mood/accuracy": 0.5}


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("hmtl-dist resu", ["resume"]),
        ("hmtl-dist runs s", ["show"]),
        ("hmtl-dist train dem", ["demo"]),
        ("hmtl-dist resume old", ["older", "oldest"]),
        ("hmtl-dist runs rm youn", ["younger"]),
    ],
)
def test_a_shell_completes_commands_recipes_and_runs(
    words: str, completed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("older", "oldest", "younger"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    asked = {"_HMTL_DIST_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    for name, value in (asked | {"HMTL_HOME": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    program = "import sys; sys.argv[0] = 'hmtl-dist'; from hmtl_dist.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (completed, "")


def test_help_is_also_h(run: Run) -> None:
    assert run("train", "-h") == run("train", "--help")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("train", "demo", "--epochs", "3"),
            "--epochs; a setting is given without dashes, as train.epochs=VALUE; see ",
        ),
        (("resume", "x", "--num-workers=2"), "as data.num_workers=VALUE or launch.num_workers=VALUE; see "),
        (("runs", "show", "--epochs"), "No such option: --epochs; see "),
    ],
)
def test_a_setting_that_is_taken_for_an_option(run: Run, words: tuple[str, ...], said: str) -> None:
    code, _, errors = run(*words)
    assert (code, errors.count("\n")) == (2, 1)
    assert said in errors
