"""Looks for planted secrets wherever a run may have left them."""

import base64
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from urllib.parse import quote

import psutil

from hmtl_dist.data.storage import S3Storage


def forms(secret: str) -> list[bytes]:
    """How a secret may be written: as it is, in a URL, reversed by base64 (at any offset within other bytes)."""
    found = {secret.encode(), quote(secret, safe="").encode()}
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + secret.encode())
        # the first and last characters also hold bits of what stands before and behind
        found.add(encoded[4 if shift else 0 : -4])
    return sorted(found)


@dataclass
class Search:
    """Gathers where which secret was seen."""

    secrets: Mapping[str, str]
    """Secrets by the name they are reported under."""
    seen: set[str] = field(default_factory=set[str])
    looked_at: int = 0
    """Files, objects, command lines and texts that were searched."""

    def text(self, where: str, data: bytes) -> None:
        self.looked_at += 1
        for name, secret in self.secrets.items():
            if any(form in data for form in forms(secret)):
                self.seen.add(f"{name} in {where}")

    def files(self, *folders: Path) -> None:
        """Every file under some folders, and their names; what disappears meanwhile is left out."""
        for file in files_under(folders):
            try:
                self.text(str(file), str(file).encode() + b"\n" + file.read_bytes())
            except OSError:
                continue

    def objects(self, storage: S3Storage) -> None:
        for info in [*storage.list()]:
            self.text(f"{storage.url}/{info.key}", info.key.encode() + b"\n" + storage.read(info.key))

    def command_lines(self, processes: Iterable[psutil.Process]) -> None:
        for process in processes:
            try:
                self.text(f"command line of {process.name()}", "\0".join(process.cmdline()).encode())
            except psutil.Error:
                continue


def files_under(folders: Iterable[Path]) -> Iterator[Path]:
    """Every file below; folders that disappear meanwhile are left out."""
    for top in folders:
        for folder, _, names in os.walk(top):
            yield from (file for name in names if (file := Path(folder, name)).is_file() and not file.is_symlink())


def _is_loopback(text: str) -> bool:
    address = ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def open_to_others(processes: Iterable[psutil.Process]) -> set[str]:
    """What listens, or is bound, at more than loopback."""
    found: set[str] = set()
    for process in processes:
        try:
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN and not _is_loopback(connection.laddr.ip):
                    found.add(f"{process.name()} at {connection.laddr.ip}")
        except psutil.Error:
            continue
    return found
