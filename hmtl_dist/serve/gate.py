"""What every request passes before anything else looks at it: limits, figures, headers."""

import time
from http import HTTPStatus

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hmtl_dist.serve.metrics import Metrics
from hmtl_dist.serve.page import DOCS_POLICY
from hmtl_dist.serve.rate import RateLimit
from hmtl_dist.serve.settings import Limits

WORK = ("/predict", "/explain")
"""Paths that cost something."""
KNOWN = (*WORK, "/", "/model", "/healthz", "/metrics", "/docs", "/openapi.json")
"""Paths that figures are kept for by name; others could be anything."""
_GONE = 499
"""Counted where a client left before its answer was there; nginx's number for it."""
RETRY_SECONDS = 1
"""When to come again after a queue was full."""
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),  # what is said of a face stays with who asked
]
_DOCS_HEADER = (b"content-security-policy", DOCS_POLICY.encode())


class Gate:
    """Limits how often a client comes and how many requests are open, counts what was answered, and adds headers.

    Args:
        app: What lies behind.
        limits: What is let through.
        metrics: Counts.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        self._app = app
        self._limits = limits
        self._metrics = metrics
        self._rate = RateLimit(limits.max_requests_per_second)
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = _GONE

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = _HEADERS + ([_DOCS_HEADER] if scope["path"] == "/docs" else [])
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        is_work = scope["path"] in WORK
        try:
            if is_work and (refusal := self._refuse(scope)):
                await refusal(scope, receive, watched)
                return
            await self._pass(scope, receive, watched, is_work=is_work)
        except Exception:
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            raise
        finally:
            path = scope["path"] if scope["path"] in KNOWN else "other"
            self._metrics.answered(path, status, time.perf_counter() - began)

    async def _pass(self, scope: Scope, receive: Receive, send: Send, *, is_work: bool) -> None:
        self._open += is_work
        self._metrics.open.set(self._open)
        try:
            await self._app(scope, receive, send)
        finally:
            self._open -= is_work
            self._metrics.open.set(self._open)

    def _refuse(self, scope: Scope) -> JSONResponse | None:
        client = (scope.get("client") or ("",))[0]
        if seconds := self._rate.wait(client):
            return refusal(429, "Too many requests; come again later.", seconds)
        if self._open >= self._limits.max_open:
            return refusal(503, "Too many pictures are waiting; come again later.", RETRY_SECONDS)
        return None


def refusal(status: int, sentence: str, retry_seconds: int) -> JSONResponse:
    """Return the answer to who shall come again later."""
    headers = {"Retry-After": str(retry_seconds), "Connection": "close"}
    return JSONResponse({"detail": sentence}, status, headers)
