"""Addresses of servers: on this machine, or elsewhere."""

from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    return host in {"localhost", "::1"} or host.startswith("127.")


def start_it(url: str) -> str:
    """Say how a server that does not answer is started: for those on this machine there is a command."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:  # no URL: who asks says so
        host = ""
    return "start it (`hmtl-dist services start`)" if is_loopback(host) else "start it"
