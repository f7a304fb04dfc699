"""Faults of a storage: which ones are waited out and how, and what is said of the others."""

import random
import time
from collections.abc import Callable
from contextlib import ExitStack

from hmtl_dist.data.storage.base import ObjectChangedError, ObjectMissingError, StorageStats, StorageUnavailableError
from hmtl_dist.data.storage.waits import waiting_for
from hmtl_dist.errors import UserError

SIGN_IN = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a server on this machine: "
    "hmtl-dist services start"
)
"""What to do where there are no credentials."""
BACKOFF_BASE_SECONDS = 0.1
BACKOFF_CAP_SECONDS = 10.0

# Jitter must differ between workers and leave the program's own random numbers alone.
_jitter = random.SystemRandom()

NOT_S3 = "{endpoint} answers, but not like an S3 server: check AWS_ENDPOINT_URL"
_REFUSALS = {
    "NoSuchBucket": "bucket {bucket!r} does not exist at {endpoint}: create it, or correct {url}",
    "NoSuchKey": "{url} does not exist at {endpoint}: check the path",
    "AccessDenied": "access to {url} is denied at {endpoint}: these credentials lack the right to do this",
    "InvalidAccessKeyId": "{endpoint} does not know the access key id: check AWS_ACCESS_KEY_ID or AWS_PROFILE",
    "SignatureDoesNotMatch": "{endpoint} refuses the secret key: check AWS_SECRET_ACCESS_KEY or AWS_PROFILE",
    "ExpiredToken": "the credentials for {endpoint} have expired: renew them",
    "InvalidToken": "{endpoint} refuses the session token: check AWS_SESSION_TOKEN or unset it",
    "PreconditionFailed": "{url} was replaced while it was being read: start again",
    "InvalidRange": "{url} is shorter than its index says: upload or build it again",
    "AuthorizationHeaderMalformed": "{endpoint} expects another region: set AWS_REGION to the bucket's",
    "PermanentRedirect": "bucket {bucket!r} is in another region than {endpoint}: set AWS_REGION to the bucket's",
    "RequestTimeTooSkewed": "this machine's clock differs too much from that of {endpoint}: set it",
    "InvalidBucketName": "{bucket!r} is no valid bucket name: correct {url}",
    # Without a code of S3's own the status comes in its place.
    "403": "access to {url} is denied at {endpoint}: these credentials lack the right to do this",
    "404": NOT_S3,
    "405": NOT_S3,
}
_TRANSIENT_CODES = {
    "SlowDown",
    "RequestTimeout",
    "InternalError",
    "ServiceUnavailable",
    "Throttling",
    "OperationAborted",
}


class Patience:
    """Waits between the attempts at one operation, and decides when there is no further one.

    The wait is exponential backoff with full jitter (Brooker 2015, "Exponential Backoff And Jitter", AWS Architecture
    Blog): uniform between nothing and a bound that doubles.

    Args:
        what: URL of what does not answer.
        stats: Where repetitions are counted.
        allowance: How long faults are waited out from the first one on, in seconds.
    """

    def __init__(self, what: str, stats: StorageStats, allowance: Callable[[], float]) -> None:
        self._what = what
        self._stats = stats
        self._allowance = allowance
        self._noted = ExitStack()
        self.renew()

    def renew(self) -> None:
        """Starts anew: there was progress."""
        self._attempts = 0
        self._deadline = 0.0
        self._noted.close()

    def wait(self, reason: UserError) -> None:
        """Sleeps before the next attempt.

        Raises:
            UserError: The reason itself, if it is no transient one, or has lasted too long.
        """
        if not isinstance(reason, StorageUnavailableError):
            self._noted.close()
            raise reason from None
        now = time.monotonic()
        if self._attempts == 0:
            self._deadline = now + self._allowance()
            self._noted.enter_context(waiting_for(self._what))
        delay = _jitter.uniform(0, min(BACKOFF_CAP_SECONDS, BACKOFF_BASE_SECONDS * 2**self._attempts))
        if now + delay > self._deadline:
            self._noted.close()
            raise reason from None
        self._attempts += 1
        self._stats.add(retries=1)
        time.sleep(delay)


def refusal(code: str, status: int, *, bucket: str, url: str, endpoint: str) -> UserError:
    """Says in one line why an S3 server refuses; a `StorageUnavailableError` is worth another attempt.

    Args:
        code: S3's error code, or the HTTP status where the answer has none.
        status: HTTP status.
        bucket: Bucket of the request.
        url: Object or prefix of the request.
        endpoint: Scheme, host and port of the server.
    """
    if code in _REFUSALS:
        kind = {"NoSuchKey": ObjectMissingError, "PreconditionFailed": ObjectChangedError}.get(code, UserError)
        return kind(_REFUSALS[code].format(bucket=bucket, url=url, endpoint=endpoint))
    if code in _TRANSIENT_CODES or status >= 500 or status == 429:
        return StorageUnavailableError(f"{endpoint} is overloaded or faulty ({code}) for {url}: try again later")
    return UserError(f"{endpoint} refuses {url}: {code} (HTTP status {status})")
