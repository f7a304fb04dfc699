"""Storage: what both kinds of root do alike, and what only a server can go wrong with."""

import gc
import http.server
import importlib
import os
import pickle
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from hmtl_dist.data.storage import (
    ObjectChangedError,
    ObjectMissingError,
    S3Storage,
    Storage,
    StorageUnavailableError,
    open_storage,
)
from hmtl_dist.data.storage import client as client_module
from hmtl_dist.data.storage import faults as faults_module
from hmtl_dist.data.storage import s3 as s3_module
from hmtl_dist.data.storage.client import read_service_data
from hmtl_dist.data.storage.config import OUTAGE, REACHED
from hmtl_dist.errors import UserError
from tests.servers import S3Server

MEBIBYTE = 1 << 20


@pytest.fixture(params=["s3", "local"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty root of either kind."""
    if request.param == "local":
        return open_storage(str(tmp_path / "root"))
    server: S3Server = request.getfixturevalue("s3_env")
    return open_storage(server.bucket() + "/some/prefix")


# --- both kinds --------------------------------------------------------------------------------------------------


def test_an_object_is_read_as_written(root: Storage) -> None:
    data = os.urandom(3 * MEBIBYTE + 17)
    root.write("folder/object", data)
    assert root.read("folder/object") == data


def test_an_empty_object_is_read_as_written(root: Storage) -> None:
    root.write("empty", b"")
    assert root.read("empty") == b""


def test_a_range_is_exactly_the_bytes_asked_for(root: Storage) -> None:
    data = os.urandom(MEBIBYTE)
    root.write("object", data)
    assert root.read("object", start=1000, length=300_000) == data[1000:301_000]


def test_a_range_may_go_on_to_the_end(root: Storage) -> None:
    root.write("object", b"0123456789")
    assert root.read("object", start=7) == b"789"


def test_ranges_come_in_the_order_asked_for(root: Storage) -> None:
    data = os.urandom(100_000)
    root.write("object", data)
    ranges = [(start, 1000) for start in range(90_000, 0, -7000)]
    assert root.read_ranges("object", ranges) == [data[start : start + length] for start, length in ranges]


@pytest.mark.parametrize("start", [5, 50])
def test_a_range_past_the_end_is_an_error(root: Storage, start: int) -> None:
    root.write("object", b"0123456789")
    with pytest.raises(UserError, match="build it again"):
        root.read("object", start=start, length=10)


def test_a_stream_reads_the_whole_object(root: Storage) -> None:
    data = os.urandom(MEBIBYTE + 3)
    root.write("object", data)
    with root.open_read("object") as stream:
        assert b"".join(iter(lambda: stream.read(70_001), b"")) == data


def test_stat_tells_the_size(root: Storage) -> None:
    root.write("object", b"12345")
    assert root.stat("object").size == 5


def test_stat_tells_another_tag_for_another_content(root: Storage) -> None:
    root.write("object", b"12345")
    before = root.stat("object").etag
    root.write("object", b"54321")
    assert root.stat("object").etag != before


def test_exists_tells_objects_from_what_is_not_there(root: Storage) -> None:
    root.write("folder/object", b"x")
    assert [root.exists(key) for key in ("folder/object", "folder", "folder/other")] == [True, False, False]


@pytest.mark.parametrize("operation", ["read", "stat", "open_read"])
def test_a_missing_object_is_named(root: Storage, operation: str) -> None:
    calls: dict[str, Callable[[str], object]] = {
        "read": root.read,
        "stat": root.stat,
        "open_read": lambda key: root.open_read(key).read(),
    }
    with pytest.raises(ObjectMissingError, match=r"train/index\.json does not exist"):
        calls[operation]("train/index.json")


def test_listing_is_sorted_and_limited_to_the_prefix(root: Storage) -> None:
    for key in ("train/b", "train/a", "train-old/c", "val/d"):
        root.write(key, key.encode())
    assert [(info.key, info.size) for info in root.list("train/")] == [("train/a", 7), ("train/b", 7)]


def test_listing_an_empty_root_lists_nothing(root: Storage) -> None:
    assert [*root.list()] == []


def test_a_deleted_object_is_gone_and_may_be_deleted_again(root: Storage) -> None:
    root.write("object", b"x")
    root.delete("object")
    root.delete("object")
    assert not root.exists("object")


def test_a_file_comes_back_after_upload_and_download(root: Storage, tmp_path: Path) -> None:
    data = os.urandom(2 * MEBIBYTE + 1)
    (tmp_path / "source").write_bytes(data)
    root.upload("copy", tmp_path / "source")
    root.download("copy", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == data


def test_a_download_of_nothing_leaves_no_file(root: Storage, tmp_path: Path) -> None:
    with pytest.raises(ObjectMissingError):
        root.download("nothing", tmp_path / "sub" / "target")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_uploading_a_missing_file_names_it(root: Storage, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        root.upload("copy", tmp_path / "nowhere")


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../outside", "a/../../outside", "a//b", "a/.", "a\\b", "a/"])
def test_a_key_that_could_leave_the_root_is_refused(root: Storage, key: str) -> None:
    with pytest.raises(UserError, match="is not allowed"):
        root.write(key, b"x")


def test_a_storage_travels_by_its_url(root: Storage) -> None:
    root.write("object", b"here")
    copy: Storage = pickle.loads(pickle.dumps(root))  # noqa: S301
    assert (copy.url, copy.read("object")) == (root.url, b"here")


def test_bytes_read_are_counted(root: Storage) -> None:
    root.write("object", bytes(1000))
    root.read("object", start=10, length=500)
    assert root.stats.bytes_read == 500


@pytest.mark.parametrize("url", ["gs://bucket/x", "http://host/x", "", "s3://", "s3:///key", "s3://bucket/../x"])
def test_an_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(UserError):
        open_storage(url)


def test_credentials_in_an_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(UserError) as caught:
        open_storage("s3://name:hush@bucket/x")
    assert "hush" not in str(caught.value)


# --- local -------------------------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    root = open_storage(str(tmp_path))
    root.write("object", b"old")
    with pytest.raises(TypeError):
        root.write("object", "text is no bytes")  # pyright: ignore[reportArgumentType]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"object": b"old"}


def test_a_reader_keeps_the_file_it_has_opened(tmp_path: Path) -> None:
    root = open_storage(str(tmp_path))
    root.write("object", b"old")
    with root.open_read("object") as stream:
        root.write("object", b"new")
        assert stream.read() == b"old"


def test_a_file_in_the_place_of_the_root_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "root").write_bytes(b"")
    with pytest.raises(UserError):
        open_storage(str(tmp_path / "root")).write("object", b"x")


# --- S3 ----------------------------------------------------------------------------------------------------------


def test_a_large_file_is_uploaded_in_parts(s3_env: S3Server, tmp_path: Path) -> None:
    root = open_storage(s3_env.bucket())
    data = os.urandom(40 * MEBIBYTE)
    (tmp_path / "source").write_bytes(data)
    root.upload("copy", tmp_path / "source")
    assert root.stat("copy").etag.endswith("-3")  # S3's own mark of an object of three parts
    assert root.read("copy") == data


def test_more_objects_than_fit_in_one_answer_are_listed(s3_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module, "PAGE_OBJECTS", 4)
    root = open_storage(s3_env.bucket())
    keys = [f"folder/{number:02d}" for number in range(11)]
    for key in keys:
        root.write(key, b"")
    requests = root.stats.requests
    assert [info.key for info in root.list("folder/")] == keys
    assert root.stats.requests - requests == 3


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # the fork is on purpose
def test_a_child_of_a_fork_uses_a_connection_of_its_own(s3_env: S3Server) -> None:
    root = open_storage(s3_env.bucket())
    root.write("object", b"x")
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(sender, b"".join(root.read_ranges("object", [(0, 1), (0, 1)])))
        finally:
            os._exit(0)
    os.close(sender)
    assert os.waitpid(child, 0)[1] == 0
    with os.fdopen(receiver, "rb") as pipe:
        assert (pipe.read(), root.read("object")) == (b"xx", b"x")


def test_a_proxy_is_not_asked_for_this_machine(s3_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert not open_storage(s3_env.bucket()).exists("object")


def test_a_storage_is_shared_by_threads(s3_env: S3Server) -> None:
    root = open_storage(s3_env.bucket())
    root.write("object", b"x" * 1000)
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(root.read("object"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [b"x" * 1000] * 8


def test_a_link_to_nothing_in_a_folder_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert [info.key for info in open_storage(str(tmp_path)).list()] == ["there"]


def test_a_storage_with_credentials_of_its_own_is_not_pickled(s3: S3Server) -> None:
    with pytest.raises(TypeError, match="secret"):
        pickle.dumps(S3Storage("s3://bucket", s3.access))


def test_no_representation_shows_the_secret(s3: S3Server) -> None:
    assert s3.admin.secret_access_key not in repr(s3.access) + repr(S3Storage("s3://bucket", s3.access))


def test_virtual_style_puts_the_bucket_into_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMTL_S3_ADDRESSING", "virtual")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3.invalid:9")
    monkeypatch.setattr(s3_module, "FIRST_CONTACT_SECONDS", 0.0)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    asked: list[str] = []

    def resolve(host: str, *_rest: object, **_more: object) -> list[object]:
        asked.append(host)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(StorageUnavailableError):
        open_storage("s3://bucket").exists("object")
    assert asked == ["bucket.s3.invalid"]


# --- what a person can get wrong ---------------------------------------------------------------------------------


def _complaint(url: str) -> str:
    with pytest.raises(UserError) as caught:
        open_storage(url).read("object")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_missing_bucket_is_named(s3_env: S3Server) -> None:
    assert "bucket 'not-there' does not exist" in _complaint("s3://not-there/x")


def test_writing_does_not_make_a_missing_bucket(s3_env: S3Server) -> None:
    with pytest.raises(UserError, match="bucket 'not-there' does not exist"):
        open_storage("s3://not-there").write("object", b"x")


def test_an_upload_to_a_missing_bucket_names_the_bucket(s3_env: S3Server, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    with pytest.raises(UserError, match="bucket 'not-there' does not exist"):
        open_storage("s3://not-there").upload("object", tmp_path / "source")


def test_a_stat_in_a_missing_bucket_names_the_bucket(s3_env: S3Server) -> None:
    with pytest.raises(UserError, match="bucket 'not-there' does not exist"):
        open_storage("s3://not-there").exists("object")


def test_a_listing_of_a_missing_bucket_names_the_bucket(s3_env: S3Server) -> None:
    with pytest.raises(UserError, match="bucket 'not-there' does not exist"):
        next(open_storage("s3://not-there").list(), None)


def test_a_denied_access_says_so(s3_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3_env.bucket()
    for name, value in s3_env.env(s3_env.reader).items():
        monkeypatch.setenv(name, value)
    assert "is denied" in _complaint(bucket)


def test_an_unknown_access_key_says_which_variable(s3_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NOBODY")
    assert "check AWS_ACCESS_KEY_ID" in _complaint(s3_env.bucket())


def test_a_wrong_secret_says_which_variable_and_not_its_value(
    s3_env: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    complaint = _complaint(s3_env.bucket())
    assert "check AWS_SECRET_ACCESS_KEY" in complaint
    assert "hush" not in complaint


def test_missing_credentials_say_how_to_give_them(s3_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no credentials" in _complaint(s3_env.bucket())


def test_an_unknown_profile_says_so(s3_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "check AWS_PROFILE" in _complaint("s3://bucket")


def test_a_server_that_is_down_is_given_up_soon(s3_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module, "FIRST_CONTACT_SECONDS", 0.5)
    with socket.socket() as unused:  # bound, not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        start = time.monotonic()
        assert "does not answer" in _complaint("s3://bucket")
        assert time.monotonic() - start < 5.0


def test_a_process_started_again_in_the_midst_of_a_run_waits_for_a_server_that_is_down(
    s3_env: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "FIRST_CONTACT_SECONDS", 0.0)
    monkeypatch.setenv(OUTAGE, "1.0")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for variable, waited in (("UNRELATED", False), (REACHED, True)):
        monkeypatch.setenv(variable, "1")
        storage = open_storage("s3://bucket-nobody-has-seen")
        with pytest.raises(StorageUnavailableError):
            storage.read("object")
        assert (storage.stats.retries > 0) == waited


def test_an_endpoint_that_is_no_url_says_so(s3_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:8333")
    assert "AWS_ENDPOINT_URL" in _complaint("s3://bucket")


def test_a_password_in_the_endpoint_is_not_repeated(s3_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module, "FIRST_CONTACT_SECONDS", 0.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://name:hush@127.0.0.1:9")
    assert "hush" not in _complaint("s3://bucket")


def test_a_bucket_name_that_cannot_be_one_is_named(s3_env: S3Server) -> None:
    assert "no valid bucket name" in _complaint("s3://not_a bucket!")


class _WebPage(http.server.BaseHTTPRequestHandler):
    """A server of another kind."""

    status = 200

    def do_GET(self) -> None:
        body = b"<!doctype html><html><body>Welcome<br></body></html>"
        self.send_response(self.status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.mark.parametrize("status", [200, 404, 405])
def test_a_server_of_another_kind_is_told_from_s3(
    s3_env: S3Server, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(_WebPage, "status", status)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _WebPage) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        assert "not like an S3 server" in _complaint("s3://bucket")
        server.shutdown()
    gc.collect()  # warns of a connection that was left open


# --- faults on the way -------------------------------------------------------------------------------------------


@dataclass
class Way:
    """A way to the server on which answers can be cut or held up.

    `faults` holds, for the next connections in turn, after how many bytes of answers what is to happen.
    """

    port: int
    faults: list[tuple[int, Callable[[], bool]]] = field(default_factory=list[tuple[int, Callable[[], bool]]])


def _cut() -> bool:
    return False


def _stall() -> bool:
    time.sleep(1.0)
    return False


@contextmanager
def _proxy(endpoint: str) -> Generator[Way]:
    """Passes bytes on as they are: the signature covers the Host header, which the client is told to keep."""
    target = urlsplit(endpoint)
    listener = socket.create_server(("127.0.0.1", 0))
    way = Way(listener.getsockname()[1])

    def pump(source: socket.socket, sink: socket.socket, fault: tuple[int, Callable[[], bool]] | None) -> None:
        passed = 0
        try:
            while data := source.recv(65_536):
                if fault is not None and passed + len(data) > fault[0]:
                    sink.sendall(data[: fault[0] - passed])
                    if not fault[1]():
                        break
                    fault = None
                sink.sendall(data)
                passed += len(data)
        except OSError:
            pass
        for end in (source, sink):
            shut(end)

    def shut(end: socket.socket) -> None:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)

    def serve(client: socket.socket) -> None:
        with client, socket.create_connection((target.hostname, target.port)) as server:
            fault = way.faults.pop(0) if way.faults else None
            request = threading.Thread(target=pump, args=(client, server, None))
            request.start()
            pump(server, client, fault)
            request.join()

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listener:
        yield way
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def way(s3_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> Generator[Way]:
    """The environment leads to the server by a way with faults."""
    monkeypatch.setattr(faults_module, "BACKOFF_BASE_SECONDS", 0.01)
    with _proxy(s3_env.endpoint) as way:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{way.port}")
        yield way


def _object(server: S3Server, size: int) -> tuple[str, bytes]:
    """Writes an object past the faulty way; returns its bucket and content."""
    bucket, data = server.bucket(), os.urandom(size)
    S3Storage(bucket, server.access).write("object", data)
    return bucket, data


def test_a_body_cut_short_is_read_to_its_end(s3: S3Server, way: Way) -> None:
    bucket, data = _object(s3, 2 * MEBIBYTE)
    way.faults = [(700_000, _cut), (900_000, _cut)]
    root = open_storage(bucket)
    assert root.read("object") == data
    assert root.stats.retries == 2


def test_what_was_read_before_the_cut_is_not_fetched_again(s3: S3Server, way: Way) -> None:
    bucket, _ = _object(s3, 2 * MEBIBYTE)
    way.faults = [(MEBIBYTE + 300_000, _cut)]
    root = open_storage(bucket)
    root.read("object")
    assert root.stats.bytes_read == 2 * MEBIBYTE


def test_a_range_cut_short_is_read_to_its_end(s3: S3Server, way: Way) -> None:
    bucket, data = _object(s3, 2 * MEBIBYTE)
    way.faults = [(400_000, _cut)]
    assert open_storage(bucket).read("object", start=100, length=MEBIBYTE) == data[100 : 100 + MEBIBYTE]


def test_a_stream_goes_on_after_a_cut(s3: S3Server, way: Way) -> None:
    bucket, data = _object(s3, 2 * MEBIBYTE)
    way.faults = [(700_000, _cut)]
    with open_storage(bucket).open_read("object") as stream:
        assert stream.read() == data


def test_an_answer_that_stalls_is_asked_for_again(s3: S3Server, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "READ_TIMEOUT_SECONDS", 0.3)
    bucket, data = _object(s3, 2 * MEBIBYTE)
    way.faults = [(700_000, _stall)]
    assert open_storage(bucket).read("object") == data


def test_a_request_cut_off_before_its_answer_is_sent_again(s3: S3Server, way: Way) -> None:
    bucket, _ = _object(s3, 1)
    way.faults = [(0, _cut)]
    root = open_storage(bucket)
    root.write("other", b"arrived")
    assert root.read("other") == b"arrived"


def test_an_upload_cut_off_is_repeated(s3: S3Server, way: Way, tmp_path: Path) -> None:
    bucket, _ = _object(s3, 1)
    (tmp_path / "source").write_bytes(bytes(MEBIBYTE))
    way.faults = [(0, _cut)]
    root = open_storage(bucket)
    root.upload("copy", tmp_path / "source")
    assert root.stat("copy").size == MEBIBYTE


def test_an_object_replaced_while_it_is_read_is_noticed(s3: S3Server, way: Way) -> None:
    bucket, _ = _object(s3, 2 * MEBIBYTE)

    def replace() -> bool:
        S3Storage(bucket, s3.access).write("object", os.urandom(2 * MEBIBYTE))
        return False

    way.faults = [(700_000, replace)]
    with pytest.raises(ObjectChangedError, match="was replaced"):
        open_storage(bucket).read("object")


def test_faults_that_do_not_end_are_given_up(s3: S3Server, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module, "FIRST_CONTACT_SECONDS", 0.3)
    monkeypatch.setenv(OUTAGE, "0.3")
    bucket, _ = _object(s3, 2 * MEBIBYTE)
    way.faults = [(0, _cut)] * 10_000
    with pytest.raises(StorageUnavailableError):
        open_storage(bucket).read("object")


def test_a_stream_closed_early_holds_no_connection(s3_env: S3Server) -> None:
    bucket, data = _object(s3_env, 4 * MEBIBYTE)
    root = open_storage(bucket)
    for _ in range(40):  # more than there are connections
        with root.open_read("object") as stream:
            assert stream.read(10) == data[:10]
    assert root.read("object", start=1, length=4) == data[1:5]


def test_preparing_for_s3_in_advance_fails_silently_where_it_is_not_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nowhere")
    with pytest.raises(UserError, match="AWS_PROFILE"):
        read_service_data()
    monkeypatch.delitem(sys.modules, "hmtl_dist.data.stream.preload_s3", raising=False)
    importlib.import_module("hmtl_dist.data.stream.preload_s3")


def test_clients_share_what_is_known_of_services(s3_env: S3Server) -> None:
    for _ in range(3):
        assert not open_storage(s3_env.bucket()).exists("object")
    paths = client_module._service_data(None).search_paths  # pyright: ignore[reportPrivateUsage]
    assert len(paths) == len(set(paths)) > 0
