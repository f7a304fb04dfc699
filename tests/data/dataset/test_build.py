"""Building data sets: people on one side, bad samples left out, interrupted builds that go on."""

import csv
import io
import json
import os
import shutil
import struct
import threading
import time
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hmtl_dist.data.catalog.folder import FolderAdapter
from hmtl_dist.data.dataset.adapter import Adapter, Box, Rejected, RejectedError, SampleRef
from hmtl_dist.data.dataset.build import BuildReport, BuildSettings, build
from hmtl_dist.data.dataset.index import open_index
from hmtl_dist.data.dataset.labels import parse_labels
from hmtl_dist.data.dataset.pictures import cut_square
from hmtl_dist.data.dataset.pool import run_tasks
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.data.dataset.split import assign_splits, parse_split
from hmtl_dist.data.decode import decode
from hmtl_dist.data.storage import open_storage
from hmtl_dist.data.storage.waits import longest_wait, waiting_for
from hmtl_dist.errors import UserError
from tests.data.stream.streaming import jpeg
from tests.servers import S3Server

SETTINGS = BuildSettings(dataset="people", splits={"train": 0.8, "val": 0.2}, shard_samples=8)
PEOPLE = 10
ROWS = 40


def write_folder(folder: Path, extra: tuple[tuple[str, ...], ...] = ()) -> FolderAdapter:
    """Forty pictures of ten people, who are sorted by name as such tables often are."""
    source = folder / "src"
    source.mkdir(exist_ok=True)
    rows: list[tuple[str, ...]] = []
    for n in range(ROWS):
        (source / f"{n}.jpg").write_bytes(jpeg(n, 24))
        rows.append((f"{n}.jpg", f"p{n * PEOPLE // ROWS}", ("glad", "calm")[n % 2], str(20 + n)))
    return adapter_of(source, (*rows, *extra))


def adapter_of(source: Path, rows: tuple[tuple[str, ...], ...], mood: str = "mood:category:calm,glad") -> FolderAdapter:
    source.mkdir(exist_ok=True)
    table = source.parent / "labels.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("file", "who", "mood", "age"), *rows])
    return FolderAdapter(
        str(source), table, file_column="file", specs=parse_labels([mood, "age:number:years"]), group="who"
    )


def digests(report: BuildReport) -> dict[str, str]:
    return {split: header.digest for split, header in report.headers.items()}


