"""Keeps secrets out of logs, parameters and artifacts."""

import logging
import os
import re
from pathlib import Path
from urllib.parse import quote

MASK = "***"

_MIN_SECRET = 6
"""Shorter values are left alone: masking `test` everywhere would hide more than it protects."""

_WORDS = (
    r"(?:secret|passw(?:or)?d|passphrase|token|credentials?|api_?key|access_?key(?:_?id)?|secret_?key|private_?key)"
)
_NAME = re.compile(rf"(?:^|[^a-zA-Z]){_WORDS}$", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"://[^\s/?#:@]*:([^\s/?#]+)@")

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # user and password of a URL
    (re.compile(r"([a-zA-Z][\w+.-]*://)[^\s/?#\"'<>]+@"), rf"\1{MASK}@"),
    # signed URLs
    (
        re.compile(
            r"([?&](?:x-amz-(?:signature|credential|security-token)|signature|sig|awsaccesskeyid)=)[^&\s\"']+",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
    # HTTP headers
    (re.compile(r"(authorization[\"']?\s*[:=]\s*[\"']?(?:\w+ )?)[^\s\"',]+", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(r"(\bbearer\s+)[\w+/=.~-]{16,}", re.IGNORECASE), rf"\1{MASK}"),
    # tokens that tell themselves by their form: AWS, GitHub, Hugging Face, private keys
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), MASK),
    (re.compile(r"\b(?:gh[pousr]_|github_pat_|hf_)\w{20,}"), MASK),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), MASK),
    # `some_password = value`, `"token": "value"`; numbers, booleans and null are settings, not secrets
    (
        re.compile(
            rf"((?:\b|_){_WORDS}[\"']?\s*[:=]\s*[\"']?)(?!(?:null|none|true|false|[\d.]+)\b)[^\s\"',;&}}\])]+",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
)

_TEXT_SUFFIXES = frozenset(
    {".txt", ".log", ".json", ".jsonl", ".yaml", ".yml", ".csv", ".md", ".ini", ".toml", ".html"}
)


def redact(text: str) -> str:
    """Return the text without secrets: values of secret environment variables, and what has the form of a secret."""
    for secret in _environment_secrets():
        text = text.replace(secret, MASK)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redact_named(name: str, value: str) -> str:
    """Return a named value without secrets; one whose name says that it is a secret is masked as a whole."""
    if _NAME.search(name) and value not in {"", "None", "null"}:
        return MASK
    return redact(value)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without secrets, at most 300 characters; else its type."""
    lines = redact(str(error)).splitlines() or [type(error).__name__]
    return lines[0][:300]


def is_text(path: Path) -> bool:
    """Whether a file holds text by its name, and so is redacted before it leaves the machine."""
    return path.suffix.lower() in _TEXT_SUFFIXES


def redact_file(source: Path, target: Path) -> None:
    """Copy a text file line by line without secrets."""
    with (
        source.open(encoding="utf-8", errors="replace", newline="") as lines,
        target.open("w", encoding="utf-8", newline="") as out,
    ):
        for line in lines:
            out.write(redact(line))


class RedactFilter(logging.Filter):
    """Takes secrets out of every record that passes the handler or logger it is added to, tracebacks too."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record; let every one pass."""
        record.msg = redact(record.getMessage())
        record.args = ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        return True


def redact_logs() -> None:
    """Filter every handler of the root logger; filters of a logger would miss what its children pass up."""
    for handler in logging.getLogger().handlers:
        if not any(isinstance(known, RedactFilter) for known in handler.filters):
            handler.addFilter(RedactFilter())


def _environment_secrets() -> list[str]:
    secrets: set[str] = set()
    for name, value in os.environ.items():
        if _NAME.search(name):
            secrets.add(value)
        elif "://" in value:
            secrets.update(_URL_PASSWORD.findall(value))
    forms = {form for secret in secrets for form in (secret, quote(secret, safe="")) if len(secret) >= _MIN_SECRET}
    return sorted(forms, key=len, reverse=True)  # a secret that contains another one goes first
