"""Our lines reach the terminal, all other output the log."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from hmtl_dist.console import Console
from hmtl_dist.errors import UserError
from hmtl_dist.progress import duration
from tests.terminal import frames

_CHATTY = """
import ctypes, os, subprocess, sys
from pathlib import Path
from hmtl_dist.console import Console
from hmtl_dist.errors import UserError

libc = ctypes.CDLL(None)
with Console() as console:
    print("before")
    with console.capture(Path(sys.argv[1])):
        print("python")
        os.write(1, b"descriptor\\n")
        libc.puts(b"c library")
        subprocess.run(["echo", "child"], check=True)
        print("stderr", file=sys.stderr)
        console.say("ours")
        FAIL
    print("after")
"""


def run(log: Path, fail: str = "") -> subprocess.CompletedProcess[str]:
    program = _CHATTY.replace("FAIL", fail)
    return subprocess.run([sys.executable, "-c", program, str(log)], capture_output=True, text=True, check=False)


def test_only_our_lines_are_printed_during_a_capture(tmp_path: Path) -> None:
    done = run(tmp_path / "run.log")
    assert done.stdout.splitlines() == ["before", "ours", "after"]
    assert done.stderr == ""


def test_log_holds_what_python_c_and_children_wrote(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "run.log"
    run(log)
    assert set(log.read_text().splitlines()) == {"python", "descriptor", "c library", "child", "stderr"}


def test_log_is_continued(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text("yesterday\n")
    run(log)
    assert log.read_text().startswith("yesterday\n")


def test_failure_prints_its_cause_and_the_log(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    done = run(log, "raise RuntimeError('lost a worker\\nand more')")
    assert done.stderr == f"error: RuntimeError: lost a worker\nthe log has more: {log}\n"
    assert done.returncode == 1


def test_failure_leaves_its_traceback_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    run(log, "raise RuntimeError('lost a worker')")
    assert log.read_text().endswith("RuntimeError: lost a worker\n")
    assert "Traceback" in log.read_text()


def test_what_the_user_can_mend_passes_through(tmp_path: Path) -> None:
    done = run(tmp_path / "run.log", "raise UserError('mend it')")
    assert done.stderr.rstrip().endswith("hmtl_dist.errors.UserError: mend it")


def test_plain_progress_prints_first_and_last_between_intervals(capfd: pytest.CaptureFixture[str]) -> None:
    with Console() as console, console.progress("train", 100) as progress:
        for step in (1, 50, 100):
            progress.update(
                step, samples_per_second=1234.5, wait_share=0.034, losses={"total": 0.51234}, eta_seconds=65
            )
    figures = "ETA 1m05s  1,234.5 img/s  wait 3%  total 0.5123"
    assert capfd.readouterr().out.splitlines() == [f"train 1/100 1%  {figures}", f"train 100/100 100%  {figures}"]


def test_plain_progress_says_what_is_waited_for_once_an_interval(capfd: pytest.CaptureFixture[str]) -> None:
    with Console() as console, console.progress("train", 100) as progress:
        progress.update(1)
        progress.wait("s3://faces", 6.2)
        progress.wait("s3://faces", 7.2)
        progress.update(2)
    assert capfd.readouterr().out.splitlines() == ["train 1/100 1%", "waiting for s3://faces 6s", "train 2/100 2%"]


def test_plain_progress_prints_every_update_if_asked(capfd: pytest.CaptureFixture[str]) -> None:
    with Console() as console, console.progress("build", 3, plain_seconds=0) as progress:
        for step in (1, 2, 3):
            progress.update(step)
    assert len(capfd.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize("terminal", [False, True])
def test_a_reader_that_left_costs_its_lines_and_not_the_run(tmp_path: Path, *, terminal: bool) -> None:
    program = """
import sys
from pathlib import Path
from hmtl_dist.console import Console
with Console() as console, console.capture(Path(sys.argv[1])):
    console.say("ready")
    sys.stdin.readline()
    with console.progress("train", 4) as progress:
        for step in range(5):
            progress.update(step, losses={"total": 0.5})
    console.warn("ours")
    print("still there")
"""
    reading, writing = pty.openpty() if terminal else os.pipe()
    command = [sys.executable, "-c", program, str(tmp_path / "log")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=writing, stderr=writing) as process:
        os.close(writing)
        assert os.read(reading, 100).startswith(b"ready")
        os.close(reading)
        process.communicate(b"\n")
    assert process.returncode == 0
    assert (tmp_path / "log").read_text() == "still there\n"


def test_terminal_gets_a_bar_with_the_figures() -> None:
    program = """
from hmtl_dist.console import Console
with Console() as console, console.progress("train", 4) as progress:
    progress.update(4, samples_per_second=12.0, losses={"total": 0.5})
