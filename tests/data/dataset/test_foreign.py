"""Shards made elsewhere: what is joined, what is left out, and that all of it is told."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hmtl_dist.cli.app import app
from hmtl_dist.data.dataset.build import BuildSettings, build
from hmtl_dist.data.dataset.foreign import ForeignReport, index_shards
from hmtl_dist.data.dataset.index import open_dataset, open_index
from hmtl_dist.data.dataset.tars import splits_of
from hmtl_dist.data.drawn.faces import SyntheticAdapter, SyntheticSettings
from hmtl_dist.errors import UserError
from tests.data.stream.streaming import jpeg


def tar(path: Path, files: Sequence[tuple[str, bytes | object]]) -> None:
    """Write a tar of these files, in this order; what is no bytes is JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def labels_of(url: Path, name: str, split: str = "train") -> list[str | None]:
    index = open_index(str(url), split)
    classes = index.header.fields[name].classes
    numbers = [int(number) for shard in range(len(index)) for number in index.samples(shard).labels[name]]
    return [classes[number] if number >= 0 else None for number in numbers]


def test_labels_that_lie_behind_all_pictures_are_joined_by_key(tmp_path: Path) -> None:
    keys = [f"{n:03d}" for n in range(4)]
    pictures = [(f"{key}.jpg", jpeg(n, 16)) for n, key in enumerate(keys)]
    labels = [(f"{key}.json", {"mood": ("calm", "glad")[n % 2]}) for n, key in enumerate(keys)]
    tar(tmp_path / "train/a.tar", [*pictures, *reversed(labels)])

    report = index_shards(str(tmp_path))

    assert labels_of(tmp_path, "mood") == ["calm", "glad", "calm", "glad"]
    assert not report.told
    index = open_index(str(tmp_path), "train")
    table = index.samples(0)
    assert index.storage.read(index.names[0], start=int(table.offset[2]), length=int(table.length[2])) == jpeg(2, 16)


def test_of_two_files_of_one_kind_the_first_counts_and_the_other_is_named(tmp_path: Path) -> None:
    files = [
        ("000.jpg", jpeg(0, 16)),
        ("000.json", {"mood": "calm"}),
        ("000.jpeg", jpeg(1, 16)),
        ("001.jpg", jpeg(2, 16)),
        ("001.json", {"mood": "glad"}),
        ("000.json", {"mood": "glad"}),
    ]
    tar(tmp_path / "train/a.tar", files)

    report = index_shards(str(tmp_path))

    assert report.doubled == ["train/a.tar: 000.jpeg", "train/a.tar: 000.json"]
    assert labels_of(tmp_path, "mood") == ["calm", "glad"]
    assert report.told


def test_dotted_keys_webp_and_other_files_are_read_or_counted(tmp_path: Path) -> None:
    files = [
        ("000.left.jpg", jpeg(0, 16)),
        ("000.meta.json", {"mood": "calm"}),
        ("001.webp", b"RIFF"),
        ("001.cls", b"7"),
        ("002.jpg", jpeg(1, 16)),
        ("002.txt", b"a caption"),
        ("003.json", {"mood": "glad"}),
    ]
    tar(tmp_path / "train/a.tar", files)

    report = index_shards(str(tmp_path))

    assert report.headers["train"].num_samples == 3
    assert (report.without_picture, report.without_labels, dict(report.others)) == (1, 1, {"txt": 1})
    assert report.headers["train"].fields["mood"].classes == ("calm",)


def test_what_looks_like_shards_and_is_not_read_is_named(tmp_path: Path) -> None:
    tar(tmp_path / "train/a.tar", [("0.jpg", jpeg(0, 16)), ("0.cls", b"1")])
    tar(tmp_path / "train/more/b.tar", [("1.jpg", jpeg(1, 16))])
    (tmp_path / "train/c.tar.gz").write_bytes(b"")

    report = index_shards(str(tmp_path))

    assert set(report.passed_over) == {"train/more/b.tar", "train/c.tar.gz"}
    assert "deeper" in report.passed_over["train/more/b.tar"]
    assert "compressed" in report.passed_over["train/c.tar.gz"]


