"""A network of its own for a node of a test's cluster: another machine's address, which reaches this one by a cable."""

import asyncio
import os
import secrets
import shutil
import subprocess
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Network:
    """A network namespace, joined to the machine's own by a pair of virtual cards."""

    name: str
    card: str
    """Name of the card at both ends."""
    here: str
    """Address of this machine on the cable."""
    there: str
    """Address of the other end."""
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _forwarded: set[int] = field(default_factory=set[int])
    _servers: list[asyncio.Server] = field(default_factory=list[asyncio.Server])

    def start(self) -> None:
        """Begin to forward, in a thread."""
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End what is forwarded."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)

    def _serve(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.1)  # what is closed says so a moment later

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command line that runs a command on the other end."""
        return ["ip", "netns", "exec", self.name, *command]

    def forward(self, port: int) -> str:
        """Let the other end reach what listens at a port of 127.0.0.1 here; returns host and port for it."""
        if port not in self._forwarded:
            self._forwarded.add(port)

            async def listen() -> None:
                async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                    await _pass_on(reader, writer, port)

                self._servers.append(await asyncio.start_server(pass_on, self.here, port))

            asyncio.run_coroutine_threadsafe(listen(), self._loop).result(timeout=10)
        return f"{self.here}:{port}"


@contextmanager
def own_network() -> Generator[Network | None]:
    """A network for a second machine, None where this process may not make one."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        yield None
        return
    one = secrets.token_hex(4)
    subnet = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(256)}"
    name = f"hmtl-{one}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        yield None
        return
    network = Network(name, f"h{one}", f"{subnet}.1", f"{subnet}.2")
    network.start()
    try:
        # one name at both ends: what names a card in the environment of all nodes fits each of them
        _ip("link", "add", network.card, "type", "veth", "peer", "name", network.card, "netns", network.name)
        _ip("addr", "add", f"{network.here}/24", "dev", network.card)
        _ip("link", "set", network.card, "up")
        _ip("-n", network.name, "addr", "add", f"{network.there}/24", "dev", network.card)
        _ip("-n", network.name, "link", "set", network.card, "up")
        _ip("-n", network.name, "link", "set", "lo", "up")
        yield network
    finally:
        network.close()
        subprocess.run(["ip", "netns", "del", network.name], capture_output=True, check=False)  # its cards go with it


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    try:
        back, there = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        writer.close()
        return
    await asyncio.gather(_copy(reader, there), _copy(back, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:  # one of the two has ended; so does the other
        pass
    finally:
        writer.close()
