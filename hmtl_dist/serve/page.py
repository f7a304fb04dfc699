"""The page to try a model on: one file, which may run what is in it and nothing else."""

import base64
import hashlib
import re
from pathlib import Path

_FILE = Path(__file__).with_name("page.html")

DOCS_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data:; script-src 'self' 'unsafe-inline'; "
    "style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Of the OpenAPI page, whose library has its start in an inline script."""


def page() -> str:
    """Read the page."""
    return _FILE.read_text(encoding="utf-8")


def page_policy(html: str) -> str:
    """Write the page's Content-Security-Policy: its own script and style by their digests, pictures, this server."""
    script, style = (_digest(html, tag) for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; img-src blob: data:; "
        "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _digest(html: str, tag: str) -> str:
    (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
