"""A proxy in front of a real server that breaks chosen requests.

It hands requests on as they are, the Host header too, so that S3's signatures hold, and takes one request a connection.
A plan says which request meets which fault:

    with serve(s3.endpoint) as proxy:
        proxy.plan = Rules(Rule(cut(1000), path="shard-000001"))
        ...                                  # the first request of that shard loses its answer after 1,000 bytes
        assert proxy.hits == 1
"""

import asyncio
import random
import re
import socket
import struct
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal
from urllib.parse import urlsplit

from hmtl_dist.services.process import free_ports

CHUNK = 1 << 16
ABORTED = (OSError, EOFError)


@dataclass(frozen=True)
class Fault:
    """What happens to a request or its answer."""

    kind: Literal["reset", "cut", "stall", "status", "flip", "length", "delay", "date", "call"]
    after: int = 0
    """Bytes of the answer's body that pass before it happens; negative: not even its head passes."""
    status: int = 0
    code: str = ""
    """S3's own code in the body of a status."""
    seconds: float = 0.0
    amount: int = 0
    """Bytes that Content-Length is wrong by."""
    action: Callable[[], object] | None = None


def reset(after: int = -1) -> Fault:
    """The connection is reset, before the answer or inside its body."""
    return Fault("reset", after)


def cut(after: int) -> Fault:
    """The body ends early, in good order."""
    return Fault("cut", after)


def stall(after: int = -1) -> Fault:
    """Nothing more comes; the connection stays open until the client gives up."""
    return Fault("stall", after)


def status(number: int, code: str = "") -> Fault:
    """An answer that the server did not give."""
    return Fault("status", status=number, code=code)


def flip(at: int = 0) -> Fault:
    """One bit of the body is another."""
    return Fault("flip", at)


def length(amount: int) -> Fault:
    """Content-Length says so many bytes more than there are (or fewer, if negative)."""
    return Fault("length", amount=amount)


def delay(seconds: float) -> Fault:
    """The request reaches the server late."""
    return Fault("delay", seconds=seconds)


def date(seconds: float) -> Fault:
    """The request is dated by a clock that is wrong by so much."""
    return Fault("date", seconds=seconds)


def call(action: Callable[[], object], after: int) -> Fault:
    """Something happens elsewhere, then the connection is cut."""
    return Fault("call", after, action=action)


@dataclass(frozen=True)
class Request:
    """What a plan sees of a request."""

    method: str
    path: str
    """With its query."""
    range: str
    """The Range header, empty if there is none."""


Plan = Callable[[Request], Fault | None]


@dataclass
class Rule:
    """A fault for the first `times` requests that fit; a regular expression finds the path."""

    fault: Fault
    path: str = ""
    method: str = ""
    times: int = 1
    skip: int = 0
    """Requests that fit and pass untouched before it begins."""


class Rules:
    """A plan of rules: the first one that fits and is not used up counts."""

    def __init__(self, *rules: Rule) -> None:
        self._left = [(rule, [rule.skip, rule.times]) for rule in rules]

    def __call__(self, request: Request) -> Fault | None:
        for rule, left in self._left:
            if re.search(rule.path, request.path) and rule.method in ("", request.method) and left[1] > 0:
                if left[0] > 0:
                    left[0] -= 1
                    continue
                left[1] -= 1
                return rule.fault
        return None


class Chaos:
    """A plan of faults drawn at a rate, the same for the same seed and number of the request."""

    def __init__(self, seed: int, rate: float, faults: Sequence[Fault], path: str = "") -> None:
        self._random = random.Random(seed)
        self._rate = rate
        self._faults = faults
        self._path = path

    def __call__(self, request: Request) -> Fault | None:
        if re.search(self._path, request.path) and self._random.random() < self._rate:
            return self._random.choice(self._faults)
        return None


@dataclass
class Proxy:
    """A proxy that is being served."""

    upstream: str
    port: int
    plan: Plan = field(default_factory=Rules)
    requests: list[Request] = field(default_factory=list[Request])
    hits: int = 0
    """Requests that met a fault."""
    server: "_Server | None" = None
    """What serves it, while it does."""

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def away(self) -> Generator[None]:
        """Connections are refused inside the block."""
        assert self.server is not None
        self.server.close()
        try:
            yield
        finally:
            self.server = _Server(self)


@contextmanager
def serve(upstream: str) -> Generator[Proxy]:
    """Serves a proxy in front of a server's URL, in a thread of its own."""
    proxy = Proxy(upstream, free_ports(1)[0])  # none that the system gives to others while it is away
    proxy.server = _Server(proxy)
    try:
        yield proxy
    finally:
        proxy.server.close()


