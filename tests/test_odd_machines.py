"""Machines with another locale, a long TMPDIR: files are UTF-8 there too, and nothing ends in a traceback."""

import ast
import getpass
import os
import pty
import pwd
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest
from PIL import Image

from hmtl_dist import cli
from hmtl_dist.config.io import home
from hmtl_dist.errors import UserError

SOURCES = Path(__file__).parents[1] / "hmtl_dist"
TEXT = {"read_text", "write_text"}


def calls(source: Path) -> Iterator[tuple[int, str]]:
    """The lines of a source that read or write text in whatever encoding the machine has."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        called = ast.unparse(node)
        modes = [word for argument in node.args if isinstance(word := getattr(argument, "value", None), str)]
        opened = (
            name == "open" and (modes or not (node.args or node.keywords)) and not any("b" in mode for mode in modes)
        )
        started = called.startswith("subprocess.") and "text=True" in called
        if opened or started or name in TEXT:
            yield node.lineno, called


def test_every_text_file_is_opened_as_utf8() -> None:
    found = [
        f"{path.relative_to(SOURCES)}:{line}: {called}"
        for path in sorted(SOURCES.rglob("*.py"))
        for line, called in calls(path)
    ]
    assert found == []


def test_the_search_for_text_files_finds_them(tmp_path: Path) -> None:
    source = tmp_path / "one.py"
    source.write_text(
        "path.open()\npath.open('w')\npath.read_text()\nopen('log', 'a')\nsubprocess.run(command, text=True)\n"
        "path.open('rb')\npath.open(encoding='utf-8')\nos.open(path, flags)\nImage.open(file)\n",
        encoding="utf-8",
    )
    assert [line for line, _ in calls(source)] == [1, 2, 3, 4, 5]


ODD_LOCALE = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
"""Python then takes text as ASCII, as it takes it as ISO-8859-1 where that is the machine's."""


def run(*words: str | bytes, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "hmtl_dist", *words]
    return subprocess.run(command, env=os.environ | ODD_LOCALE | environment, capture_output=True, check=False)


def test_a_class_that_the_machine_has_no_letters_for_is_built_in_processes_and_shown(tmp_path: Path) -> None:
    source, out = tmp_path / "y\u00fczler", tmp_path / "set"
    long = tmp_path / ("long" * 25)  # too long for the path of a socket
    source.mkdir()
    long.mkdir()
    (source / "labels.csv").write_text("file,expression\na.png,do\u011fal\nb.png,neutral\n", encoding="utf-8")
    for name in "ab":
        Image.new("RGB", (64, 64), (90, 120, 200)).save(source / f"{name}.png")
    label = "expression:category:neutral,do\u011fal"

    built = run(
        "data", "build", "folder", str(source), str(out), "--labels", "labels.csv", "--label", label,
        "--split", "train=1.0",
        "--num-workers", "2", TMPDIR=str(long),
    )  # fmt: skip
    assert (built.returncode, built.stderr) == (0, b"")
    shown = run("data", "info", str(out))
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert "do\u011fal" in shown.stdout.decode()


def test_an_argument_that_is_no_text_is_one_line() -> None:
    done = run("config", b"demo\xff")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"error: argument 'demo\\udcff' is not UTF-8; give another name\n"


def test_a_terminal_gets_what_it_can_show() -> None:
    leader, follower = pty.openpty()
    program = """
import locale, sys
locale.getencoding = lambda: "iso-8859-1"
locale.setlocale = lambda category: "de_DE"
sys.argv = ["hmtl-dist", "--version"]
from hmtl_dist import cli
cli._run = lambda: print("y\\u00fczler do\\u011fal")
cli.main()
"""
    command = [sys.executable, "-X", "utf8", "-c", program]
    with subprocess.Popen(command, stdout=follower, stderr=subprocess.PIPE) as process:
        os.close(follower)
        shown = b""
        with suppress(OSError):  # nobody writes to it any more
            while piece := os.read(leader, 100):
                shown += piece
        _, errors = process.communicate()
    os.close(leader)
    assert (shown, errors) == (b"y\xfczler do\\u011fal\r\n", b"")


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whom the machine does not know, without a home."""

    def look_up(uid: int) -> NoReturn:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", look_up)
    for name in ("HOME", "USER", "LOGNAME", "HMTL_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("unknown")
def test_a_user_whom_the_machine_does_not_know_is_named_and_at_home_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HMTL_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["hmtl-dist"])
    monkeypatch.setattr(cli, "_run", lambda: None)
    cli.main()
    assert getpass.getuser() == str(os.getuid())
    assert (Path.home(), home()) == (tmp_path, tmp_path)


@pytest.mark.usefixtures("unknown")
def test_nobody_at_home_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^HMTL_HOME: not set, and this user has no home folder; set it to a folder "):
        home()


@pytest.mark.parametrize("letter", [",", "?", "#", "%"])
def test_a_home_that_servers_could_not_be_told_of_is_one_line(letter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMTL_HOME", f"/tmp/a{letter}b c")
    with pytest.raises(UserError, match=re.escape(f"HMTL_HOME: '/tmp/a{letter}b c' has '{letter}' in it, ")):
        home()
