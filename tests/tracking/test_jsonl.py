"""The journal keeps every event, whatever happens around it."""

import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmtl_dist.tracking.jsonl import Event, Journal, read_events


def events_of(path: Path) -> list[Event]:
    return [event for event, _ in read_events(path)]


def test_events_are_read_back_in_the_order_they_were_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "abc")
    journal.params({"seed": "7"})
    journal.metrics({"loss/total": 0.5}, 10)
    journal.dataset("faces", "d1", "s3://b/faces", "train", {"num_samples": 3})
    journal.close("FINISHED")
    kinds = [event["event"] for event in events_of(journal.path)]
    assert kinds == ["start", "params", "metrics", "dataset", "end"]


def test_every_line_is_readable_before_the_run_ends(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.metrics({"loss": 0.25}, 1)
    assert events_of(journal.path)[-1]["values"] == {"loss": 0.25}
    journal.close("FINISHED")


def test_a_line_cut_off_by_a_crash_hurts_neither_itself_nor_the_next(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.metrics({"loss": 1.0}, 1)
    journal.close("FINISHED")
    os.truncate(journal.path, journal.path.stat().st_size - 5)
    resumed = Journal(tmp_path)
    resumed.metrics({"loss": 2.0}, 2)
    resumed.close("FINISHED")
    kinds = [event["event"] for event in events_of(journal.path)]
    assert kinds == ["start", "metrics", "start", "metrics", "end"]


def test_a_line_being_written_is_not_read_yet(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"event": "start", "run_id": null}\n{"event": "metr')
    assert [event["event"] for event in events_of(path)] == ["start"]


def test_reading_goes_on_at_an_offset(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.metrics({"loss": 1.0}, 1)
    *_, (_, offset) = read_events(journal.path)
    journal.metrics({"loss": 2.0}, 2)
    assert [event["step"] for event, _ in read_events(journal.path, offset)] == [2]
    journal.close("FINISHED")


def test_numbers_that_are_none_stay_what_they_are(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.metrics({"loss": float("nan"), "bound": float("inf")}, 1)
    values = events_of(journal.path)[-1]["values"]
    assert np.isnan(values["loss"])
    assert values["bound"] == float("inf")
    journal.close("FINISHED")


def test_a_picture_lies_as_a_file_beside_the_journal(tmp_path: Path) -> None:
    picture = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    journal = Journal(tmp_path)
    journal.picture("puzzling/shuffled", picture, 20)
    journal.close("FINISHED")
    (event,) = [event for event in events_of(journal.path) if event["event"] == "picture"]
    assert np.array_equal(np.asarray(Image.open(event["path"])), picture)


def test_a_full_disk_costs_one_warning_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "journal.jsonl").symlink_to("/dev/full")
    with caplog.at_level(logging.WARNING):
        journal = Journal(tmp_path)
        for step in range(3):
            journal.metrics({"loss": 1.0}, step)
        journal.close("FINISHED")
    assert [record.message.count("No space left") for record in caplog.records] == [1]


def test_closing_twice_ends_the_run_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.close("FAILED")
    journal.close("FINISHED")
    assert [event["status"] for event in events_of(journal.path) if event["event"] == "end"] == ["FAILED"]


def test_a_call_costs_the_loop_little(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    values = {f"loss/{i}": 0.5 for i in range(12)}
    begin = time.perf_counter()
    for step in range(500):
        journal.metrics(values, step)
    assert (time.perf_counter() - begin) / 500 < 1e-3  # measured: 20 to 40 microseconds
    journal.close("FINISHED")


def test_the_journal_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret-0815")
    journal = Journal(tmp_path)
    journal.params({"note": "planted-secret-0815", "mirror": "https://me:planted-word@host/x"})
    journal.tags({"db.password": "anything at all"})
    journal.dataset("faces", "d1", "https://me:planted-word@host/faces", "train", {})
    journal.close("FINISHED")
    text = journal.path.read_text()
    assert not any(secret in text for secret in ("planted-secret-0815", "planted-word", "anything at all"))
    assert all(json.loads(line) for line in text.splitlines())
