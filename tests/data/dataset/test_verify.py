"""Verifying: damage, duplicates and people on both sides are found, and a sound set is sound."""

import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmtl_dist.data.catalog.folder import FolderAdapter
from hmtl_dist.data.dataset.build import BuildSettings, build
from hmtl_dist.data.dataset.duplicates import BANDS, NEAR_BITS, near_pairs, same_pairs
from hmtl_dist.data.dataset.labels import parse_labels
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.data.dataset.survey import survey
from hmtl_dist.data.dataset.tables import encode_table
from hmtl_dist.data.dataset.verify import VerifyReport, verify
from hmtl_dist.data.dataset.writing import (
    ShardSample,
    sample_columns,
    shard_record,
    write_dataset,
    write_index,
    write_tar,
)
from hmtl_dist.data.decode import decode
from hmtl_dist.data.drawn.faces import face_jpeg
from hmtl_dist.data.storage import open_storage
from hmtl_dist.errors import UserError

FIELDS = {"mood": Field(kind="category", classes=("calm", "glad"))}


def face(number: int) -> bytes:
    return face_jpeg(5, number, 50, 64)


def again(picture: bytes) -> bytes:
    """The same picture, smaller and with other bytes."""
    buffer = io.BytesIO()
    Image.fromarray(decode(picture)).resize((56, 56)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def write_set(folder: Path, splits: dict[str, list[tuple[bytes, str]]]) -> str:
    """A data set with one shard a split, of pictures and whom they show."""
    storage = open_storage(str(folder))
    for split, pictures in splits.items():
        samples = [
            ShardSample(f"{n:03d}", "jpg", data, {"mood": ("calm", "glad", None)[n % 3]}, who)
            for n, (data, who) in enumerate(pictures)
        ]
        rows, num_bytes, sha256 = write_tar(folder.parent / "shard.tar", samples, "who")
        table = encode_table(sample_columns(rows, FIELDS, "who"))
        storage.upload(f"{split}/shard-000000.tar", folder.parent / "shard.tar")
        storage.write(f"{split}/shard-000000.npz", table)
        record = shard_record(f"{split}/shard-000000.tar", table, FIELDS, num_bytes=num_bytes, sha256=sha256)
        write_index(storage, "set", split, [record], fields=FIELDS, group="who")
    write_dataset(storage, "set", list(splits))
    return str(folder)


def people(first: int, count: int) -> list[tuple[bytes, str]]:
    return [(face(n), f"p{n}") for n in range(first, first + count)]


def ends(report_lines: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The last parts, split/shard and key, of found pairs."""
    return [("/".join(a.split("/")[-2:]), "/".join(b.split("/")[-2:])) for a, b in report_lines]


def pairs(report: VerifyReport, kind: str) -> list[tuple[str, str]]:
    return ends([(pair.first, pair.second) for pair in getattr(report, kind)])


def test_a_sound_set_is_sound(tmp_path: Path) -> None:
    report = verify([write_set(tmp_path / "set", {"train": people(0, 12), "val": people(12, 4)})])
    assert report == VerifyReport(
        samples=16,
        shards=2,
        num_bytes=report.num_bytes,
        labels={
            f"{tmp_path}/set train": {"mood": {"": 4, "calm": 4, "glad": 4}},
            f"{tmp_path}/set val": {"mood": {"": 1, "calm": 2, "glad": 1}},
        },
    )


def test_two_processes_find_the_same(tmp_path: Path) -> None:
    url = write_set(tmp_path / "set", {"train": [*people(0, 3), (b"no picture", "x")], "val": people(2, 2)})
    assert verify([url], num_workers=2) == verify([url])


def test_a_changed_byte_of_a_picture_is_damage(tmp_path: Path) -> None:
    url = write_set(tmp_path / "set", {"train": people(0, 3)})
    tar = Path(url, "train/shard-000000.tar")
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    tar_damage, picture_damage = verify([url]).damage
    assert tar_damage.endswith("the tar is not the one that was indexed (SHA-256 differs)")
    assert picture_damage.endswith("shard-000000.tar 000: the bytes are not those that were indexed")


def test_a_missing_tar_is_damage(tmp_path: Path) -> None:
    url = write_set(tmp_path / "set", {"train": people(0, 3)})
    Path(url, "train/shard-000000.tar").unlink()
    report = verify([url])
    assert len(report.damage) == 1
    assert "does not exist" in report.damage[0]


def test_a_cut_tar_is_damage(tmp_path: Path) -> None:
    url = write_set(tmp_path / "set", {"train": people(0, 3)})
    tar = Path(url, "train/shard-000000.tar")
    tar.write_bytes(tar.read_bytes()[:3000])
    assert not verify([url]).is_sound


def test_a_picture_that_cannot_be_decoded_is_damage(tmp_path: Path) -> None:
    url = write_set(tmp_path / "set", {"train": [*people(0, 3), (b"no picture", "x")]})
    assert [line.partition(".tar ")[2] for line in verify([url]).damage] == ["003: no picture that can be decoded"]


def test_the_same_picture_in_two_splits_is_found(tmp_path: Path) -> None:
    url = write_set(tmp_path / "set", {"train": people(0, 3), "val": [(face(1), "somebody else")]})
    report = verify([url])
    assert pairs(report, "same_across") == [("train/shard-000000.tar 001", "val/shard-000000.tar 000")]
    assert not report.is_sound


def test_a_similar_picture_in_two_splits_is_found(tmp_path: Path) -> None:
    url = write_set(tmp_path / "set", {"train": people(0, 3), "val": [(again(face(1)), "somebody else")]})
    report = verify([url])
    assert pairs(report, "near_across") == [("train/shard-000000.tar 001", "val/shard-000000.tar 000")]
    assert not report.is_sound


def test_a_person_in_two_splits_is_found(tmp_path: Path) -> None:
    url = write_set(tmp_path / "set", {"train": people(0, 3), "val": [(face(9), "p1")]})
    report = verify([url])
    assert report.groups_across == [f"{url}: p1 is in train and in val"]
    assert not report.is_sound


def test_a_picture_twice_in_one_split_is_a_note(tmp_path: Path) -> None:
    report = verify([write_set(tmp_path / "set", {"train": [*people(0, 2), (face(0), "p0")]})])
    assert pairs(report, "same_within") == [("train/shard-000000.tar 000", "train/shard-000000.tar 002")]
    assert report.is_sound


def test_the_same_picture_with_different_labels_is_named_with_both(tmp_path: Path) -> None:
    twice = [(face(0), "p0"), (face(0), "p0"), (face(1), "p1"), (face(0), "p0")]  # calm, glad, none, calm
    url = write_set(tmp_path / "set", {"train": twice})
    report = verify([url])
    where = f"{url}/train/shard-000000.tar"
    assert report.conflicts == [f"{where} 000 and {where} 001: mood calm and glad"]
    assert not report.is_sound
    assert survey(url).conflicts == report.conflicts


def test_a_picture_of_another_set_that_is_mixed_in_is_found(tmp_path: Path) -> None:
    one = write_set(tmp_path / "one", {"train": people(0, 3)})
    other = write_set(tmp_path / "other", {"val": [(face(2), "p0")]})
    report = verify([one, other])
    assert pairs(report, "same_across") == [("train/shard-000000.tar 002", "val/shard-000000.tar 000")]


def test_people_of_different_sets_may_have_the_same_name(tmp_path: Path) -> None:
    one = write_set(tmp_path / "one", {"train": people(0, 3)})
    other = write_set(tmp_path / "other", {"val": [(face(9), "p0")]})
    assert verify([one, other]).is_sound


def test_a_set_named_twice_is_refused(tmp_path: Path) -> None:
    url = write_set(tmp_path / "set", {"train": people(0, 1)})
    with pytest.raises(UserError, match="named twice"):
        verify([url, url + "/"])


def test_near_pairs_are_those_of_comparing_all_with_all() -> None:
    random = np.random.default_rng(0)
    base = random.integers(0, 2**16, (60, BANDS), dtype=np.uint16)
    flips = random.integers(0, 2 * NEAR_BITS, 60)
    changed = base.copy()
    for row, count in enumerate(flips):
        for bit in random.permutation(16 * BANDS)[:count]:
            changed[row, bit // 16] ^= np.uint16(1 << (bit % 16))
    hashes = np.concatenate([base, changed])
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(axis=2)
    expected = {(i, j) for i, j in combinations(range(120), 2) if distances[i, j] <= NEAR_BITS}
    assert {(int(i), int(j)) for i, j in near_pairs(hashes)} == expected
    assert 10 < len(expected) < 60


def test_the_same_value_is_paired_with_its_first() -> None:
    values = np.array([7, 3, 7, 5, 3, 7], dtype=np.uint64)
    assert sorted(same_pairs(values).tolist()) == [[0, 2], [0, 5], [1, 4]]


def test_nothing_has_no_pairs() -> None:
    assert len(same_pairs(np.empty(0, dtype=np.uint64))) == 0
    assert len(near_pairs(np.empty((0, BANDS), dtype=np.uint16))) == 0


@pytest.mark.parametrize(("name", "samples"), [("london", 204), ("congress", 628)])
def test_real_faces_that_are_apart_are_sound(tmp_path: Path, faces: Path, name: str, samples: int) -> None:
    adapter = FolderAdapter(
        str(faces / name / "images"),
        faces / name / "labels.csv",
        file_column="file",
        specs=parse_labels(["gender"]),
        group="subject",
    )
    build(adapter, str(tmp_path), BuildSettings(dataset=name, splits={"train": 0.8, "val": 0.2}))
    report = verify([str(tmp_path)])
    assert (report.is_sound, report.samples, report.near_within) == (True, samples, [])
