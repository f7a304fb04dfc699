# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""The server on Ray Serve: one front that reads requests, replicas of the model that decode and compute.

Ray Serve's proxy passes what comes over HTTP to the front. The front reads a picture within its limits and hands it to
the replica that has least to do; there, threads decode while a batch is computed.
"""

import asyncio
import contextlib
import os
import socket
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl_dist.errors import UserError
from hmtl_dist.launch.ray_cluster import dead_servers, kill_servers, ray_cluster
from hmtl_dist.launch.signals import StopRequest
from hmtl_dist.run_config import LaunchConfig
from hmtl_dist.serve.answers import About, Answer, BusyError, Explanation, Refusal, UnavailableError
from hmtl_dist.serve.batching import Batcher
from hmtl_dist.serve.front import build_front
from hmtl_dist.serve.model import ServedModel
from hmtl_dist.serve.settings import Settings

_APP, _MODEL, _FRONT = "hmtl", "model", "front"
_DECODERS = 4
"""Threads of a replica that decode."""
_READY_SECONDS = 120.0
"""How long the proxy may take to know the front, once both run."""
_STOP_SECONDS = 10.0
"""How long pictures that are being answered may take when the server stops."""
_ALIVE_SECONDS = 5.0
_LOOK_SECONDS = 0.2

_SERVE_VARIABLES = {
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # a busy machine needs more than 5 s to start the proxy
}


def _stay_on_loopback() -> None:
    """Keep the port at which replicas may ask each other off the network: Ray Serve opens it at every address.

    Called in a replica's process before it opens that port. The address is written into Ray Serve, so the function that
    binds it is replaced; a test sees that nothing listens elsewhere.
    """
    from ray.serve._private import replica

    known: Any = replica
    bind = known.add_port_to_grpc_server

    def bind_here(server: Any, address: str) -> Any:
        return bind(server, address.replace("[::]:", "127.0.0.1:"))

    known.add_port_to_grpc_server = bind_here


class Replica:
    """One process with the model: Ray Serve makes as many as were asked for.

    Args:
        folder: The model's folder.
        threads: Threads that a computation takes.
        batch_size: Pictures that are computed together at most.
        batch_wait_seconds: How long a batch waits for more.
    """

    def __init__(self, folder: str, threads: int, batch_size: int, batch_wait_seconds: float) -> None:
        import torch

        _stay_on_loopback()
        torch.set_num_threads(threads)
        self._model = ServedModel(Path(folder))
        self._decoders = ThreadPoolExecutor(_DECODERS, "decode")
        self._computer = ThreadPoolExecutor(1, "compute")  # two computations at once would share the same cores

        self._batcher = Batcher(self._compute, batch_size, batch_wait_seconds)

    async def predict(self, file: bytes) -> Answer | Refusal:
        """Answer one picture file, together with others that wait."""
        picture = await self._in(self._decoders, self._model.decode, file)
        return picture if isinstance(picture, Refusal) else await self._batcher.ask(picture)

    async def explain(self, file: bytes, head: str, name: str) -> Explanation | Refusal:
        """Explain one picture file, alone."""
        picture = await self._in(self._decoders, self._model.decode, file)
        if isinstance(picture, Refusal):
            return picture
        try:
            return await self._in(self._computer, self._model.explain, picture, head, name)
        except UserError as error:
            return Refusal(422, str(error))

    async def alive(self) -> bool:
        """Answer at all."""
        return True

    async def _compute(self, pictures: list[NDArray[np.uint8]]) -> list[Answer]:
        return await self._in(self._computer, self._model.predict, pictures)

    async def _in(self, pool: ThreadPoolExecutor, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)


class RayBackend:
    """The replicas, as the one front asks them.

    Args:
        room: Requests that they have at once.
    """

    def __init__(self, room: int) -> None:
        from ray import serve

        self._room = room
        self._asked = 0
        self._handle: Any = serve.get_deployment_handle(_MODEL, app_name=_APP)

    async def predict(self, picture: bytes) -> Answer | Refusal:
        """Have a replica answer a picture file."""
        return await self._ask("predict", picture)

    async def explain(self, picture: bytes, head: str, name: str) -> Explanation | Refusal:
        """Have a replica explain a picture file."""
        return await self._ask("explain", picture, head, name)

    async def alive(self) -> bool:
        """Whether a replica answers, or all are busy."""
        try:
            async with asyncio.timeout(_ALIVE_SECONDS):
                return await self._ask("alive")
        except BusyError:
            return True
        except (TimeoutError, UnavailableError):
            return False

    async def _ask(self, method: str, *arguments: Any) -> Any:
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import DeploymentUnavailableError

        if self._asked >= self._room:
            raise BusyError
        self._asked += 1
        try:
            return await getattr(self._handle, method).remote(*arguments)
        except (RayActorError, DeploymentUnavailableError) as error:
            raise UnavailableError from error
        finally:
            self._asked -= 1


def serve_model(
    folder: Path, about: About, settings: Settings, on_ready: Callable[[str], None], on_stop: Callable[[], None]
) -> None:
    """Serve a model until SIGINT or SIGTERM, on an own Ray that ends with it.

    Args:
        folder: The model's folder; it is read again by replicas that have to be started anew.
        about: What it is.
        settings: Where to listen, how to batch, what to refuse.
        on_ready: Called with the address, once it answers.
        on_stop: Called when it is asked to stop, inside the signal's handler.

    Raises:
        UserError: The address is taken, or Ray does not start or has died.
    """
    settings.check()
    for variable, value in _SERVE_VARIABLES.items():
        os.environ.setdefault(variable, value)
    host, port = settings.host, _free_port(settings.host, settings.port)
    # Serve's controller and proxy take no cores, and neither does the front.
    launch = LaunchConfig(address="local", num_workers=settings.num_replicas)
    # The signals are taken over when Ray has started: it takes SIGTERM for itself, to end with a stack trace.
    with ray_cluster(launch, num_cpus=settings.num_replicas), StopRequest(on_stop) as stop:
        from ray import serve
        from ray.serve.config import HTTPOptions
        from ray.serve.schema import LoggingConfig

        # Nobody's requests are written down.
        logs = LoggingConfig(log_level="WARNING", enable_access_log=False)
        try:
            serve.start("HeadOnly", http_options=HTTPOptions(host=host, port=port), logging_config=logs)
            serve.run(_deployments(folder, about, settings), name=_APP, route_prefix="/", logging_config=logs)
            address = f"http://{_bracketed(host)}:{port}"
            _await(address, stop)
            if not stop.requested:
                on_ready(address)
            while not stop.requested:
                time.sleep(_LOOK_SECONDS)
                if dead := dead_servers():
                    raise UserError(f"Ray's {dead} died (it crashed or was killed, for memory perhaps); serve again")
            serve.delete(_APP)  # what is being answered is answered; `shutdown` alone would hang up on it
        finally:
            if dead_servers():
                kill_servers()
            else:
                serve.shutdown()


def _deployments(folder: Path, about: About, settings: Settings) -> Any:
    """Bind the front to the model's replicas."""
    from ray import serve

    threads = max(1, len(os.sched_getaffinity(0)) // settings.num_replicas)
    # Twice as many may be open as the model takes: half of them may still be arriving.
    limits = replace(settings.limits, max_open=2 * settings.room)

    def build() -> Any:  # called in the front's process
        _stay_on_loopback()
        return build_front(RayBackend(settings.room), about, limits)

    deploy: Any = serve.deployment  # as a function of the class, its type is lost
    model = deploy(
        Replica,
        name=_MODEL,
        num_replicas=settings.num_replicas,
        # The front counts what waits. Left to wait for a replica with room, a request would be tried again by Ray Serve
        # only after up to half a second.
        max_ongoing_requests=settings.room,
        graceful_shutdown_timeout_s=_STOP_SECONDS,
        ray_actor_options={"num_cpus": 1},
    )
    front = deploy(
        serve.ingress(build)(),
        name=_FRONT,
        max_ongoing_requests=2 * limits.max_open + 64,  # the front refuses by itself, in its own words
        graceful_shutdown_timeout_s=_STOP_SECONDS,
        ray_actor_options={"num_cpus": 0},
    )
    waits = settings.batch_wait_ms / 1000 if settings.batch_size > 1 else 0.0
    return front.bind(model.bind(str(folder.absolute()), threads, settings.batch_size, waits))


def _free_port(host: str, port: int) -> int:
    """Return the port, or one that is free for 0.

    Raises:
        UserError: It is taken, or the host is not this machine.
    """
    try:
        with socket.create_server((host, port), family=_family(host)) as listening:
            return int(listening.getsockname()[1])
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot listen at {_bracketed(host)}:{port} ({reason}); give --port or --host") from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _await(address: str, stop: StopRequest) -> None:
    """Wait until the server answers, or shall stop.

    Raises:
        UserError: It does not answer for very long.
    """
    deadline = time.monotonic() + _READY_SECONDS
    reachable = address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while not stop.requested:
        with contextlib.suppress(OSError), direct.open(f"{reachable}/healthz", timeout=_ALIVE_SECONDS) as answer:
            if answer.status == 200:
                return
        if time.monotonic() > deadline:
            raise UserError(f"the server did not answer at {address} within {_READY_SECONDS:.0f} s")
        time.sleep(_LOOK_SECONDS)
