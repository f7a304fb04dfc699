"""Faults between a real stream and a real S3 server: what passes leaves no trace, what stays is one line.

It reads through a proxy that breaks chosen requests: in this process, and once of each kind in loader processes.
"""

import os
import struct
import time
import zlib
from collections.abc import Generator
from pathlib import Path

import pytest

from hmtl_dist.data.config import DataConfig
from hmtl_dist.data.dataset.index import open_index
from hmtl_dist.data.storage import S3Storage
from hmtl_dist.data.stream.batches import Batch, Stream
from hmtl_dist.errors import UserError
from tests.data.stream.streaming import Resize, jpeg, make_plan, make_set
from tests.data.stream.test_batches import assert_same, kept
from tests.faults import proxy as faults
from tests.faults.proxy import Proxy, Rule, Rules
from tests.servers import S3Server

SIZES = [40, 40, 40]
SHARD = r"train/shard-000001\.tar"
CONFIG = DataConfig(url="unused", image_size=32, num_workers=0)
PROCESSES = CONFIG.model_copy(update={"num_workers": 2})


@pytest.fixture(scope="module")
def url(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set in S3, written past the proxy; read only."""
    return put(s3, tmp_path_factory.mktemp("set"))


def put(s3: S3Server, folder: Path, **options: object) -> str:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.env().items():
            patch.setenv(name, value)
        url = f"{s3.bucket()}/faces"
        make_set(url, folder, SIZES, **options)  # pyright: ignore[reportArgumentType]
        return url


@pytest.fixture
def proxy(s3_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> Generator[Proxy]:
    with faults.serve(s3_env.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


def load(url: str, config: DataConfig = CONFIG) -> tuple[list[Batch], int]:
    """All batches of an epoch, and how many requests were repeated for them, the index's included."""
    index = open_index(url, "train")
    with Stream(index, make_plan(index), Resize(), config, epochs=1) as stream:
        batches = [kept(batch) for batch in stream]
        # loader processes have storages of their own; in this process it is the index's
        return batches, stream.stats.retries + (index.storage.stats.retries if config.num_workers else 0)


@pytest.fixture(scope="module")
def expected(s3: S3Server, url: str) -> list[Batch]:
    """The batches without any fault."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.env().items():
            patch.setenv(name, value)
        return load(url)[0]


# --- what passes -------------------------------------------------------------------------------------------------

TRANSIENT = {
    "reset before the answer": faults.reset(),
    "reset inside the body": faults.reset(1500),
    "body cut short": faults.cut(1500),
    "500": faults.status(500, "InternalError"),
    "503 SlowDown": faults.status(503, "SlowDown"),
    "503 of a balancer": faults.status(503),
    "429": faults.status(429, "TooManyRequests"),
    "flipped bit": faults.flip(700),
    "length too small": faults.length(-500),
    "length too large": faults.length(500),
    "late answer": faults.delay(1.0),
}


HARMLESS = ("late answer", "length too large")
"""A range is read to the end that was asked for, whatever else the answer promises."""


@pytest.mark.parametrize("name", TRANSIENT)
def test_a_fault_that_passes_leaves_no_trace_in_the_batches(
    proxy: Proxy, url: str, expected: list[Batch], name: str
) -> None:
    proxy.plan = Rules(Rule(TRANSIENT[name], SHARD, times=2))
    batches, retries = load(url)
    assert_same(batches, expected)
    assert proxy.hits == 2
    assert retries == (0 if name in HARMLESS else 2)


def test_a_server_that_promises_too_much_throughout_is_read_to_the_end_of_each_object(
    proxy: Proxy, url: str, expected: list[Batch]
) -> None:
    proxy.plan = Rules(Rule(faults.length(500), "train/shard", times=10_000))
    assert_same(load(url)[0], expected)
    assert any(request.method == "HEAD" for request in proxy.requests)


@pytest.mark.nightly
def test_a_stalled_body_is_asked_for_again(proxy: Proxy, url: str, expected: list[Batch]) -> None:
    proxy.plan = Rules(Rule(faults.stall(1500), SHARD))
    batches, retries = load(url)
    assert_same(batches, expected)
    assert (proxy.hits, retries) == (1, 1)


@pytest.mark.nightly
def test_a_server_that_refuses_connections_for_a_while_is_waited_for(
    proxy: Proxy, url: str, expected: list[Batch]
) -> None:
    index = open_index(url, "train")
    config = PROCESSES.model_copy(update={"prefetch_batches": 1, "buffer_bytes": 1 << 20})
    batches: list[Batch] = []
    with Stream(index, make_plan(index), Resize(), config, epochs=1) as stream:
        batches.append(kept(next(stream)))
        with proxy.away():
            time.sleep(2.0)
        batches.extend(kept(batch) for batch in stream)
    assert_same(batches, expected)


@pytest.mark.parametrize("file", ["index.json", "shards.npz", "shard-000001.npz"])
def test_a_flipped_bit_of_the_index_is_read_again(proxy: Proxy, url: str, expected: list[Batch], file: str) -> None:
    proxy.plan = Rules(Rule(faults.flip(100), rf"train/{file}", "GET"))
    batches, retries = load(url)
    assert_same(batches, expected)
    assert (proxy.hits, retries >= 1) == (1, True)


@pytest.mark.parametrize("config", [CONFIG, PROCESSES], ids=["here", "processes"])
def test_faults_at_rate_leave_no_trace_in_the_batches(
    proxy: Proxy, url: str, expected: list[Batch], config: DataConfig
) -> None:
    proxy.plan = faults.Chaos(7, 0.3, [*TRANSIENT.values()], r"train/shard")
    assert_same(load(url, config)[0], expected)
    assert proxy.hits > 3


# --- what stays --------------------------------------------------------------------------------------------------


def complaint(url: str, config: DataConfig = CONFIG) -> str:
    """The one line with which reading ends, within a minute."""
    begun = time.monotonic()
    with pytest.raises(UserError) as caught:
        load(url, config)
    assert time.monotonic() - begun < 60
    assert "\n" not in str(caught.value)
    return str(caught.value)


PERMANENT = {
    "403": (faults.status(403, "AccessDenied"), ["access to ", SHARD, "is denied"]),
    "403 of a balancer": (faults.status(403), ["access to ", SHARD, "is denied"]),
    "404": (faults.status(404, "NoSuchKey"), [SHARD, "does not exist"]),
    "flipped bits": (faults.flip(700), ["sample 0000", SHARD, "differs from its index after 4 reads", "data verify"]),
    "clock skew": (faults.status(403, "RequestTimeTooSkewed"), ["this machine's clock differs too much"]),
    "expired credentials": (faults.status(400, "ExpiredToken"), ["have expired: renew them"]),
}


@pytest.mark.parametrize("name", PERMANENT)
def test_a_fault_that_stays_is_one_line_with_the_object_and_the_reason(proxy: Proxy, url: str, name: str) -> None:
    fault, words = PERMANENT[name]
    proxy.plan = Rules(Rule(fault, SHARD, times=10_000))
    line = complaint(url)
    assert all(word.replace("\\", "") in line for word in words), line


def test_a_loader_process_says_it_in_the_same_line(proxy: Proxy, url: str) -> None:
    fault, words = PERMANENT["403"]
    proxy.plan = Rules(Rule(fault, SHARD, times=10_000))
    line = complaint(url, PROCESSES)
    assert all(word.replace("\\", "") in line for word in words), line


def test_the_server_itself_refuses_a_request_dated_by_a_wrong_clock(proxy: Proxy, url: str) -> None:
    proxy.plan = Rules(Rule(faults.date(-3600), times=10_000))
    assert "this machine's clock differs too much" in complaint(url)


def test_a_host_that_has_no_address_is_one_line(s3_env: S3Server, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no-such-host.invalid:9")
    line = complaint(url)
    assert line.startswith(f"http://no-such-host.invalid:9 does not answer for {url}/train/index.json")


def test_a_port_nobody_listens_at_is_one_line(s3_env: S3Server, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert complaint(url).startswith(f"http://127.0.0.1:9 does not answer for {url}/train/index.json")


def test_an_object_replaced_while_it_is_read_is_one_line(proxy: Proxy, s3: S3Server, tmp_path: Path) -> None:
    url = put(s3, tmp_path)
    other = os.urandom(200_000)
    replace = faults.call(lambda: S3Storage(url, s3.access).write("train/shard-000001.tar", other), after=1500)
    proxy.plan = Rules(Rule(replace, SHARD))
    line = complaint(url)
    # Another request under way may find the new object first, by its digests.
    assert "was replaced while it was being read" in line or "differs from its index" in line
    assert f"{url}/train/shard-000001.tar" in line


# --- damaged objects ---------------------------------------------------------------------------------------------


@pytest.fixture
def broken(s3_env: S3Server, tmp_path: Path) -> tuple[str, S3Storage]:
    """A data set of its own, to be broken."""
    url = put(s3_env, tmp_path)
    return url, S3Storage(url, s3_env.access)


def test_a_truncated_tar_is_one_line(broken: tuple[str, S3Storage]) -> None:
    url, storage = broken
    tar = storage.read("train/shard-000001.tar")
    last = open_index(url, "train").samples(1).offset.max() + 10  # within the last picture
    storage.write("train/shard-000001.tar", tar[:last])
    assert f"{url}/train/shard-000001.tar has {last} bytes and ends before byte" in complaint(url)


def test_a_tar_without_its_second_half_is_one_line(broken: tuple[str, S3Storage]) -> None:
    url, storage = broken
    tar = storage.read("train/shard-000001.tar")
    storage.write("train/shard-000001.tar", tar[: len(tar) // 2])
    line = complaint(url)
    assert f"{url}/train/shard-000001.tar has {len(tar) // 2} bytes and ends before byte" in line or (
        f"{url}/train/shard-000001.tar is shorter than its index says" in line
    )


def test_a_shard_of_no_bytes_is_one_line(broken: tuple[str, S3Storage]) -> None:
    url, storage = broken
    storage.write("train/shard-000001.tar", b"")
    assert f"{url}/train/shard-000001.tar is shorter than its index says" in complaint(url)


def test_a_missing_index_says_how_to_make_one(broken: tuple[str, S3Storage]) -> None:
    url, storage = broken
    for key in ("dataset.json", "train/index.json"):
        storage.delete(key)
    assert complaint(url).endswith(f"index shards made elsewhere with 'hmtl-dist data index {url}'")


@pytest.mark.nightly
def test_an_index_of_other_shards_names_the_first_sample_that_differs(
    broken: tuple[str, S3Storage], s3: S3Server, tmp_path: Path
) -> None:
    url, storage = broken
    (tmp_path / "other").mkdir()
    other = S3Storage(put(s3, tmp_path / "other", side=40), s3.access)
    for info in [*other.list("train/")]:
        if not info.key.endswith(".tar"):
            storage.write(info.key, other.read(info.key))
    line = complaint(url)
    assert line.startswith("sample ")
    assert "differs from its index" in line


def test_an_index_of_a_newer_table_is_refused(broken: tuple[str, S3Storage]) -> None:
    url, storage = broken
    table = storage.read("train/shard-000000.npz")
    storage.write("train/shard-000001.npz", table)
    line = complaint(url)
    assert f"{url}/train/shard-000001.npz is damaged or was replaced" in line


def test_a_header_that_is_no_json_is_one_line(broken: tuple[str, S3Storage]) -> None:
    url, storage = broken
    storage.write("train/index.json", storage.read("train/index.json")[:-40])
    assert f"{url}/train/index.json cannot be read by this version" in complaint(url)


# --- damaged samples ---------------------------------------------------------------------------------------------


def bomb(side: int) -> bytes:
    """A PNG of a few kilobytes that claims to be a picture of 192 megabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100_000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (b"no picture at all" * 20, "no picture that can be decoded"),
        (bomb(8_000), "a picture of 8000 x 8000 pixels; at most 50,000,000 pixels are decoded"),
        (jpeg(1)[:300], ""),
    ],
    ids=["undecodable", "gigantic", "cut"],
)
def test_a_damaged_picture_gives_up_its_slot_and_is_named(
    s3_env: S3Server, tmp_path: Path, picture: bytes, reason: str
) -> None:
    url = put(s3_env, tmp_path, pictures={50: picture})
    index = open_index(url, "train")
    config = CONFIG.model_copy(update={"max_bad_share": 0.05})
    with Stream(index, make_plan(index), Resize(), config, epochs=1) as stream:
        batches = [kept(batch) for batch in stream]
        (damaged,) = stream.stats.damaged_samples
    assert (damaged.sample_id, damaged.key, damaged.shard) == (50, "000050", f"{index.url}/train/shard-000001.tar")
    assert reason in damaged.reason
    assert sum(int((batch.weight == 0).sum()) for batch in batches) == 1


def test_too_many_damaged_pictures_end_the_run_naming_one(s3_env: S3Server, tmp_path: Path) -> None:
    url = put(s3_env, tmp_path, broken=range(0, 120, 2))
    line = complaint(url)
    assert "pictures cannot be decoded (the last: 0" in line
    assert "more than data.max_bad_share=0.01" in line