class _Server:
    """The event loop of a proxy, in a thread."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._target = urlsplit(proxy.upstream)
        self._listener = _listen(proxy.port)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._accepted: set[socket.socket] = set()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="proxy", daemon=True)
        self._thread.start()
        ready.wait()

    def close(self) -> None:
        """Refuse connections from now on, end those that are open, and wait until every socket is closed."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(ready))
        self._loop.close()

    async def _serve(self, ready: threading.Event) -> None:
        async with asyncio.TaskGroup() as group:
            connections: set[asyncio.Task[None]] = set()

            def accept() -> None:
                # in a callback, not awaited: a wait that is cancelled at the wrong moment loses what it accepted
                with suppress(*ABORTED):
                    client = self._listener.accept()[0]
                    client.setblocking(False)
                    self._accepted.add(client)
                    connection = group.create_task(self._connection(client))
                    connections.add(connection)
                    connection.add_done_callback(connections.discard)

            self._loop.add_reader(self._listener, accept)
            ready.set()
            try:
                await self._stop.wait()
            finally:  # a connection that raises what it should not ends all of this, in the open
                self._loop.remove_reader(self._listener)
                self._listener.close()
            for connection in connections:
                connection.cancel()
        for _ in range(2):  # transports close their sockets in the turn after they are told to
            await asyncio.sleep(0)
        for client in self._accepted:  # those whose task was ended before it began
            client.close()

    async def _connection(self, client: socket.socket) -> None:
        with suppress(*ABORTED, asyncio.CancelledError):
            reader, writer = await asyncio.open_connection(sock=client, limit=1 << 20)
            async with _closing(writer):
                head = await reader.readuntil(b"\r\n\r\n")
                request = _parse(head)
                self._proxy.requests.append(request)
                fault = self._proxy.plan(request)
                self._proxy.hits += fault is not None
                await self._answer(head, fault, reader, writer)
        self._accepted.discard(client)

    async def _answer(
        self, head: bytes, fault: Fault | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if fault is not None and fault.kind == "status":
            await _refuse(fault, head, reader, writer)
            return
        if fault is not None and fault.after < 0:
            await _drain(head, reader)
            await _break(fault, writer, reader)
            return
        if fault is not None and fault.kind == "delay":
            await asyncio.sleep(fault.seconds)
        if fault is not None and fault.kind == "date":
            head = _dated(head, fault.seconds)
        server_reader, server_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        async with _closing(server_writer):
            server_writer.write(_one_request(head))
            upload = asyncio.ensure_future(_pump(reader, server_writer))
            try:
                await self._body(fault, server_reader, writer, reader, upload)
            finally:
                await _end(upload)

    async def _body(
        self,
        fault: Fault | None,
        server: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        client: asyncio.StreamReader,
        upload: "asyncio.Task[None]",
    ) -> None:
        head = await server.readuntil(b"\r\n\r\n")
        while head.startswith(b"HTTP/1.1 100"):
            writer.write(head)
            await writer.drain()
            head = await server.readuntil(b"\r\n\r\n")
        if fault is not None and fault.kind == "length":
            size = int(re.findall(rb"(?i)content-length: *(\d+)", head)[0]) + fault.amount
            head = re.sub(rb"(?i)content-length: *\d+", b"Content-Length: %d" % max(size, 0), head)
        writer.write(head)
        await writer.drain()
        passed = 0
        async for chunk in _chunks(server):
            data = chunk
            if fault is not None and passed <= fault.after < passed + len(chunk):
                place = fault.after - passed
                if fault.kind == "flip":
                    data = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
                elif fault.kind in ("reset", "cut", "stall", "call"):
                    writer.write(data[:place])
                    await writer.drain()
                    await _end(upload)  # of a stream there is one reader at a time
                    await _break(fault, writer, client)
                    return
            passed += len(chunk)
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncGenerator[None]:
    """Close a connection at the end and wait for it, but not for a peer that takes nothing."""
    try:
        yield
    finally:
        writer.close()
        try:
            with suppress(*ABORTED, TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), 1.0)
        finally:
            writer.transport.abort()


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    listener.setblocking(False)
    return listener


def _parse(head: bytes) -> Request:
    lines = head.decode("latin-1").split("\r\n")
    method, path, _ = lines[0].split(" ", 2)
    found = next((line.split(":", 1)[1].strip() for line in lines if line.lower().startswith("range:")), "")
    return Request(method, path, found)


def _one_request(head: bytes) -> bytes:
    """Ask the server to close after its answer; S3 does not sign the Connection header."""
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([lines[0], b"Connection: close", *lines[1:]])


def _dated(head: bytes, seconds: float) -> bytes:
    found = re.search(rb"(?i)x-amz-date: *(\d{8}T\d{6})Z", head)
    assert found is not None
    moved = datetime.strptime(found[1].decode(), "%Y%m%dT%H%M%S") + timedelta(seconds=seconds)
    return head.replace(found[1], moved.strftime("%Y%m%dT%H%M%S").encode())


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while chunk := await reader.read(CHUNK):
        yield chunk


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(*ABORTED):
        async for chunk in _chunks(reader):
            writer.write(chunk)
            await writer.drain()


async def _drain(head: bytes, reader: asyncio.StreamReader) -> None:
    """Take the request's body in, unless the client waits to be asked for it."""
    found = re.search(rb"(?i)content-length: *(\d+)", head)
    if found and not re.search(rb"(?i)expect: *100", head):
        await reader.readexactly(int(found[1]))


async def _refuse(fault: Fault, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _drain(head, reader)
    body = f"<Error><Code>{fault.code}</Code><Message>{fault.code}</Message></Error>".encode() if fault.code else b""
    if head.startswith(b"HEAD"):
        body = b""
    writer.write(
        b"HTTP/1.1 %d Fault\r\nContent-Type: application/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        % (fault.status, len(body))
        + body
    )
    await writer.drain()


async def _break(fault: Fault, writer: asyncio.StreamWriter, client: asyncio.StreamReader) -> None:
    if fault.kind == "stall":
        while await client.read(CHUNK):
            pass
    elif fault.kind == "reset":
        # what was sent must arrive before the reset, which throws away what is still on its way
        await asyncio.sleep(0.02)
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif fault.kind == "call" and fault.action is not None:
        await asyncio.to_thread(fault.action)


def wait_until(reached: Callable[[], bool], seconds: float = 30.0) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
