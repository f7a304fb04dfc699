"""The picture in a request's body, read within the limits."""

import asyncio
from collections.abc import Awaitable, Callable

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.types import Message

from hmtl_dist.data.decode import FORMATS
from hmtl_dist.serve.settings import Limits

MEDIA_TYPES = tuple(f"image/{name.lower()}" for name in FORMATS)
"""Types of a body, or of a form's file, that is a picture. What it really is, decoding finds out."""
_UNTYPED = ("", "application/octet-stream")
"""What a form's file has for a type where its sender did not know one."""
_FORM_BYTES = 64 << 10
"""Room for what a form has around its file."""
_CLOSE = {"Connection": "close"}
"""The rest of a body that is not read must not be taken for the next request."""


async def read_picture(request: Request, limits: Limits) -> bytes:
    """Read the picture file that a request carries, as its body or as the file of a form.

    Raises:
        HTTPException: 408, 413 or 415; 400 where the body ends early, or a form cannot be read or has no file.
    """
    media_type = _media_type(request.headers.get("content-type"))
    is_form = media_type == "multipart/form-data"
    if not is_form and media_type not in MEDIA_TYPES:
        raise HTTPException(415, _unsupported(media_type), _CLOSE)
    most = limits.max_bytes + (_FORM_BYTES if is_form else 0)
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > most:
        raise _too_large(limits)
    body = Request(request.scope, _counted(request.receive, most, limits))
    try:
        async with asyncio.timeout(limits.read_seconds):
            picture = await _file_of_form(body) if is_form else await body.body()
    except TimeoutError:
        raise HTTPException(
            408, f"The picture did not arrive within {limits.read_seconds:g} seconds.", _CLOSE
        ) from None
    except ClientDisconnect:
        raise HTTPException(400, "The body ended before it was complete.", _CLOSE) from None
    if len(picture) > limits.max_bytes:
        raise _too_large(limits)
    if not picture:
        raise HTTPException(400, "The picture is empty.")
    return picture


def _counted(receive: Callable[[], Awaitable[Message]], most: int, limits: Limits) -> Callable[[], Awaitable[Message]]:
    """Stop reading a body that is larger than it may be, whatever length it claimed."""
    read = 0

    async def counted() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > most:
            raise _too_large(limits)
        return message

    return counted


async def _file_of_form(request: Request) -> bytes:
    async with request.form(max_files=1, max_fields=8) as form:
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        if not files:
            raise HTTPException(400, "The form has no file; send the picture as the file of a form's field.")
        media_type = _media_type(files[0].content_type)
        if media_type not in (*MEDIA_TYPES, *_UNTYPED):
            raise HTTPException(415, _unsupported(media_type))
        return await files[0].read()


def _media_type(header: str | None) -> str:
    return (header or "").partition(";")[0].strip().lower()


def _unsupported(media_type: str) -> str:
    given = f"'{media_type[:60]}'" if media_type else "no Content-Type"
    return f"Given {given}; send {', '.join(MEDIA_TYPES)} or a form (multipart/form-data) with one file."


def _too_large(limits: Limits) -> HTTPException:
    return HTTPException(413, f"The picture's file is too large; at most {limits.max_bytes:,} bytes are read.", _CLOSE)
