# pyright: reportUnknownMemberType=false
# (boto3 types its clients only for the services whose stubs are installed)
"""Objects in S3, read, written and listed as often as it takes.

botocore retries a refused request, but neither a body that is cut short nor one that stalls. So its own retries are
off and every operation is repeated here, after exponential backoff with full jitter (Brooker 2015, "Exponential
Backoff And Jitter", AWS Architecture Blog); a read goes on where the body was cut, with `Range` and `If-Match`.
"""

import base64
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

import botocore.exceptions as boto_errors
import urllib3.exceptions
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.parsers import ResponseParserError
from typing_extensions import override

from hmtl_dist.config.addresses import start_it
from hmtl_dist.data.storage.base import (
    ObjectInfo,
    ObjectMissingError,
    Parts,
    Storage,
    StorageStats,
    StorageUnavailableError,
    check_key,
    check_prefix,
)
from hmtl_dist.data.storage.client import REQUESTS_IN_FLIGHT, S3Access, Session, without_credentials
from hmtl_dist.data.storage.config import REACHED, outage_seconds
from hmtl_dist.data.storage.faults import NOT_S3, SIGN_IN, Patience, refusal
from hmtl_dist.data.storage.local import file_errors, replace_file
from hmtl_dist.errors import UserError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef, HeadObjectOutputTypeDef

Result = TypeVar("Result")

FIRST_CONTACT_SECONDS = 5.0
"""How long faults are waited out by a storage that has never been answered: a wrong endpoint should not take long."""
PAGE_OBJECTS = 1000
"""Objects asked for in one answer of a listing; S3 gives no more."""
MULTIPART_BYTES = 16 << 20
"""Files larger than this are uploaded in parts of this size."""
CHUNK_BYTES = 1 << 20

_FAULTS = (
    boto_errors.BotoCoreError,
    boto_errors.ClientError,
    S3UploadFailedError,
    ResponseParserError,
    urllib3.exceptions.HTTPError,
    OSError,
)


_REACHED: set[tuple[str, str]] = set()
"""Endpoints and buckets that have answered this process, through whichever storage: an outage of theirs will pass."""