def test_a_tar_that_is_compressed_under_another_name_says_so(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with tarfile.open(tmp_path / "train/a.tar", "w:gz") as archive:
        archive.add(__file__, "x.json")
    with pytest.raises(UserError, match=r"a\.tar is damaged or no tar: .*compressed, whatever its name says"):
        index_shards(str(tmp_path))


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-000000", "train-000001"], ["train", "train"]),
        (["000000", "000001"], ["train", "train"]),
        (["faces-0000", "faces-0001"], ["faces", "faces"]),
        (["imagenet1k-train-0000", "imagenet1k-validation-0000"], ["train", "val"]),
        (["00-train", "01-val"], ["train", "val"]),
        (["cc12m-train-0000", "cc12m-train-0001"], ["train", "train"]),
        (["set_a.train.000of010", "set_a.test.000of010"], ["train", "test"]),
        (["faces-eu-01", "faces-us-01"], ["eu", "us"]),
        (["a-val-1", "a-validation-1"], ["val", "validation"]),
        (["faces-0", "faces-extra-0"], ["train", "extra"]),
    ],
)
def test_splits_are_what_tells_names_apart_beside_the_number(names: list[str], splits: list[str]) -> None:
    assert list(splits_of(names).values()) == splits


def test_a_split_can_be_named(tmp_path: Path) -> None:
    tar(tmp_path / "odd-0.tar", [("0.jpg", jpeg(0, 16)), ("0.cls", b"1")])
    index_shards(str(tmp_path), split="test")
    assert open_dataset(str(tmp_path)).splits == ("test",)


def test_codes_of_eight_digits_stay_apart(tmp_path: Path) -> None:
    codes = [20170110.0 + n for n in range(3)]
    files = [
        file
        for n in range(6)
        for file in ((f"{n}.jpg", jpeg(n, 16)), (f"{n}.json", {"code": codes[n % 3], "same": [1, 1.0, "1.0"][n % 3]}))
    ]
    tar(tmp_path / "train/a.tar", files)
    from hmtl_dist.data.dataset.labels import parse_labels

    index_shards(str(tmp_path), labels=parse_labels(["code", "same"]))

    fields = open_index(str(tmp_path), "train").header.fields
    assert fields["code"].classes == ("20170110", "20170111", "20170112")
    assert fields["same"].classes == ("1",)


@pytest.mark.parametrize("value", ["Infinity", "1e400"])
def test_a_number_that_cannot_be_stored_names_its_sample(tmp_path: Path, value: str) -> None:
    files = [("000.jpg", jpeg(0, 16)), ("000.json", f'{{"age": {value}}}'.encode())]
    tar(tmp_path / "train/a.tar", files)
    with pytest.raises(UserError, match=r"train/a\.tar: 000: age is inf, not a number"):
        index_shards(str(tmp_path))


def test_what_says_that_there_is_no_value_is_no_class(tmp_path: Path) -> None:
    moods = ["calm", "NA", "nan", None, float("nan"), "glad"]
    files = [
        file for n, mood in enumerate(moods) for file in ((f"{n}.jpg", jpeg(n, 16)), (f"{n}.json", {"mood": mood}))
    ]
    tar(tmp_path / "train/a.tar", files)

    index_shards(str(tmp_path))

    assert labels_of(tmp_path, "mood") == ["calm", None, None, None, None, "glad"]


def test_an_own_set_that_is_indexed_again_keeps_labels_units_and_groups(tmp_path: Path) -> None:
    url = str(tmp_path / "set")
    build(SyntheticAdapter(SyntheticSettings(40, 10, 32)), url, BuildSettings(dataset="drawn", splits={"train": 1.0}))
    before = open_index(url, "train")
    table = before.samples(0)

    index_shards(url)

    after = open_index(url, "train")
    assert (after.header.fields, after.header.group) == (before.header.fields, before.header.group)
    for name, column in table.labels.items():
        np.testing.assert_array_equal(after.samples(0).labels[name], column)
    np.testing.assert_array_equal(after.samples(0).group_bytes, table.group_bytes)


def test_strict_fails_when_anything_was_left_out_and_says_what(tmp_path: Path) -> None:
    tar(tmp_path / "train/a.tar", [("0.jpg", jpeg(0, 16)), ("0.cls", b"1"), ("0.png", jpeg(1, 16))])
    result = CliRunner().invoke(app, ["data", "index", str(tmp_path), "--strict"])
    assert result.exit_code == 2
    assert "left out, for its sample has one already: train/a.tar: 0.png" in result.stdout
    assert (
        result.stderr
        == "error: --strict: something was left out, or labels are missing or differ; what it was stands above\n"
    )
    assert isinstance(index_shards(str(tmp_path)), ForeignReport)
