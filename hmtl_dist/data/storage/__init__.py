"""Objects in S3 or in a local folder behind one small interface."""

from pathlib import Path

from hmtl_dist.data.storage.base import (
    ObjectChangedError,
    ObjectInfo,
    ObjectMissingError,
    Storage,
    StorageStats,
    StorageUnavailableError,
)
from hmtl_dist.data.storage.client import S3Access, without_credentials
from hmtl_dist.data.storage.config import StorageConfig
from hmtl_dist.data.storage.local import LocalStorage
from hmtl_dist.data.storage.s3 import S3Storage
from hmtl_dist.errors import UserError

__all__ = [
    "ObjectChangedError",
    "ObjectInfo",
    "ObjectMissingError",
    "S3Access",
    "S3Storage",
    "Storage",
    "StorageConfig",
    "StorageStats",
    "StorageUnavailableError",
    "open_storage",
]


def open_storage(url: str) -> Storage:
    """Opens `s3://BUCKET[/PREFIX]` or a local folder; nothing is contacted yet.

    S3 takes endpoint, region and credentials from the usual places: `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`,
    `AWS_REGION` or `AWS_DEFAULT_REGION`, `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, `AWS_PROFILE`, the shared
    configuration files, and a machine's role. `HMTL_S3_ADDRESSING` is `path`, `virtual` or `auto` (path-style for an
    endpoint of your own).

    Raises:
        UserError: The URL is neither of the two.
    """
    if url.startswith("s3:"):
        return S3Storage(url)
    if url == "" or "://" in url:
        raise UserError(f"{without_credentials(url)!r} is no storage: give s3://BUCKET/PREFIX or a local folder")
    return LocalStorage(Path(url))