class S3Storage(Storage):
    """Objects under a prefix of a bucket; see `Storage`. With an `access` of its own it cannot be pickled.

    Args:
        url: `s3://BUCKET[/PREFIX]`.
        access: Endpoint and credentials to use instead of the environment's.
        patience_seconds: How long transient faults are waited out, instead of the usual times.
    """

    def __init__(self, url: str, access: S3Access | None = None, patience_seconds: float | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme != "s3" or parts.netloc == "" or "@" in parts.netloc or parts.query or parts.fragment:
            raise UserError(f"{without_credentials(url)!r} is no S3 URL: give s3://BUCKET/PREFIX")
        self.bucket = parts.netloc
        self._prefix = "".join(part + "/" for part in parts.path.split("/") if part)
        check_prefix(self._prefix)
        self._access = access
        self._patience_seconds = patience_seconds
        self._sessions: dict[int, Session] = {}
        self._stats = StorageStats()

    def __repr__(self) -> str:
        return f"S3Storage({self.url!r})"

    def __reduce__(self) -> tuple[type["S3Storage"], tuple[str]]:
        if self._access is not None:
            raise TypeError("a storage with credentials of its own is not pickled: that would copy its secret")
        return S3Storage, (self.url,)

    @property
    @override
    def url(self) -> str:
        return f"s3://{self.bucket}/{self._prefix}".rstrip("/")

    @property
    @override
    def stats(self) -> StorageStats:
        return self._stats

    @override
    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        chunks = [*self._chunks(key, start, length)]
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    @override
    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Parts:
        if len(ranges) <= 1:
            return [self.read(key, start=start, length=length) for start, length in ranges]

        def read_range(part: tuple[int, int]) -> bytes:
            return self.read(key, start=part[0], length=part[1])

        return [*self._connect().pool.map(read_range, ranges)]

    @override
    def open_read(self, key: str) -> BinaryIO:
        return io.BufferedReader(_ChunkReader(self._chunks(key, 0, None)), CHUNK_BYTES)

    @override
    def stat(self, key: str) -> ObjectInfo:
        name = self._name(key)

        def look_up(client: "S3Client") -> ObjectInfo:
            try:
                head = client.head_object(Bucket=self.bucket, Key=name)
            except boto_errors.ClientError as error:
                if _status(error) >= 500:
                    raise
                # The answer to HEAD has no body and so no reason; the same request as a GET has one.
                client.get_object(Bucket=self.bucket, Key=name, Range="bytes=0-0")["Body"].close()
                raise
            return ObjectInfo(key, head["ContentLength"], _entity_tag(head).strip('"'))

        return self._repeat(look_up, key)

    @override
    def exists(self, key: str) -> bool:
        try:
            self.stat(key)
        except ObjectMissingError:
            return False
        return True

    @override
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        # A page at a time instead of boto3's paginator, which cannot go on after a fault in the middle.
        place: dict[str, Any] = {"MaxKeys": PAGE_OBJECTS, "Prefix": self._prefix + check_prefix(prefix)}
        while True:
            page = self._repeat(lambda client: client.list_objects_v2(Bucket=self.bucket, **place), prefix)
            for found in page.get("Contents", []):
                if not found.get("Key", "/").endswith("/"):  # a "folder" some tools write
                    yield ObjectInfo(
                        found.get("Key", "").removeprefix(self._prefix),
                        found.get("Size", 0),
                        found.get("ETag", "").strip('"'),
                    )
            if "NextContinuationToken" not in page:
                return
            place["ContinuationToken"] = page["NextContinuationToken"]

    @override
    def write(self, key: str, data: bytes) -> None:
        name = self._name(key)
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        self._repeat(
            lambda client: client.put_object(Bucket=self.bucket, Key=name, Body=data, ContentMD5=digest),
            key,
        )

    def write_if(self, key: str, data: bytes, etag: str | None) -> str | None:
        """Writes an object if it is still the one of this entity tag (None: if there is none) and returns its new tag.

        Returns None where it is not. A lost answer is asked for again: then None may mean that the write did happen.
        """
        name = self._name(key)
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": f'"{etag}"'}

        def put(client: "S3Client") -> str | None:
            try:
                answer = client.put_object(Bucket=self.bucket, Key=name, Body=data, **cast("Any", condition))
            except boto_errors.ClientError as error:
                if _status(error) in (404, 409, 412) and _code(error) != "NoSuchBucket":
                    return None
                raise
            return answer["ETag"].strip('"')

        return self._repeat(put, key)

    @override
    def upload(self, key: str, path: Path) -> None:
        name = self._name(key)
        with file_errors(path), path.open("rb"):
            pass
        config = TransferConfig(
            multipart_threshold=MULTIPART_BYTES, multipart_chunksize=MULTIPART_BYTES, max_concurrency=REQUESTS_IN_FLIGHT
        )
        self._repeat(lambda client: client.upload_file(str(path), self.bucket, name, Config=config), key)

    @override
    def download(self, key: str, path: Path) -> None:
        def fill(file: BinaryIO) -> None:
            file.writelines(self._chunks(key, 0, None))

        replace_file(path, fill)

    @override
    def delete(self, key: str) -> None:
        name = self._name(key)
        self._repeat(lambda client: client.delete_object(Bucket=self.bucket, Key=name), key)

    def create_bucket(self) -> None:
        """Makes the bucket if these credentials do not own it already."""

        def create(client: "S3Client") -> None:
            try:
                client.create_bucket(Bucket=self.bucket)
            except boto_errors.ClientError as error:
                if _code(error) != "BucketAlreadyOwnedByYou":
                    raise

        self._repeat(create, "")

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _chunks(self, key: str, start: int, length: int | None) -> Iterator[bytes]:
        """Yields an object's bytes, or exactly `length` of them from `start` on, going on after a fault."""
        name, position, entity_tag = self._name(key), start, ""
        end = None if length is None else start + length
        patience = Patience(self.url, self._stats, self._patience)
        while end is None or position < end:
            request: dict[str, str] = {} if entity_tag == "" else {"IfMatch": entity_tag}
            if position > 0 or end is not None:
                request["Range"] = f"bytes={position}-" + ("" if end is None else str(end - 1))
            try:
                self._stats.add(requests=1)
                answer = self._connect().client.get_object(Bucket=self.bucket, Key=name, **cast(Any, request))
                with answer["Body"] as body:
                    self._note_answer()
                    entity_tag = _entity_tag(answer)
                    _check_range(answer, position, ranged="Range" in request)
                    if end is None:
                        end = position + answer["ContentLength"]
                    elif end > (size := _size(answer)):
                        raise UserError(
                            f"{self.url}/{key} has {size} bytes and ends before byte {end}: it is not the object its "
                            "index describes; upload or build it again"
                        )
                    while position < end:
                        chunk = body.read(min(CHUNK_BYTES, end - position))
                        if chunk == b"":
                            raise boto_errors.IncompleteReadError(actual_bytes=position, expected_bytes=end)
                        position += len(chunk)
                        self._stats.add(bytes_read=len(chunk))
                        patience.renew()
                        yield chunk
            except _FAULTS as error:
                if length is None and position > start and self._ends_at(key, entity_tag, error):
                    return
                patience.wait(_reason(error, self, key))

    def _ends_at(self, key: str, entity_tag: str, error: Exception) -> bool:
        """Whether nothing more can come because an answer promised more bytes than the object has."""
        if not isinstance(error, boto_errors.ClientError) or _status(error) != 416:
            return False
        # That many bytes of this version were received, so it is at least as long: only another version could be
        # shorter. The size that a look-up answers is no witness, for it may be promised as wrongly as the body was.
        return self.stat(key).etag == entity_tag.strip('"')

    def _repeat(self, operation: Callable[["S3Client"], Result], key: str) -> Result:
        """Carries out an operation that may be repeated, until it succeeds or it is known that it will not."""
        patience = Patience(self.url, self._stats, self._patience)
        while True:
            try:
                self._stats.add(requests=1)
                result = operation(self._connect().client)
            except _FAULTS as error:
                patience.wait(_reason(error, self, key))
            else:
                patience.renew()
                self._note_answer()
                return result

    def _connect(self) -> "Session":
        # Without a lock: a lock held while another thread forks would stay held in the child. Of two threads that both
        # come first one makes a session too many, which nobody uses: `setdefault` keeps one.
        session = self._sessions.get(os.getpid())
        return session or self._sessions.setdefault(os.getpid(), Session(self._access))

    def _patience(self) -> float:
        """How long transient faults are waited out, in seconds."""
        if self._patience_seconds is not None:
            return self._patience_seconds
        reached = REACHED in os.environ or any(
            (session.client.meta.endpoint_url, self.bucket) in _REACHED for session in [*self._sessions.values()]
        )
        return outage_seconds() if reached else FIRST_CONTACT_SECONDS

    def _note_answer(self) -> None:
        _REACHED.add((self._connect().client.meta.endpoint_url, self.bucket))

    @property
    def endpoint(self) -> str:
        """The server's scheme, host and port."""
        return without_credentials(self._connect().client.meta.endpoint_url)


class _ChunkReader(io.RawIOBase):
    """A stream over chunks that come one after another."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        if not self.closed:
            cast(Any, self._chunks).close()  # gives the connection back
        super().close()


_TRANSIENT = (
    boto_errors.HTTPClientError,
    boto_errors.ConnectionError,
    boto_errors.IncompleteReadError,
    urllib3.exceptions.HTTPError,
    OSError,
)


def _reason(error: Exception, storage: S3Storage, key: str) -> UserError:
    """Says in one line, without any secret, what went wrong; a `StorageUnavailableError` is worth another attempt."""
    if isinstance(error, S3UploadFailedError) and isinstance(error.__context__, Exception):
        # boto3 keeps only the text of what went wrong; what it wraps is the context.
        error = error.__context__
    url, endpoint, kind = f"{storage.url}/{key}".rstrip("/"), storage.endpoint, type(error).__name__
    if isinstance(error, boto_errors.ClientError):
        return refusal(_code(error), _status(error), bucket=storage.bucket, url=url, endpoint=endpoint)
    if isinstance(error, boto_errors.NoCredentialsError | boto_errors.PartialCredentialsError):
        return UserError(f"no credentials for {url}: {SIGN_IN}")
    if isinstance(error, boto_errors.SSLError):
        return UserError(f"no secure connection to {endpoint}: check AWS_ENDPOINT_URL and its certificate")
    if isinstance(error, boto_errors.ParamValidationError):
        return UserError(f"{storage.bucket!r} is no valid bucket name: correct {url}")
    if isinstance(error, _TRANSIENT):
        return StorageUnavailableError(
            f"{endpoint} does not answer for {url} ({kind}): {start_it(endpoint)}, or correct AWS_ENDPOINT_URL"
        )
    if isinstance(error, ResponseParserError):
        return UserError(NOT_S3.format(endpoint=endpoint))
    return UserError(f"{url} cannot be used ({kind}): check the AWS_* variables")


def _check_range(answer: "GetObjectOutputTypeDef", position: int, *, ranged: bool) -> None:
    """Make sure that the body begins where it was asked to: a server may ignore Range and send the whole object."""
    begin = f"bytes {position}-" if ranged else ""
    if not answer.get("ContentRange", "").startswith(begin):
        raise ResponseParserError("the answer is not the range that was asked for")


def _size(answer: "GetObjectOutputTypeDef") -> int:
    """Return the size of the whole object, which Content-Length does not say of a range."""
    size = answer.get("ContentRange", "").rpartition("/")[2]
    return int(size) if size.isdecimal() else answer["ContentLength"]


def _entity_tag(answer: "GetObjectOutputTypeDef | HeadObjectOutputTypeDef") -> str:
    if "ETag" not in answer:
        raise ResponseParserError("an answer of S3 has an ETag")
    return answer["ETag"]


def _code(error: boto_errors.ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")


def _status(error: boto_errors.ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