"""
    assert frames(program, 120)[-1].endswith("4/4 100% 12.0 img/s  total 0.5")


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59.4, "59s"), (185, "3m05s"), (7380, "2h03m")])
def test_duration_is_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_secret_in_what_others_print_does_not_stay_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with Console() as console, console.capture(log, lambda line: line.replace("s3cret", "***")):
        os.write(1, b"the key is s3cret\n")
    assert log.read_text() == "the key is ***\n"


@pytest.mark.parametrize("said", [b"", b"what Ray says\n"])
def test_what_is_refused_leaves_a_folder_only_if_its_log_says_something(tmp_path: Path, said: bytes) -> None:
    log = tmp_path / "new" / "log.txt"

    def refused() -> None:
        with Console() as console, console.capture(log):
            os.write(1, said)
            raise UserError("no data")

    with pytest.raises(UserError, match="no data"):
        refused()
    assert log.exists() is bool(said)
    assert log.parent.exists() is bool(said)


def test_line_from_a_signals_handler_is_on_the_error_output_also_while_captured(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Console() as console, console.capture(tmp_path / "log.txt"):
        console.interrupt("stopping")
    assert capfd.readouterr().err == "stopping\n"
    assert (tmp_path / "log.txt").read_text() == ""


def test_name_that_looks_like_an_emoji_stays(capfd: pytest.CaptureFixture[str]) -> None:
    with Console() as console:
        console.say("smile:number:smile:")
    assert capfd.readouterr().out == "smile:number:smile:\n"


TRAIN = """
from hmtl_dist.console import Console
with Console() as console, console.progress("train", 300) as progress:
    losses = {"expression": 2.1, "gender": 0.7265, "puzzling": 1.386, "inpainting": 0.25, "total": 3.1}
    progress.update(30, samples_per_second=48.1, wait_share=0.06, losses=losses, eta_seconds=145)
"""


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (40, "train  30/300  10% ETA 2m25s  48.1 img/s"),
        (60, "train  30/300  10% ETA 2m25s  48.1 img/s  wait 6%"),
        (80, "ETA 2m25s  48.1 img/s  wait 6%  expression 2.1"),
        (120, "ETA 2m25s  48.1 img/s  wait 6%  expression 2.1  gender 0.7265  puzzling 1.386"),
    ],
)
def test_step_share_and_time_left_have_room_at_every_width(columns: int, told: str) -> None:
    last = frames(TRAIN, columns)[-1]
    assert len(last) <= columns
    assert re.match(r"train (━|╸|╺)* *30/300 +10% ETA 2m25s", last)
    assert last.endswith(told)


def test_what_is_waited_for_is_cut_before_how_long() -> None:
    program = """
from hmtl_dist.console import Console
with Console() as console, console.progress("build s3://a-bucket/with/faces", 4) as progress:
    progress.update(1)
    progress.wait("s3://a-bucket-of-a-very-long-name/faces", 12)
"""
    last = frames(program, 80)[-1]
    assert len(last) <= 80
    assert "1/4  25% waiting for …" in last
    assert last.endswith("/faces 12s")


def test_a_part_of_a_line_is_not_broken() -> None:
    program = """
from hmtl_dist.console import Console
with Console() as console:
    console.say_parts("epoch 1:", [f"task{i}/accuracy 0.1234" for i in range(5)])
"""
    assert frames(program, 60) == [
        "epoch 1: task0/accuracy 0.1234  task1/accuracy 0.1234",
        "  task2/accuracy 0.1234  task3/accuracy 0.1234",
        "  task4/accuracy 0.1234",
    ]


def test_plain_progress_tells_the_last_step_once(capfd: pytest.CaptureFixture[str]) -> None:
    with Console() as console, console.progress("train", 3, plain_seconds=0) as progress:
        for step in (1, 3, 3):
            progress.update(step)
    assert capfd.readouterr().out.splitlines() == ["train 1/3 33%", "train 3/3 100%"]


def test_what_is_done_between_two_steps_stands_in_place_of_the_figures() -> None:
    program = """
from hmtl_dist.console import Console
with Console() as console, console.progress("train", 300) as progress:
    progress.update(150, samples_per_second=48.1, losses={"total": 0.5}, eta_seconds=60)
    progress.tell("evaluating 45%  ETA 12s")
"""
    assert frames(program, 80)[-1].endswith("150/300  50% evaluating 45%  ETA 12s")


def test_plain_progress_tells_what_is_done_between_two_steps_once_an_interval(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with Console() as console, console.progress("train", 100) as progress:
        progress.update(1)
        progress.tell("evaluating 45%")
        progress.tell("evaluating 55%")
        progress.update(2)
    assert capfd.readouterr().out.splitlines() == ["train 1/100 1%", "evaluating 45%", "train 2/100 2%"]


TABLE = """
from rich.table import Table
from hmtl_dist.console import Console
table = Table("run", "status", "expression/accuracy", "learning_rate", box=None)
table.add_row("a-run-of-a-name", "finished", "best 0.1234", "0.000625")
with Console() as console:
    console.show(table, keep=2)
"""


def test_a_table_loses_its_last_columns_and_says_so_rather_than_be_cut() -> None:
    assert "".join(frames(TABLE, 80)).split() == [
        *("run", "status", "expression/accuracy", "learning_rate"),
        *("a-run-of-a-name", "finished", "best", "0.1234", "0.000625"),
    ]
    assert frames(TABLE, 44)[-2:] == [
        " a-run-of-a-name  finished  best 0.1234",
        "no room here for 1 more columns, which `--json` shows",
    ]
    assert all(word in "".join(frames(TABLE, 20)).replace(" ", "") for word in ("run", "finished"))


def test_in_a_pipe_no_word_of_a_table_is_broken(capfd: pytest.CaptureFixture[str]) -> None:
    words = [letter * 30 for letter in "abcde"]
    table = Table(*words)
    table.add_row(*words[::-1])
    with Console() as console:
        console.show(table)
    head, row = (re.findall(r"\w+", line) for line in capfd.readouterr().out.splitlines() if "a" in line)
    assert (head, row) == (words, words[::-1])
