"""Shards kept on a machine's disk: the same batches, fewer requests, whatever dies or fills up meanwhile."""

import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import BinaryIO

import pytest
from typing_extensions import override

from hmtl_dist.data.config import CacheConfig, DataConfig
from hmtl_dist.data.dataset.index import ShardIndex, open_index
from hmtl_dist.data.storage import S3Storage, Storage, open_storage
from hmtl_dist.data.storage.cache import ShardCache
from hmtl_dist.data.storage.local import LocalStorage
from hmtl_dist.data.stream.batches import Batch, Stream
from hmtl_dist.errors import UserError
from tests.data.stream.streaming import Resize, make_plan, make_set
from tests.data.stream.test_batches import assert_same, kept
from tests.servers import S3Server

SIZES = [40, 40, 40]
CONFIG = DataConfig(url="unused", image_size=32, num_workers=0)


@pytest.fixture(scope="module")
def url(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """A data set in S3; read only."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.env().items():
            patch.setenv(name, value)
        url = f"{s3.bucket()}/faces"
        make_set(url, tmp_path_factory.mktemp("set"), SIZES)
        yield url


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    cache = ShardCache(tmp_path / "cache", 1 << 30)
    cache.prepare()
    return cache


def files(cache: ShardCache) -> list[Path]:
    return [path for path in cache.folder.iterdir() if path.is_file()]


def epochs(index: ShardIndex, config: DataConfig = CONFIG) -> list[list[Batch]]:
    """The batches of two epochs."""
    plan = make_plan(index)
    with Stream(index, plan, Resize(), config, epochs=2) as stream:
        batches = [kept(batch) for batch in stream]
    return [[batch for batch in batches if batch.epoch == epoch] for epoch in (0, 1)]


def spent(index: ShardIndex, epoch: int) -> tuple[int, int]:
    """Requests and bytes that an epoch alone takes of an index that is open."""
    before = index.storage.stats.requests, index.storage.stats.bytes_read
    with Stream(index, make_plan(index), Resize(), CONFIG, start=(epoch, 0), epochs=1) as stream:
        for _ in stream:
            pass
    return index.storage.stats.requests - before[0], index.storage.stats.bytes_read - before[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_batches_come_with_and_without(url: str, cache: ShardCache, workers: int) -> None:
    config = CONFIG.model_copy(update={"num_workers": workers})
    for plain, through in zip(
        epochs(open_index(url, "train"), config), epochs(open_index(url, "train", cache), config), strict=True
    ):
        assert_same(through, plain)
    assert len(files(cache)) == 2 * len(SIZES)  # tars and side tables


def test_the_second_epoch_asks_for_nothing(url: str, cache: ShardCache) -> None:
    plain, through = open_index(url, "train"), open_index(url, "train", cache)
    first, second = spent(plain, 0), spent(plain, 1)
    assert second[0] >= len(SIZES)
    assert second[1] > 0.8 * first[1]
    requests, num_bytes = spent(through, 0)
    assert requests == 2 * len(SIZES)  # each tar and each side table once
    assert num_bytes == sum(path.stat().st_size for path in files(cache))
    assert spent(through, 1) == (0, 0)


def test_a_set_in_a_folder_is_not_copied(tmp_path: Path, cache: ShardCache) -> None:
    url = str(tmp_path / "set")
    make_set(url, tmp_path, [40])
    epochs(open_index(url, "train", cache))
    assert files(cache) == []


def test_section_of_the_configuration_leads_here(url: str, tmp_path: Path) -> None:
    from hmtl_dist.data.stream.selection import open_training

    config = DataConfig(url=url, cache=CacheConfig(folder=str(tmp_path / "kept"), max_bytes=1 << 30))
    spent(open_training(config).index.parts[0], 0)
    assert len(list((tmp_path / "kept").iterdir())) == 2 * len(SIZES) + 1


# --- many processes ----------------------------------------------------------------------------------------------


def _fetch(url: str, cache: ShardCache, begin: float) -> tuple[int, str]:
    index = open_index(url, "train", cache)
    before = index.storage.stats.requests
    time.sleep(max(0.0, begin - time.time()))
    digest = hashlib.sha256(b"".join(index.read(shard, 0, int(index.num_bytes[shard])) for shard in range(len(index))))
    return index.storage.stats.requests - before, digest.hexdigest()


@pytest.mark.nightly
def test_of_several_processes_one_fetches_a_shard(url: str, cache: ShardCache) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        found = pool.starmap(_fetch, [(url, cache, time.time() + 5)] * 4)
    assert sum(requests for requests, _ in found) == len(SIZES)
    plain = open_index(url, "train")
    tars = b"".join(plain.storage.read(name) for name in plain.names)
    assert {digest for _, digest in found} == {hashlib.sha256(tars).hexdigest()}


class Stalls(S3Storage):
    """Gives half of an object, and then nothing more."""

    @override
    def open_read(self, key: str) -> BinaryIO:
        data = self.read(key)

        class Half:
            sent = False

            def read(self, size: int) -> bytes:
                if self.sent:
                    sys.stdout.write("half\n")
                    sys.stdout.flush()
                    time.sleep(600)
                self.sent = True
                return data[: len(data) // 2]

            def __enter__(self) -> "Half":
                return self

            def __exit__(self, *_: object) -> None:
                pass

        return Half()  # pyright: ignore[reportReturnType]


def half(url: str, folder: str) -> None:
    """Fetches half a shard; to be killed."""
    index = open_index(url, "train", ShardCache(Path(folder), 1 << 30))
    index.storage = Stalls(url)
    index.read(0, 0, 10)


@pytest.mark.nightly
def test_what_a_killed_process_has_half_fetched_is_never_used(url: str, cache: ShardCache) -> None:
    program = f"from tests.data.storage.test_cache import half; half({url!r}, {str(cache.folder)!r})"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    (partial,) = [path for path in files(cache) if path.suffix == ".partial"]
    index = open_index(url, "train", cache)

    assert partial.stat().st_size == index.num_bytes[0]  # as large as if it were whole
    size = int(index.num_bytes[0])
    assert index.read(0, 0, size) == index.storage.read(index.names[0])
    assert (partial.exists(), partial.with_suffix("").exists()) == (False, True)


# --- bounds and faults -------------------------------------------------------------------------------------------


@pytest.fixture
def objects(tmp_path: Path) -> LocalStorage:
    """Five objects of 1,000 bytes."""
    storage = LocalStorage(tmp_path / "objects")
    for number in range(5):
        storage.write(str(number), bytes([number]) * 1000)
    return storage


def small(tmp_path: Path, max_bytes: int, in_use_seconds: float = 0.0) -> ShardCache:
    cache = ShardCache(tmp_path / "small", max_bytes, in_use_seconds)
    cache.prepare()
    return cache


def take(cache: ShardCache, storage: Storage, number: int) -> bool:
    """Reads a part of an object; returns whether the storage was asked."""
    before = storage.stats.requests
    data = bytes([number]) * 1000
    assert cache.read(storage, str(number), hashlib.sha256(data).digest(), 1000, start=990, length=10) == data[990:]
    return storage.stats.requests > before


def test_what_was_not_read_for_longest_makes_room(tmp_path: Path, objects: LocalStorage) -> None:
    cache = small(tmp_path, 3500)
    assert [take(cache, objects, number) for number in (0, 1, 2)] == [True] * 3
    assert not take(cache, objects, 0)
    assert take(cache, objects, 3)  # in the place of 1
    assert [take(cache, objects, number) for number in (0, 2, 3)] == [False] * 3
    assert take(cache, objects, 1)
    assert sum(path.stat().st_size for path in files(cache)) == 3000


def test_what_is_being_read_stays_and_the_rest_is_read_past_the_cache(tmp_path: Path, objects: LocalStorage) -> None:
    cache = small(tmp_path, 2500, in_use_seconds=100.0)
    assert [take(cache, objects, number) for number in (0, 1, 2)] == [True] * 3
    assert [take(cache, objects, number) for number in (0, 1, 2)] == [False, False, True]
    for path in files(cache):
        os.utime(path, (0, time.time() - 101))
    assert take(cache, objects, 2)
    assert not take(cache, objects, 2)
    assert len(files(cache)) == 2


def test_object_larger_than_the_cache_is_read_past_it(tmp_path: Path, objects: LocalStorage) -> None:
    cache = small(tmp_path, 1500)
    assert take(cache, objects, 1)
    objects.write("0", bytes(1600))
    digest = hashlib.sha256(bytes(1600)).digest()
    for _ in range(2):
        before = objects.stats.requests
        assert cache.read(objects, "0", digest, 1600, start=0, length=10) == bytes(10)
        assert objects.stats.requests == before + 1
    assert not take(cache, objects, 1)  # and nothing else had to go for it


def test_what_a_killed_process_left_makes_room_too(tmp_path: Path, objects: LocalStorage) -> None:
    cache = small(tmp_path, 1500)
    left = cache.folder / ("ab" * 32 + ".partial")
    left.write_bytes(b"x" * 1000)
    assert take(cache, objects, 0)
    assert not left.exists()
    assert not take(cache, objects, 0)


def overwrite(path: Path) -> None:
    path.write_bytes(b"y" * 1000)


def cut(path: Path) -> None:
    os.truncate(path, 5)


@pytest.mark.parametrize("spoil", [overwrite, cut])
def test_a_file_whose_disk_is_at_fault_is_fetched_anew(
    url: str, cache: ShardCache, spoil: Callable[[Path], object]
) -> None:
    index = open_index(url, "train", cache)
    expected = epochs(index)
    for path in files(cache):
        spoil(path)
    again = open_index(url, "train", cache)
    for batches, before in zip(epochs(again), expected, strict=True):
        assert_same(batches, before)
    assert spent(again, 1) == (0, 0)


def test_wrong_bytes_are_not_kept(tmp_path: Path, objects: LocalStorage) -> None:
    cache = small(tmp_path, 1 << 20)
    wrong = hashlib.sha256(b"other").digest()
    assert cache.read(objects, "0", wrong, 1000, start=0, length=4) == bytes(4)
    assert files(cache) == []
    assert objects.stats.retries == 1


def test_folder_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^data\.cache\.folder: .*file/cache cannot be used \(.*\); give a folder"):
        ShardCache(tmp_path / "file" / "cache", 1 << 20).prepare()


def test_full_disk_costs_only_the_cache(
    tmp_path: Path, objects: LocalStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """/dev/full stands for the disk: what is written there finds no space."""
    cache = small(tmp_path, 1 << 20)
    for number in range(2):
        name = hashlib.sha256(bytes([number]) * 1000).hexdigest()
        (cache.folder / f"{name}.partial").symlink_to("/dev/full")
        assert take(cache, objects, number)
    assert len([line for line in caplog.messages if "cannot keep shards" in line]) == 1


def test_folder_is_for_its_owner_alone(cache: ShardCache) -> None:
    assert cache.folder.stat().st_mode & 0o077 == 0
    assert open_storage(str(cache.folder)).exists("locks/00")
