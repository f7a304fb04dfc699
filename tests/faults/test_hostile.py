"""Input that means harm: nothing is unpickled, nothing is written or read outside its folder, no bomb goes off."""

import hashlib
import io
import json
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hmtl_dist.config.io import load_tree
from hmtl_dist.data.catalog.registry import open_data_set
from hmtl_dist.data.dataset.adapter import Box, Rejected, RejectedError
from hmtl_dist.data.dataset.foreign import index_shards
from hmtl_dist.data.dataset.index import open_index
from hmtl_dist.data.dataset.pictures import PictureSettings, store_picture
from hmtl_dist.data.dataset.schema import IndexHeader
from hmtl_dist.data.dataset.tables import decode_table, encode_table, text_column
from hmtl_dist.data.decode import DecodeError, decode
from hmtl_dist.engine.checkpoint import load_checkpoint
from hmtl_dist.errors import UserError
from hmtl_dist.inference.predictor import Predictor
from hmtl_dist.run_config import RunConfig
from tests.data.catalog.fabricate import affectnet_2021
from tests.data.stream.streaming import jpeg
from tests.faults.mutated import make_checkpoints, make_shards

# --- pickles ------------------------------------------------------------------------------------------------------


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.sprung,)


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path / "sprung")


def pickled_npz(trap: Trap) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, offset=np.array([trap], dtype=object))
    return buffer.getvalue()


def test_the_trap_springs_where_something_is_unpickled(trap: Trap) -> None:
    with np.load(io.BytesIO(pickled_npz(trap)), allow_pickle=True) as columns:
        assert columns["offset"].shape == (1,)
    assert trap.sprung.exists()


def test_no_table_is_unpickled(trap: Trap) -> None:
    with pytest.raises(ValueError, match="is no plain column"):
        decode_table(pickled_npz(trap))
    assert not trap.sprung.exists()


def test_no_label_is_unpickled(tmp_path: Path, trap: Trap) -> None:
    source = affectnet_2021(tmp_path / "set", 2, 1)
    np.save(source / "train_set/annotations/0_val.npy", np.array(trap, dtype=object), allow_pickle=True)
    (rejected,) = [ref for ref in open_data_set("affectnet", source).refs() if isinstance(ref, Rejected)]
    assert rejected.reason == "0_val.npy is missing or holds no single value"
    assert not trap.sprung.exists()


def test_no_checkpoint_is_unpickled(tmp_path: Path, trap: Trap) -> None:
    make_checkpoints(tmp_path / "run")
    folder = tmp_path / "run/step-00000006"
    buffer = io.BytesIO()
    torch.save({"weight": trap}, buffer)
    (folder / "model.safetensors").write_bytes(buffer.getvalue())
    content = json.loads((folder / "manifest.json").read_text())["content"]
    content["files"]["model"] = {
        "num_bytes": len(buffer.getvalue()),
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
    }
    seal = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({"content": content, "sha256": seal}))
    with pytest.raises(UserError, match=r"is damaged: model\.safetensors"):
        load_checkpoint(str(folder))
    assert not trap.sprung.exists()


def test_no_model_is_unpickled(tmp_path: Path, trap: Trap) -> None:
    info = {"image_size": 32, "model": {"backbone": "test_byobnet"}, "augment": {}, "tasks": {}}
    (tmp_path / "model.json").write_text(json.dumps(info))
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(trap))
    with pytest.raises(UserError, match=r"model\.safetensors: does not fit"):
        Predictor(tmp_path)
    assert not trap.sprung.exists()


# --- names --------------------------------------------------------------------------------------------------------


def reseal(folder: Path, **columns: Any) -> None:
    """Changes columns of the table of shards, so that the digests fit."""
    split = folder / "train"
    table = encode_table(decode_table((split / "shards.npz").read_bytes()) | columns)
    header = IndexHeader.model_validate_json((split / "index.json").read_bytes())
    (split / "shards.npz").write_bytes(table)
    (split / "index.json").write_text(header.sealed(table).model_dump_json())


