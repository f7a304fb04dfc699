# pyright: reportUnknownMemberType=false
# (boto3 types its clients only for the services whose stubs are installed)
"""Clients of S3: one a process, set up from the environment or from credentials of its own."""

import functools
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3.session
import botocore.exceptions as boto_errors
import botocore.loaders
import botocore.session
from botocore.config import Config

from hmtl_dist.config.addresses import is_loopback
from hmtl_dist.errors import UserError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT_SECONDS = 5.0
READ_TIMEOUT_SECONDS = 20.0
"""Longest silence inside an answer before it counts as stalled."""
REQUESTS_IN_FLIGHT = 8


@dataclass(frozen=True, slots=True)
class S3Access:
    """An endpoint and the credentials for it, where the environment's are not the ones to use."""

    endpoint: str
    access_key_id: str
    secret_access_key: str = field(repr=False)


class Session:
    """A process's own client and threads."""

    def __init__(self, access: S3Access | None) -> None:
        self.client = _make_client(access)
        # At once, with its connections: the client itself is part of a cycle, which is collected at some later time.
        weakref.finalize(self, _close, self.client, os.getpid()).atexit = False
        self.pool = ThreadPoolExecutor(REQUESTS_IN_FLIGHT, thread_name_prefix="s3")


def _close(client: "S3Client", pid: int) -> None:
    """Close a client, but not a fork's copy of one: its locks may have been held when the process was forked."""
    if os.getpid() == pid:
        client.close()


def read_service_data() -> None:
    """Read what botocore knows of S3, which takes 0.1 s and 13 MB; clients made later, in forks too, share it."""
    _make_client(S3Access("http://127.0.0.1", "", ""))


@functools.cache
def _service_data(folders: str | None) -> Any:
    """Return the one reader of botocore's descriptions of services, which keeps what it has read."""
    return botocore.loaders.create_loader(folders)


def _make_client(access: S3Access | None) -> "S3Client":
    try:
        core = botocore.session.get_session()
        descriptions = _service_data(core.get_config_variable("data_path"))
        core.register_component("data_loader", descriptions)
        session = boto3.session.Session(botocore_session=core)
        descriptions.search_paths[:] = dict.fromkeys(descriptions.search_paths)  # every session adds boto3's own
        # boto3 knows AWS_DEFAULT_REGION only; the other AWS tools read AWS_REGION.
        region = os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
        if access is not None:
            return session.client(
                "s3",
                region_name=region,
                endpoint_url=access.endpoint,
                aws_access_key_id=access.access_key_id,
                aws_secret_access_key=access.secret_access_key,
                config=_settings(access.endpoint),
            )
        # Where the environment and the configuration files lead is what a client says; the second one costs little.
        endpoint = session.client("s3", region_name=region).meta.endpoint_url
        return session.client("s3", region_name=region, config=_settings(endpoint))
    except ValueError:
        raise UserError("AWS_ENDPOINT_URL is no URL: give for example http://127.0.0.1:8333") from None
    except boto_errors.ProfileNotFound as error:
        raise UserError(f"{error}: check AWS_PROFILE") from None
    except boto_errors.BotoCoreError as error:
        raise UserError(f"S3 cannot be set up ({type(error).__name__}): check the AWS_* variables") from None


def _settings(endpoint: str) -> Config:
    """How a client behaves, and how it names buckets, towards a server."""
    host = urlsplit(endpoint).hostname or ""
    style = os.environ.get("HMTL_S3_ADDRESSING", "auto")
    if style not in ("auto", "path", "virtual"):
        raise UserError(f"HMTL_S3_ADDRESSING is {style!r}; allowed are auto, path and virtual")
    if style == "auto" and "amazonaws.com" not in host:
        style = "path"
    return Config(
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=READ_TIMEOUT_SECONDS,
        retries={"total_max_attempts": 1},
        max_pool_connections=2 * REQUESTS_IN_FLIGHT,
        tcp_keepalive=True,
        s3={"addressing_style": style},
        # A proxy has no business between this machine and itself; None leaves it to the environment.
        proxies={} if is_loopback(host) else None,
        # Checksums sent in trailers are refused by many servers other than Amazon's.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )


def without_credentials(url: str) -> str:
    """Leave out what may be a name and a password before the host."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
