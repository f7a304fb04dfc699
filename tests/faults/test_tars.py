"""Tars made elsewhere that are damaged: `data index` names what is wrong, and never counts less than there is."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hmtl_dist.data.dataset.foreign import index_shards
from hmtl_dist.data.dataset.index import open_index
from hmtl_dist.errors import UserError
from tests.data.stream.streaming import jpeg

BLOCK = tarfile.BLOCKSIZE


def write(folder: Path, labels: str = '{"mood": "calm"}', name: str = "{:06d}") -> Path:
    """A tar of six samples; the third one's labels are given."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "train-000000.tar", "w") as tar:
        for number in range(6):
            text = labels if number == 2 else json.dumps({"mood": "glad" if number % 2 else "calm", "age": number})
            for suffix, data in (("jpg", jpeg(number)), ("json", text.encode())):
                info = tarfile.TarInfo(f"{name.format(number)}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder / "train-000000.tar"


def complaint(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        index_shards(str(folder))
    assert str(caught.value).count("\n") == 0
    assert not (folder / "dataset.json").exists()
    return str(caught.value)


def header_of(tar: Path, number: int) -> int:
    """Where the header of a member begins."""
    with tarfile.open(tar) as members:
        return members.getmembers()[number].offset


def tear(tar: Path) -> bytes:
    data, begin = bytearray(tar.read_bytes()), header_of(tar, 5)
    data[begin : begin + 100] = bytes(range(100))
    return bytes(data)


def cut_in_header(tar: Path) -> bytes:
    return tar.read_bytes()[: header_of(tar, 5) + 200]


def cut_between(tar: Path) -> bytes:
    return tar.read_bytes()[: header_of(tar, 6)]


def zero_in_the_middle(tar: Path) -> bytes:
    data, begin = bytearray(tar.read_bytes()), header_of(tar, 6)
    data[begin : begin + BLOCK] = bytes(BLOCK)
    return bytes(data)


def twice(tar: Path) -> bytes:
    return tar.read_bytes() * 2


def empty(tar: Path) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [tear, cut_in_header, cut_between, zero_in_the_middle, twice, empty])
def test_a_tar_that_is_not_whole_is_one_line_and_no_smaller_set(
    tmp_path: Path, damage: Callable[[Path], bytes]
) -> None:
    tar = write(tmp_path / "set")
    tar.write_bytes(damage(tar))
    assert f"{tar} is damaged or no tar: " in complaint(tar.parent)


@pytest.mark.parametrize("labels", ["{broken", "\x00\x01", '{"mood": "cal', "[" * 100_000])
def test_labels_that_are_no_json_name_their_file(tmp_path: Path, labels: str) -> None:
    tar = write(tmp_path / "set", labels)
    assert f"{tar}: 000002.json is no JSON" in complaint(tar.parent)


@pytest.mark.parametrize("name", ["../outside/{:06d}", "/tmp/outside/{:06d}", "a/../../{:06d}"])
def test_no_name_in_a_tar_leads_out_of_the_set(tmp_path: Path, name: str) -> None:
    tar = write(tmp_path / "set", name=name)
    index_shards(str(tar.parent))
    assert open_index(str(tar.parent), "train").header.num_samples == 6
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {
        *("set/dataset.json", "set/train-000000.tar", "set/train/index.json", "set/train/shards.npz"),
        "set/train/train-000000.npz",
    }
