"""Shards and their index: what is written is what any tool reads, and damage is one line."""

import base64
import io
import json
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from hmtl_dist.data.dataset.foreign import index_shards
from hmtl_dist.data.dataset.index import ShardIndex, open_index
from hmtl_dist.data.dataset.labels import LabelSpec, parse_labels
from hmtl_dist.data.dataset.schema import Field, IndexHeader
from hmtl_dist.data.dataset.tables import decode_table, encode_table, text_column, texts_of
from hmtl_dist.data.dataset.writing import (
    ShardRecord,
    ShardSample,
    sample_columns,
    shard_record,
    write_dataset,
    write_index,
    write_tar,
)
from hmtl_dist.data.storage import open_storage
from hmtl_dist.errors import UserError
from tests.data.stream.streaming import jpeg

FIELDS = {"mood": Field(kind="category", classes=("calm", "glad")), "age": Field(kind="number", unit="years")}


def png(number: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def some_samples(first: int, count: int) -> list[ShardSample]:
    """Every second picture is a PNG; sample 0 has no mood, sample 1 no age."""
    return [
        ShardSample(
            key=f"{n:04d}",
            extension="png" if n % 2 else "jpg",
            picture=png(n) if n % 2 else jpeg(n, 16),
            labels={"mood": FIELDS["mood"].classes[n % 2] if n else None, "age": None if n == 1 else n + 0.5},
            group=f"people/Zoë {n // 2}",
            source=f"original {n}.jpg",
        )
        for n in range(first, first + count)
    ]


def write_set(folder: Path, sizes: tuple[int, ...] = (5, 3)) -> str:
    url = str(folder / "set")
    storage = open_storage(url)
    records: list[ShardRecord] = []
    first = 0
    for shard, size in enumerate(sizes):
        rows, num_bytes, sha256 = write_tar(folder / "shard.tar", some_samples(first, size), "person")
        table = encode_table(sample_columns(rows, FIELDS, "person"))
        name = f"train/shard-{shard:06d}"
        storage.upload(f"{name}.tar", folder / "shard.tar")
        storage.write(f"{name}.npz", table)
        records.append(shard_record(f"{name}.tar", table, FIELDS, num_bytes=num_bytes, sha256=sha256))
        first += size
    write_index(storage, "set", "train", records, fields=FIELDS, group="person")
    write_dataset(storage, "set", ["train"])
    return url


_WEBDATASET_ALONE = """
import base64, json, sys
from webdataset import WebDataset
for sample in WebDataset(sys.argv[1], shardshuffle=False):
    picture = sample["jpg" if "jpg" in sample else "png"]
    print(json.dumps([sample["__key__"], base64.b64encode(picture).decode(), json.loads(sample["json"])]))
"""


def test_webdataset_alone_reads_what_was_written(tmp_path: Path) -> None:
    # In a process of its own: webdataset leaves files to the garbage collector, which is a warning here.
    tar = f"{write_set(tmp_path)}/train/shard-000000.tar"
    command = [sys.executable, "-c", _WEBDATASET_ALONE, tar]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert [json.loads(line) for line in answer.stdout.splitlines()] == [
        [
            sample.key,
            base64.b64encode(sample.picture).decode(),
            {**sample.labels, "person": sample.group, "source": sample.source},
        ]
        for sample in some_samples(0, 5)
    ]


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_tar(tmp_path / name, some_samples(0, 4), "person")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_the_table_tells_where_each_picture_lies(tmp_path: Path) -> None:
    index = open_index(write_set(tmp_path), "train")
    table = index.samples(1)
    found = index.storage.read_ranges(
        index.names[1], list(zip(table.offset.tolist(), table.length.tolist(), strict=True))
    )
    assert found == [sample.picture for sample in some_samples(5, 3)]


def test_labels_keys_and_groups_come_back(tmp_path: Path) -> None:
    table = open_index(write_set(tmp_path), "train").samples(0)
    np.testing.assert_array_equal(table.labels["mood"], np.array([-1, 1, 0, 1, 0], dtype=np.int64))
    np.testing.assert_array_equal(table.labels["age"], np.array([0.5, np.nan, 2.5, 3.5, 4.5], dtype=np.float32))
    assert table.key.tolist() == [sample.key for sample in some_samples(0, 5)]
    assert table.group is not None
    assert table.group.tolist() == [sample.group for sample in some_samples(0, 5)]


def test_the_header_counts(tmp_path: Path) -> None:
    header = open_index(write_set(tmp_path), "train").header
    assert (header.num_samples, header.num_shards, header.label_counts) == (8, 2, {"mood": [3, 4]})


def test_an_index_is_pickled_by_its_address(tmp_path: Path) -> None:
    index = open_index(write_set(tmp_path), "train")
    copy = pickle.loads(pickle.dumps(index))  # noqa: S301  # our own object
    assert isinstance(copy, ShardIndex)
    assert copy.header == index.header


def test_a_pickled_index_does_not_open_another_set(tmp_path: Path) -> None:
    pickled = pickle.dumps(open_index(write_set(tmp_path), "train"))
    write_set(tmp_path, (4, 4))
    with pytest.raises(UserError, match="was replaced while it was in use"):
        pickle.loads(pickled)  # noqa: S301  # our own object


def test_no_data_set_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no data set at .*hmtl-dist data index"):
        open_index(str(tmp_path), "train")


def test_an_unknown_split_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no split 'val': its splits are train"):
        open_index(write_set(tmp_path), "val")


def test_a_damaged_table_of_shards_is_noticed(tmp_path: Path) -> None:
    url = write_set(tmp_path)
    table = Path(url, "train/shards.npz")
    table.write_bytes(table.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"shards\.npz does not fit train/index\.json"):
        open_index(url, "train")


def test_a_changed_header_is_noticed(tmp_path: Path) -> None:
    url = write_set(tmp_path)
    header = Path(url, "train/index.json")
    header.write_text(header.read_text().replace('"calm"', '"angry"'))
    with pytest.raises(UserError, match="digests differ"):
        open_index(url, "train")


def test_a_damaged_side_table_is_noticed(tmp_path: Path) -> None:
    url = write_set(tmp_path)
    Path(url, "train/shard-000001.npz").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"shard-000001\.npz is damaged or was replaced"):
        open_index(url, "train").samples(1)


