"""Addresses of servers: on this machine, or elsewhere."""

from collections.abc import MutableMapping
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    return host in {"localhost", "::1"} or host.startswith("127.")


def ask_no_proxy_here(environment: MutableMapping[str, str]) -> None:
    """Let servers of this machine be reached without a proxy, by all that looks for one in the environment."""
    names = {name.lower() for name, value in environment.items() if value}
    if names.isdisjoint(("http_proxy", "https_proxy", "all_proxy")):
        return
    given = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if given.strip() != "*":
        hosts = dict.fromkeys([host.strip() for host in given.split(",") if host.strip()] + [*LOOPBACK])
        given = ",".join(hosts)
    environment["no_proxy"] = environment["NO_PROXY"] = given


def start_it(url: str) -> str:
    """Say how a server that does not answer is started: for those on this machine there is a command."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:  # no URL: who asks says so
        host = ""
    return "start it (`hmtl-dist services start`)" if is_loopback(host) else "start it"