def pictures_of(url: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for split in ("train", "val"):
        index = open_index(url, split)
        for shard in range(len(index)):
            table = index.samples(shard)
            data = index.storage.read(index.names[shard])
            for key, start, length in zip(table.key, table.offset, table.length, strict=True):
                found[str(key).partition("-")[2]] = data[start : start + length]
    return found


def reasons(report: BuildReport) -> dict[str, str]:
    return {row.name: row.reason for row in report.rejected}


def test_every_picture_is_stored_as_it_is(tmp_path: Path) -> None:
    build(write_folder(tmp_path), str(tmp_path / "out"), SETTINGS)
    assert pictures_of(str(tmp_path / "out")) == {str(n): jpeg(n, 24) for n in range(ROWS)}


def test_a_person_is_on_one_side_only(tmp_path: Path) -> None:
    build(write_folder(tmp_path), str(tmp_path / "out"), SETTINGS)
    sides: list[set[str]] = []
    for split in ("train", "val"):
        index = open_index(str(tmp_path / "out"), split)
        groups = [index.samples(shard).group for shard in range(len(index))]
        sides.append({str(one) for group in groups if group is not None for one in group})
    assert sides[0].isdisjoint(sides[1])
    assert sides[0] | sides[1] == {f"p{n}" for n in range(PEOPLE)}


def test_labels_follow_their_pictures(tmp_path: Path) -> None:
    build(write_folder(tmp_path), str(tmp_path / "out"), SETTINGS)
    index = open_index(str(tmp_path / "out"), "val")
    table = index.samples(0)
    numbers = np.array([int(str(key).partition("-")[2]) for key in table.key])
    np.testing.assert_array_equal(table.labels["age"], 20.0 + numbers)
    np.testing.assert_array_equal(table.labels["mood"], 1 - numbers % 2)


def test_shards_mix_what_the_table_sorts(tmp_path: Path) -> None:
    build(write_folder(tmp_path), str(tmp_path / "out"), SETTINGS)
    group = open_index(str(tmp_path / "out"), "train").samples(0).group
    assert group is not None
    assert len(set(group.tolist())) > 3


def test_two_processes_write_the_same_bytes_as_one(tmp_path: Path) -> None:
    adapter = write_folder(tmp_path)
    one = build(adapter, str(tmp_path / "one"), SETTINGS)
    two = build(adapter, str(tmp_path / "two"), SETTINGS, num_workers=2)
    assert digests(one) == digests(two)


def test_another_seed_moves_people(tmp_path: Path) -> None:
    adapter = write_folder(tmp_path)
    one = build(adapter, str(tmp_path / "one"), SETTINGS)
    other = build(adapter, str(tmp_path / "other"), SETTINGS.model_copy(update={"seed": 1}))
    assert digests(one) != digests(other)


class _StopError(Exception):
    pass


def stop_after_first_shard(done: int, total: int) -> None:
    if done:
        raise _StopError


def test_an_interrupted_build_is_not_yet_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(_StopError):
        build(write_folder(tmp_path), str(tmp_path / "out"), SETTINGS, on_progress=stop_after_first_shard)
    with pytest.raises(UserError, match="no data set at"):
        open_index(str(tmp_path / "out"), "train")


def test_a_second_call_keeps_finished_shards_and_ends_the_same(tmp_path: Path) -> None:
    adapter = write_folder(tmp_path)
    with pytest.raises(_StopError):
        build(adapter, str(tmp_path / "out"), SETTINGS, on_progress=stop_after_first_shard)
    resumed = build(adapter, str(tmp_path / "out"), SETTINGS)
    whole = build(adapter, str(tmp_path / "whole"), SETTINGS)
    assert resumed.kept_shards == 1
    assert digests(resumed) == digests(whole)


def test_a_cut_shard_is_written_again(tmp_path: Path) -> None:
    adapter = write_folder(tmp_path)
    before = build(adapter, str(tmp_path / "out"), SETTINGS)
    tar = tmp_path / "out/train/shard-000000.tar"
    tar.write_bytes(tar.read_bytes()[:1000])
    after = build(adapter, str(tmp_path / "out"), SETTINGS)
    assert after.kept_shards == sum(header.num_shards for header in before.headers.values()) - 1
    assert digests(after) == digests(before)


def test_other_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    adapter = write_folder(tmp_path)
    build(adapter, str(tmp_path / "out"), SETTINGS)
    with pytest.raises(UserError, match="built with seed 0 instead of 3"):
        build(adapter, str(tmp_path / "out"), SETTINGS.model_copy(update={"seed": 3}))


def test_other_rows_are_refused(tmp_path: Path) -> None:
    build(write_folder(tmp_path), str(tmp_path / "out"), SETTINGS)
    other = write_folder(tmp_path, (("x.jpg", "p0", "calm", "3"),))
    (tmp_path / "src/x.jpg").write_bytes(jpeg(ROWS, 24))
    with pytest.raises(UserError, match="built from other samples or labels"):
        build(other, str(tmp_path / "out"), SETTINGS)


def test_overwrite_leaves_nothing_of_the_old_set(tmp_path: Path) -> None:
    adapter = write_folder(tmp_path)
    fewer = SETTINGS.model_copy(update={"shard_samples": 20})
    build(adapter, str(tmp_path / "out"), SETTINGS)
    build(adapter, str(tmp_path / "out"), fewer, overwrite=True)
    build(adapter, str(tmp_path / "fresh"), fewer)
    names = [
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        for folder in (tmp_path / "out", tmp_path / "fresh")
    ]
    assert names[0] == names[1]


def test_a_folder_with_something_else_is_not_touched(tmp_path: Path) -> None:
    adapter = write_folder(tmp_path)
    with pytest.raises(UserError, match="already holds something else"):
        build(adapter, str(tmp_path / "src"), SETTINGS)


def bomb() -> bytes:
    """A JPEG of a few bytes that claims to be large."""
    data = bytearray(jpeg(1, 24))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    return bytes(data)


BAD = {
    "missing.jpg": (None, ("missing.jpg", "x", "calm", "1"), "no such file"),
    "text.jpg": (b"this is no picture", ("text.jpg", "x", "calm", "1"), "no picture that can be decoded"),
    "cut.jpg": (jpeg(1, 64)[:700], ("cut.jpg", "x", "calm", "1"), "truncated"),
    "bomb.jpg": (bomb(), ("bomb.jpg", "x", "calm", "1"), "pixels"),
    "../labels.csv": (None, ("../labels.csv", "x", "calm", "1"), "leads out of the folder"),
    "..\\labels.csv": (None, ("..\\labels.csv", "x", "calm", "1"), "leads out of the folder"),
    "C:\\faces\\a.jpg": (None, ("C:\\faces\\a.jpg", "x", "calm", "1"), "leads out of the folder"),
    "/etc/hostname": (None, ("/etc/hostname", "x", "calm", "1"), "leads out of the folder"),
    "mood.jpg": (jpeg(2, 24), ("mood.jpg", "x", "furious", "1"), "mood is 'furious', not one of calm, glad"),
    "age.jpg": (jpeg(3, 24), ("age.jpg", "x", "calm", "old"), "age is 'old', not a number"),
    "inf.jpg": (jpeg(4, 24), ("inf.jpg", "x", "calm", "inf"), "age is 'inf', not a number"),
    "line 42": (None, ("", "x", "calm", "1"), "column file is empty"),
    "short.jpg": (jpeg(5, 24), ("short.jpg", "x", "calm"), "more or fewer cells than the header line"),
    "n" * 300 + ".jpg": (None, ("n" * 300 + ".jpg", "x", "calm", "1"), "longer than 255 bytes"),
    "long.jpg": (jpeg(6, 24), ("long.jpg", "x", "", "calm", "1"), "more or fewer cells than the header line"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_sample_is_named_and_left_out(tmp_path: Path, name: str) -> None:
    data, row, reason = BAD[name]
    adapter = write_folder(tmp_path, (row,))
    if data is not None:
        (tmp_path / "src" / name).write_bytes(data)
    report = build(adapter, str(tmp_path / "out"), SETTINGS)
    assert list(reasons(report)) == [name]
    assert reason in reasons(report)[name]
    assert sum(header.num_samples for header in report.headers.values()) == ROWS


@pytest.mark.parametrize(
    "written",
    [
        "{source}/deep/a.jpg",
        "deep\\a.jpg",
        "./deep/a.jpg",
        "deep//a.jpg",
    ],
)
def test_a_path_that_is_plain_is_understood_however_it_is_written(tmp_path: Path, written: str) -> None:
    source = tmp_path / "src"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "a.jpg").write_bytes(jpeg(0, 24))
    (ref,) = adapter_of(source, ((written.format(source=source), "p", "calm", "1"),)).refs()
    assert isinstance(ref, SampleRef)
    assert ref.name == "deep/a.jpg"


def test_a_path_below_a_prefix_in_s3_may_name_it(s3_env: S3Server, tmp_path: Path) -> None:
    url = f"{s3_env.bucket()}/faces"
    open_storage(url).write("a.jpg", jpeg(0, 24))
    table = tmp_path / "labels.csv"
    table.write_text(f"file,mood\n{url}/a.jpg,calm\n{url}-other/b.jpg,calm\n")
    adapter = FolderAdapter(url, table, file_column="file", specs=parse_labels(["mood:category:calm,glad"]))
    first, second = adapter.refs()
    assert isinstance(first, SampleRef)
    assert (first.name, adapter.load(first)) == ("a.jpg", jpeg(0, 24))
    assert isinstance(second, SampleRef)  # a key of any letters: it is looked for, and is not there
    with pytest.raises(RejectedError, match="no such file"):
        adapter.load(second)


Form = Literal["NFC", "NFD"]


@pytest.mark.parametrize(("listed", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_may_be_written_either_way_and_are_one_file(tmp_path: Path, listed: Form, stored: Form) -> None:
    source = tmp_path / "src"
    source.mkdir()
    (source / unicodedata.normalize(stored, "\u00e9\u00fc.jpg")).write_bytes(jpeg(0, 24))
    rows = tuple((unicodedata.normalize(form, "\u00e9\u00fc.jpg"), "p", "calm", "1") for form in (listed, stored))
    adapter = adapter_of(source, rows)
    first, again = adapter.refs()
    assert isinstance(first, SampleRef)
    assert adapter.load(first) == jpeg(0, 24)
    assert adapter.stamp(first) != ""
    assert isinstance(again, Rejected)
    assert again.reason == "line 3 lists the file again"


def test_white_space_around_the_names_of_columns_means_nothing(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("file, mood ,who\na.jpg, calm,NA\nb.jpg,glad,\n")
    adapter = FolderAdapter(
        str(tmp_path), table, file_column="file", specs=parse_labels(["mood:category:calm,glad"]), group="who"
    )
    refs = [ref for ref in adapter.refs() if isinstance(ref, SampleRef)]
    assert [ref.labels for ref in refs] == [{"mood": "calm"}, {"mood": "glad"}]
    assert [ref.group for ref in refs] == ["NA", None]  # somebody of these initials, and nobody


def test_what_was_left_out_is_listed_also_after_a_second_call(tmp_path: Path) -> None:
    adapter = write_folder(tmp_path, (BAD["missing.jpg"][1], BAD["age.jpg"][1]))
    for _ in range(2):
        build(adapter, str(tmp_path / "out"), SETTINGS)
    rows = list(csv.reader(io.StringIO((tmp_path / "out/rejected.csv").read_text())))
    assert [row[0] for row in rows] == ["sample", "age.jpg", "missing.jpg"]


def test_nothing_usable_is_an_error_with_the_first_reasons(tmp_path: Path) -> None:
    rows = tuple((f"{n}.jpg", f"p{n}", "calm", "1") for n in range(10))
    with pytest.raises(UserError, match=r"no sample of split train is usable .*no such file"):
        build(adapter_of(tmp_path / "src", rows), str(tmp_path / "out"), SETTINGS)


def test_a_stray_quote_does_not_swallow_the_rows_behind_it(tmp_path: Path) -> None:
    write_folder(tmp_path)
    table = tmp_path / "labels.csv"
    text = table.read_text()
    line = text[: text.index("3.jpg")].count("\n") + 1
    table.write_text(text.replace("3.jpg", '"3.jpg', 1))
    with pytest.raises(UserError, match=rf"labels\.csv: the row that begins in line {line} is no CSV .*not closed"):
        FolderAdapter(str(tmp_path / "src"), table, file_column="file", specs=parse_labels(["mood"]))


@pytest.mark.parametrize("column", ["file", "notes"])
def test_a_quote_that_another_row_closes_does_not_swallow_those_between(tmp_path: Path, column: str) -> None:
    rows = [f'{n}.jpg,calm,"note {n}"' for n in range(10)]
    rows[2] = '"2.jpg,calm,note 2' if column == "file" else '2.jpg,calm,"note 2'
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["file,mood,notes", *rows[:7], *(row.replace('"', "") for row in rows[7:])]))
    (tmp_path / "src").mkdir()
    with pytest.raises(UserError, match=r"labels\.csv: .*begins in line 4.*quote"):
        list(FolderAdapter(str(tmp_path / "src"), table, file_column="file", specs=parse_labels(["mood"])).refs())


def test_rows_that_lie_in_a_cell_of_another_row_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text('file,mood,notes\n0.jpg,calm,"six\n1.jpg,glad,seven\n2.jpg,calm,8 inch"\n3.jpg,calm,\n')
    (tmp_path / "src").mkdir()
    with pytest.raises(UserError, match=r"column 'notes' of the row that begins in line 2 goes on to line 4 and holds"):
        list(FolderAdapter(str(tmp_path / "src"), table, file_column="file", specs=parse_labels(["mood"])).refs())


def test_a_text_of_several_lines_is_no_broken_row(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text('file,mood,notes\n0.jpg,calm,"one\ntwo, and\nthree"\n1.jpg,glad,\n')
    (tmp_path / "src").mkdir()
    adapter = FolderAdapter(str(tmp_path / "src"), table, file_column="file", specs=parse_labels(["mood"]))
    assert [ref.name for ref in adapter.refs()] == ["0.jpg", "1.jpg"]


@pytest.mark.parametrize("change", ["copied in", "replaced", "replaced by another of the same size"])
@pytest.mark.parametrize("drop_duplicates", [False, True])
def test_a_build_that_goes_on_sees_what_became_of_its_sources(
    tmp_path: Path, change: str, drop_duplicates: bool
) -> None:
    adapter = write_folder(tmp_path, (BAD["missing.jpg"][1],))
    settings = SETTINGS.model_copy(update={"drop_duplicates": drop_duplicates})
    out = str(tmp_path / "out")
    build(adapter, out, settings)
    before = pictures_of(out)
    file = tmp_path / "src" / ("missing.jpg" if change == "copied in" else "3.jpg")
    new = jpeg(77, 24)
    if change.endswith("size"):
        old = file.read_bytes()
        new = old[:-2] + b"\xff\xd9" if old[-2:] != b"\xff\xd9" else jpeg(3, 24)
        new = new.ljust(len(old), b"\0")
    file.write_bytes(new)

    report = build(adapter, out, settings)

    anew = str(tmp_path / "anew")
    build(adapter, anew, settings)
    assert pictures_of(out) == pictures_of(anew)
    assert open_index(out, "train").header.digest == open_index(anew, "train").header.digest
    assert report.kept_shards > 0  # the others are not made again
    assert len(pictures_of(out)) == len(before) + (change == "copied in")


def test_overwrite_builds_anew_what_was_built_the_same_way(tmp_path: Path) -> None:
    adapter = write_folder(tmp_path)
    out = str(tmp_path / "out")
    build(adapter, out, SETTINGS)
    assert build(adapter, out, SETTINGS).kept_shards > 0
    assert build(adapter, out, SETTINGS, overwrite=True).kept_shards == 0


def test_a_label_of_two_columns_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    table = tmp_path / "labels.csv"
    table.write_text(table.read_text().replace("age", "mood", 1))
    with pytest.raises(UserError, match="has two columns 'mood'"):
        FolderAdapter(str(tmp_path / "src"), table, file_column="file", specs=parse_labels(["mood"]))


def test_a_missing_label_keeps_the_picture(tmp_path: Path) -> None:
    adapter = write_folder(tmp_path, (("x.jpg", "p0", "", "NA"),))
    shutil.copy(tmp_path / "src/0.jpg", tmp_path / "src/x.jpg")
    report = build(adapter, str(tmp_path / "out"), SETTINGS)
    assert sum(header.num_samples for header in report.headers.values()) == ROWS + 1


def test_a_row_that_repeats_a_file_is_left_out(tmp_path: Path) -> None:
    report = build(write_folder(tmp_path, (("./0.jpg", "p9", "calm", "1"),)), str(tmp_path / "out"), SETTINGS)
    assert [(row.name, row.reason) for row in report.rejected] == [("0.jpg", f"line {ROWS + 2} lists the file again")]
    assert sum(header.num_samples for header in report.headers.values()) == ROWS


def test_other_formats_become_jpeg(tmp_path: Path) -> None:
    adapter = write_folder(tmp_path, (("x.png", "p0", "calm", "1"),))
    colours = np.dstack([np.tile(np.arange(32, dtype=np.uint8) * 7, (32, 1))] * 3)
    Image.fromarray(colours).save(tmp_path / "src/x.png")
    build(adapter, str(tmp_path / "out"), SETTINGS)
    stored = pictures_of(str(tmp_path / "out"))["x"]
    assert stored[:2] == b"\xff\xd8"
    assert np.abs(decode(stored).astype(int) - colours).max() < 12


def test_pictures_are_shrunk_to_the_shorter_side(tmp_path: Path) -> None:
    adapter = write_folder(tmp_path, (("wide.png", "p0", "calm", "1"),))
    Image.new("RGB", (60, 40), (200, 0, 0)).save(tmp_path / "src/wide.png")
    build(adapter, str(tmp_path / "out"), SETTINGS.model_copy(update={"image_size": 20}))
    stored = pictures_of(str(tmp_path / "out"))
    assert decode(stored["wide"]).shape == (20, 30, 3)
    assert decode(stored["7"]).shape == (20, 20, 3)


def test_classes_are_found_when_none_are_given(tmp_path: Path) -> None:
    rows = (("a.jpg", "p", "wry", "1"), ("b.jpg", "q", "calm", "1"), ("c.jpg", "q", "NA", "1"))
    assert adapter_of(tmp_path / "src", rows, mood="mood").fields["mood"].classes == ("calm", "wry")


def test_a_missing_column_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no column 'expression': its columns are file, who, mood, age"):
        adapter_of(tmp_path / "src", (("a.jpg", "p", "calm", "1"),), mood="expression")


def test_a_table_of_another_separator_is_told_of_it(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file;mood\na.jpg;calm\n")
    with pytest.raises(UserError, match="its columns are file;mood; separate them by commas, not by ';'"):
        FolderAdapter(str(tmp_path), tmp_path / "labels.csv", file_column="file", specs=parse_labels(["mood"]))


def test_about_so_many_bytes_a_shard(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"shard_bytes": 30_000})
    report = build(write_folder(tmp_path), str(tmp_path / "out"), settings)
    sizes = open_index(str(tmp_path / "out"), "train").num_bytes
    assert report.headers["train"].num_shards > 1
    assert 10_000 < sizes.mean() < 50_000


def test_a_data_set_is_built_in_s3(tmp_path: Path, s3_env: S3Server) -> None:
    adapter = write_folder(tmp_path)
    url = f"{s3_env.bucket()}/people"
    there = build(adapter, url, SETTINGS)
    here = build(adapter, str(tmp_path / "out"), SETTINGS)
    assert digests(there) == digests(here)
    assert pictures_of(url) == pictures_of(str(tmp_path / "out"))


@dataclass(frozen=True)
class _Failing(Adapter):
    """Samples whose loading ends its process."""

    @property
    def fields(self) -> Mapping[str, Field]:
        return {}

    @property
    def group(self) -> None:
        return None

    def refs(self) -> Iterator[SampleRef]:
        return (SampleRef(str(n), {}) for n in range(20))

    def load(self, ref: SampleRef) -> bytes:
        os._exit(9)


def test_a_killed_worker_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a worker process was killed"):
        build(_Failing(), str(tmp_path / "out"), SETTINGS, num_workers=2)


def wait_for_a_file(path: str) -> str:
    """A task that waits for something far away until somebody has made a file."""
    with waiting_for("s3://far/away"):
        while not Path(path).exists():
            time.sleep(0.05)
    return path


@pytest.mark.nightly
@pytest.mark.timeout(120)
def test_what_a_worker_waits_for_is_heard_here(tmp_path: Path) -> None:
    def make_when_heard() -> None:
        while longest_wait() is None:
            time.sleep(0.05)
        (tmp_path / "heard").touch()

    listener = threading.Thread(target=make_when_heard)
    listener.start()
    assert [*run_tasks(wait_for_a_file, [str(tmp_path / "heard")] * 2, 2)] == [str(tmp_path / "heard")] * 2
    listener.join()


def test_tasks_are_taken_only_when_there_is_room() -> None:
    taken: list[int] = []
    tasks = (taken.append(n) or n for n in range(100))
    next(run_tasks(abs, tasks, 1))
    assert len(taken) == 1


@given(
    sizes=st.lists(st.integers(1, 9), min_size=12, max_size=60),
    share=st.floats(0.3, 0.7),
    seed=st.integers(0, 2**32),
)
def test_splits_miss_their_share_by_less_than_a_group(sizes: list[int], share: float, seed: int) -> None:
    hashes = np.random.default_rng(seed).permutation(2**16)[: len(sizes)].astype(np.uint64)
    groups = np.repeat(hashes, sizes)
    splits = assign_splits(groups, {"train": share, "val": 1 - share})
    assert abs(np.count_nonzero(splits == 0) - share * len(groups)) <= max(sizes)


def test_too_few_groups_for_a_split_are_refused() -> None:
    with pytest.raises(UserError, match="split val would be empty: 4 samples in 2 groups"):
        assign_splits(np.array([1, 1, 2, 2], dtype=np.uint64), {"train": 0.9, "val": 0.1})


def test_a_split_is_read_as_written() -> None:
    assert parse_split("train=0.7, val=0.2,test=0.1") == {"train": 0.7, "val": 0.2, "test": 0.1}


@pytest.mark.parametrize("text", ["train", "train=0.5,val=0.4", "a=1,a=0", "a=0,b=1", "../a=1", "a=x,b=1", ""])
def test_a_split_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"split .* is not understood"):
        parse_split(text)


def test_real_faces_are_built_with_people_apart(tmp_path: Path, faces: Path) -> None:
    london = faces / "london"
    adapter = FolderAdapter(
        str(london / "images"),
        london / "labels.csv",
        file_column="file",
        specs=parse_labels(["expression", "gender", "age:number:years"]),
        group="subject",
    )
    report = build(adapter, str(tmp_path), BuildSettings(dataset="london", splits={"train": 0.8, "val": 0.2}))
    assert {split: header.num_samples for split, header in report.headers.items()} == {"train": 164, "val": 40}
    assert report.rejected == []
    assert json.loads((tmp_path / "dataset.json").read_text())["splits"] == ["train", "val"]


@dataclass(frozen=True)
class _Published(Adapter):
    """Four pictures with splits of their own; number 3 is number 0 again, number 2 is number 1 with another box."""

    @property
    def fields(self) -> Mapping[str, Field]:
        return {"mood": Field(kind="category", classes=("calm", "glad"))}

    @property
    def group(self) -> None:
        return None

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "val", "test")

    def refs(self) -> Iterator[SampleRef]:
        box = Box(4, 4, 16, 16)
        yield SampleRef("0", {"mood": "calm"}, split="train")
        yield SampleRef("1", {"mood": "calm"}, split="train", box=box)
        yield SampleRef("2", {"mood": "calm"}, split="train", box=box.grown(0.1))
        yield SampleRef("3", {"mood": "glad"}, split="test")

    def load(self, ref: SampleRef) -> bytes:
        return jpeg({"0": 0, "1": 1, "2": 1, "3": 0}[ref.name], 24)


def test_published_splits_are_kept_and_those_without_samples_are_not_there(tmp_path: Path) -> None:
    report = build(_Published(), str(tmp_path), SETTINGS.model_copy(update={"splits": {}}))
    assert {split: header.num_samples for split, header in report.headers.items()} == {"train": 3, "test": 1}


def test_of_two_equal_pictures_the_one_of_the_later_split_is_kept(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"splits": {}, "drop_duplicates": True})
    for _ in range(2):
        report = build(_Published(), str(tmp_path), settings)
        assert reasons(report) == {"0": "the same picture as 3 in test, which has other labels"}
        assert {split: header.num_samples for split, header in report.headers.items()} == {"train": 2, "test": 1}


def test_shares_overrule_published_splits(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"splits": {"train": 0.5, "val": 0.5}})
    report = build(_Published(), str(tmp_path), settings)
    assert {split: header.num_samples for split, header in report.headers.items()} == {"train": 2, "val": 2}


def test_without_published_splits_shares_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no published splits: give names and shares, like --split"):
        build(write_folder(tmp_path), str(tmp_path / "out"), SETTINGS.model_copy(update={"splits": {}}))


def test_a_box_over_the_edge_repeats_the_border() -> None:
    picture = np.arange(16, dtype=np.uint8).reshape(4, 4, 1).repeat(3, axis=2)
    square = cut_square(picture, Box(2, -1, 2, 4))[..., 0]
    np.testing.assert_array_equal(square, [[1, 2, 3, 3], [1, 2, 3, 3], [5, 6, 7, 7], [9, 10, 11, 11]])
