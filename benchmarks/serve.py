"""What a served model can take: pictures a second and waiting times, by number of clients, with and without batches.

    python -m benchmarks.serve MODEL PICTURE --clients 1 8 32 128 --seconds 8

Starts `hmtl-dist serve MODEL` once for each batch size. Clients live in a second process and share its one thread; each
sends a picture, waits for the answer, and sends the next. A client that is refused with 503 or 429 comes again after a
tenth of a second. Everything runs on this machine, so clients and server share its cores: the load average is printed.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

WARM_UP_SECONDS = 2.0
AGAIN_SECONDS = 0.1
REFUSED = (429, 503)


@dataclass(frozen=True)
class Load:
    """What clients met."""

    clients: int
    seconds: float
    statuses: dict[str, int]
    p50_ms: float
    p99_ms: float

    @property
    def per_second(self) -> float:
        """Pictures answered in a second."""
        return self.statuses.get("200", 0) / self.seconds


async def put_load(url: str, picture: bytes, clients: int, seconds: float) -> dict[str, Any]:
    """Ask from so many clients at once, after a warm-up; only what is answered within the time counts."""
    statuses: Counter[str] = Counter()
    waits: list[float] = []
    begin = time.perf_counter() + WARM_UP_SECONDS
    end = begin + seconds

    async def client(session: aiohttp.ClientSession) -> None:
        while (sent := time.perf_counter()) < end:
            async with session.post(url, data=picture, headers={"Content-Type": "image/jpeg"}) as answer:
                await answer.read()
            now = time.perf_counter()
            if begin <= now < end:
                statuses[str(answer.status)] += 1
                if answer.status == 200:
                    waits.append(now - sent)
            if answer.status in REFUSED:
                await asyncio.sleep(AGAIN_SECONDS)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    cuts = statistics.quantiles(waits, n=100) if len(waits) > 1 else [float("nan")] * 99
    return {
        "clients": clients,
        "seconds": seconds,
        "statuses": dict(statuses),
        "p50_ms": 1000 * cuts[49],
        "p99_ms": 1000 * cuts[98],
    }


@contextmanager
def server(model: str, batch_size: int, replicas: int) -> Generator[str]:
    """Serve a model; yields its address."""
    command = [sys.executable, "-m", "hmtl_dist", "serve", model, "--port", "0"]
    command += ["--batch-size", str(batch_size), "--num-replicas", str(replicas)]
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "said").open("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        try:
            while not (found := re.search(r"at (http://\S+) ", Path(said.name).read_text())):
                if process.poll() is not None:
                    raise RuntimeError(Path(said.name).read_text())
                time.sleep(0.2)
            yield found[1]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


def batches(url: str) -> tuple[float, float]:
    """Return how many batches were computed, and of how many pictures, since the server started."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        figures = answer.read().decode()
    count, pictures = (
        float(re.findall(rf"^hmtl_batch_size_{name} (\S+)$", figures, re.MULTILINE)[0]) for name in ("count", "sum")
    )
    return count, pictures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="whatever `hmtl-dist serve` takes; the address of a server with --put")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--put", action="store_true", help="be the clients of a server that runs (the second process)")
    arguments = parser.parse_args()
    if arguments.put:
        load = put_load(arguments.model, arguments.picture.read_bytes(), arguments.clients[0], arguments.seconds)
        print(json.dumps(asyncio.run(load)))
        return
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, load average {os.getloadavg()[0]:.1f} before; {arguments.replicas} replica(s)\n")
    print("| batch size | clients | pictures/s | p50 | p99 | pictures a batch | answers |")
    print("|---|---|---|---|---|---|---|")
    for batch_size in arguments.batch_sizes:
        with server(arguments.model, batch_size, arguments.replicas) as url:
            for clients in arguments.clients:
                before = batches(url)
                command = [sys.executable, "-m", "benchmarks.serve", f"{url}/predict", str(arguments.picture), "--put"]
                command += ["--clients", str(clients), "--seconds", str(arguments.seconds)]
                said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                load = Load(**json.loads(said))
                count, pictures = (now - then for now, then in zip(batches(url), before, strict=True))
                answers = ", ".join(f"{status}: {number}" for status, number in sorted(load.statuses.items()))
                print(
                    f"| {batch_size} | {clients} | {load.per_second:.0f} | {load.p50_ms:.0f} ms | {load.p99_ms:.0f} ms "
                    f"| {pictures / count:.1f} | {answers} |",
                    flush=True,
                )
    print(f"\nload average {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