def test_a_header_of_another_version_is_refused(tmp_path: Path) -> None:
    url = write_set(tmp_path)
    header = Path(url, "train/index.json")
    header.write_text(header.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(UserError, match=r"cannot be read by this version .*format_version"):
        open_index(url, "train")


def test_tables_never_hold_objects() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, column=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="no plain column"):
        decode_table(buffer.getvalue())


def test_texts_survive_a_table() -> None:
    texts = ["", "Zoë", "ordinary", "終"]
    assert texts_of(decode_table(encode_table({"a": text_column(texts)}))["a"]).tolist() == texts


_MILLION_SHARDS = """
import re, sys, time
from pathlib import Path
from hmtl_dist.data.stream.plan import Plan
from hmtl_dist.data.dataset.index import open_index
start = time.process_time()
index = open_index(sys.argv[1], "train")
plan = Plan(index.num_samples, batch_size=1024, lanes=64, seed=0, shuffle=True, block=1024)
ids = plan.epoch(3).batch_ids(plan.steps_per_epoch - 1)
assert index.names[999_999] == "train/shard-999999.tar"
# VmHWM, because ru_maxrss also counts the process that started this one.
peak = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())
print(time.process_time() - start, int(peak[1]) / 1024)
"""


def test_a_million_shards_open_and_plan_in_moments(tmp_path: Path) -> None:
    shards = 1_000_000
    digests = np.arange(4 * shards, dtype=np.uint64).view(np.uint8).reshape(shards, 32)
    table = encode_table(
        {
            "name": np.array([b"train/shard-%06d.tar" % shard for shard in range(shards)]),
            "num_samples": np.full(shards, 1000, dtype=np.int64),
            "num_bytes": np.full(shards, 10**8, dtype=np.int64),
            "sha256": digests,
            "table_sha256": digests,
            "label_counts.mood": np.full((shards, 2), 500, dtype=np.int32),
        }
    )
    header = IndexHeader(
        dataset="million",
        split="train",
        fields=FIELDS,
        num_samples=10**9,
        num_shards=shards,
        num_bytes=10**14,
        label_counts={"mood": [5 * 10**8] * 2},
    ).sealed(table)
    (tmp_path / "train").mkdir()
    (tmp_path / "train/shards.npz").write_bytes(table)
    (tmp_path / "train/index.json").write_text(header.model_dump_json())
    command = [sys.executable, "-c", _MILLION_SHARDS, str(tmp_path)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    seconds, megabytes = map(float, answer.stdout.split())
    assert seconds < 3
    assert megabytes < 300


def write_foreign(folder: Path, pattern: str, *, count: int = 6) -> None:
    from webdataset.writer import ShardWriter

    folder.mkdir(exist_ok=True, parents=True)
    with ShardWriter(str(folder / pattern), maxcount=4, verbose=0) as writer:
        for n in range(count):
            labels = {"mood": ("calm", "glad")[n % 2], "age": n, "who": f"p{n // 2}", "file": f"f{n}", "boxes": [1, 2]}
            writer.write({"__key__": f"a/{n:03d}", "jpg": jpeg(n, 16), "json": labels, "cls": n % 3})


def test_shards_of_webdataset_are_accepted(tmp_path: Path) -> None:
    write_foreign(tmp_path / "train", "x-%03d.tar")
    index_shards(str(tmp_path), group="who")
    index = open_index(str(tmp_path), "train")
    assert index.num_samples.tolist() == [4, 2]
    table = index.samples(1)
    found = index.storage.read(index.names[1], start=int(table.offset[1]), length=int(table.length[1]))
    assert found == jpeg(5, 16)


def test_kinds_of_foreign_labels_are_inferred(tmp_path: Path) -> None:
    write_foreign(tmp_path / "train", "x-%03d.tar")
    report = index_shards(str(tmp_path), group="who")
    assert report.headers["train"].fields == {
        "mood": Field(kind="category", classes=("calm", "glad")),
        "age": Field(kind="number"),
        "cls": Field(kind="category", classes=("0", "1", "2")),
        "file": Field(kind="category", classes=tuple(f"f{n}" for n in range(6))),
    }
    assert report.left_out == {"boxes": "holds lists or nested entries"}


def test_a_foreign_number_can_be_made_a_category(tmp_path: Path) -> None:
    write_foreign(tmp_path / "train", "x-%03d.tar", count=12)
    report = index_shards(str(tmp_path), labels=[LabelSpec("age", "category")])
    assert report.headers["train"].fields["age"].classes == tuple(map(str, range(12)))


def test_names_of_files_are_no_category(tmp_path: Path) -> None:
    write_foreign(tmp_path / "train", "x-%03d.tar", count=30)
    assert "file" in index_shards(str(tmp_path)).left_out


def test_foreign_shards_side_by_side_are_split_by_name(tmp_path: Path) -> None:
    write_foreign(tmp_path, "train-%03d.tar")
    write_foreign(tmp_path, "val-%03d.tar", count=2)
    index_shards(str(tmp_path))
    index = open_index(str(tmp_path), "val")
    assert list(index.names) == ["val-000.tar"]
    assert len(index.samples(0)) == 2


def test_indexing_our_own_shards_finds_the_same_samples(tmp_path: Path) -> None:
    url = write_set(tmp_path)
    before = [open_index(url, "train").samples(shard) for shard in range(2)]
    index_shards(url, group="person")
    after = [open_index(url, "train").samples(shard) for shard in range(2)]
    for one, other in zip(before, after, strict=True):
        for column in ("offset", "length", "digest", "key_bytes", "group_bytes"):
            np.testing.assert_array_equal(getattr(one, column), getattr(other, column))
        np.testing.assert_array_equal(one.labels["age"], other.labels["age"])


def test_compressed_shards_are_refused_with_the_reason(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz"):
        pass
    with pytest.raises(UserError, match=r"no shards .*x\.tar\.gz is compressed"):
        index_shards(str(tmp_path))


def test_a_cut_tar_is_one_line(tmp_path: Path) -> None:
    write_foreign(tmp_path / "train", "x-%03d.tar")
    tar = tmp_path / "train/x-000.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"x-000\.tar"):
        index_shards(str(tmp_path))


def test_an_unknown_entry_names_the_known_ones(tmp_path: Path) -> None:
    write_foreign(tmp_path / "train", "x-%03d.tar")
    with pytest.raises(UserError, match="no sample has an entry 'subject': the entries found are age, boxes"):
        index_shards(str(tmp_path), group="subject")


@pytest.mark.parametrize("text", ["", "age:text", ":number", "mood:category:a,,b", "mood:category:a,a"])
def test_a_label_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"label .* is not understood"):
        parse_labels([text])
