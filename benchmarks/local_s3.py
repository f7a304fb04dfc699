"""A real S3 server on this machine for the time of a benchmark."""

import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from hmtl_dist.services import seaweedfs
from hmtl_dist.services.process import stop

BUCKET = "bench"
IDENTITY = seaweedfs.Identity(name="bench", access_key_id="BENCH", secret_access_key="bench-secret")


@contextmanager
def local_s3(folder: Path) -> Generator[None]:
    """Run a server that keeps its objects under `folder`, with a bucket, and point this process at it."""
    server = seaweedfs.start(folder / "s3", (IDENTITY,), log=folder / "s3.log")
    try:
        while not seaweedfs.is_ready(server, IDENTITY, BUCKET):
            time.sleep(0.1)
        os.environ |= {
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": IDENTITY.access_key_id,
            "AWS_SECRET_ACCESS_KEY": IDENTITY.secret_access_key,
            "AWS_REGION": "us-east-1",
        }
        yield
    finally:
        stop(server.process)
        seaweedfs.clean_up(server)