@pytest.mark.parametrize("name", ["../outside.tar", "/etc/passwd", "train/../../outside.tar"])
def test_no_name_in_an_index_leads_out_of_the_set(tmp_path: Path, name: str) -> None:
    (tmp_path / "set").mkdir()
    make_shards(tmp_path / "set")
    (tmp_path / "outside.tar").write_bytes(b"0" * 100_000)
    reseal(tmp_path / "set", name=text_column([name, *(f"train/shard-{n:06d}.tar" for n in (1, 2))]))
    index = open_index(str(tmp_path / "set"), "train")
    with pytest.raises(UserError, match="is not allowed: give a relative name"):
        index.storage.read(index.names[0], start=0, length=10)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_a_tar_are_refused_rather_than_left_out(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "train-000000.tar", "w") as tar:
        for number in range(2):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = len(jpeg(number))
            if number:
                info.type, info.linkname, info.size = kind, "/etc/passwd" if kind == tarfile.SYMTYPE else "0.jpg", 0
            tar.addfile(info, io.BytesIO(jpeg(number)))
    with pytest.raises(UserError, match=r"1\.jpg is a link, not a file"):
        index_shards(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["train-000000.tar"]


def test_names_that_are_no_utf8_are_named_as_far_as_they_can_be(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-000000.tar", "w") as tar:
        info = tarfile.TarInfo("caf\udce9.jpg")
        info.size = len(jpeg(1))
        tar.addfile(info, io.BytesIO(jpeg(1)))
    with pytest.raises(UserError, match=r"the name 'caf\?' is no UTF-8"):
        index_shards(str(tmp_path))


# --- bombs --------------------------------------------------------------------------------------------------------

MUCH = 64 << 20
"""Bytes that reading something small may not take."""


@pytest.fixture
def frugal() -> Any:
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MUCH


@pytest.mark.usefixtures("frugal")
def test_a_table_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as entry,
    ):
        for _ in range(128):
            entry.write(bytes(1 << 20))
    with pytest.raises(ValueError, match="is compressed"):
        decode_table((tmp_path / "bomb.npz").read_bytes())


@pytest.mark.usefixtures("frugal")
def test_a_column_that_claims_more_than_it_has_is_refused() -> None:
    table = encode_table({"x": np.zeros((10, 10, 10))})
    with pytest.raises(ValueError, match="is cut"):
        decode_table(table.replace(b"(10, 10, 10)", b"(99,9999,99)"))


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize("length", [(1 << 64) - 1, 1 << 40, 100 << 20])
def test_a_header_of_absurd_length_is_refused(tmp_path: Path, length: int) -> None:
    info = {"image_size": 32, "model": {"backbone": "test_byobnet"}, "augment": {}, "tasks": {}}
    (tmp_path / "model.json").write_text(json.dumps(info))
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(UserError, match=r"model\.safetensors: does not fit"):
        Predictor(tmp_path)


def gif(side: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", side, side) + b"\0\0\0,\0\0\0\0" + struct.pack("<HH", side, side) + b"\0\2\0;"


def bitmap(side: int) -> bytes:
    return b"BM" + struct.pack("<IHHI", 154, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, *[0] * 6)


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize("picture", [gif(65_000), bitmap(60_000), gif(9_000), bitmap(9_000)])
def test_a_gigantic_picture_is_refused_by_its_header(picture: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(picture)
    with pytest.raises(RejectedError):
        store_picture(picture, PictureSettings())


@pytest.mark.usefixtures("frugal")
def test_a_box_that_would_make_a_gigantic_picture_is_refused() -> None:
    wide = io.BytesIO()
    Image.new("L", (8_000, 8)).save(wide, "PNG")
    with pytest.raises(RejectedError, match="does not fit the picture"):
        store_picture(wide.getvalue(), PictureSettings(), Box(0, 0, 8_000, 8_000))


LAUGHS = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
)


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize("text", [LAUGHS, "name: !!python/object/apply:os.getcwd []"])
def test_a_recipe_is_plain_data(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError, match=r"aliases|could not determine a constructor for the tag"):
        load_tree(RunConfig, str(tmp_path / "recipe.yaml"))
