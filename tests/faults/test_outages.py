"""S3 is away for a while at seeded moments of a run: it waits, says so, and ends with the undisturbed run's weights."""

import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path

import pytest
import yaml

from hmtl_dist.data.storage import open_storage
from tests.e2e.drawn import draw, tree
from tests.faults import proxy as faults
from tests.faults.proxy import Proxy, Request
from tests.servers import S3Server

pytestmark = pytest.mark.nightly

AWAY_SECONDS = float(os.environ.get("HMTL_OUTAGE_SECONDS", "60"))
MOMENTS = 12
KINDS = ("local", "ray")
CASES = [(KINDS[moment % 2], moment) for moment in range(MOMENTS)]


class Outage:
    """A plan of a proxy that goes away at a given request, for a while, once."""

    def __init__(self, proxy: Proxy, at: int) -> None:
        self.proxy = proxy
        self.at = at
        self.seen = 0
        self.struck: Request | None = None

    def __call__(self, request: Request) -> faults.Fault | None:
        self.seen += 1
        if self.seen >= self.at and self.struck is None:
            self.struck = request
            threading.Thread(target=self._go_away, daemon=True).start()
            return faults.reset()
        return None

    def _go_away(self) -> None:
        with self.proxy.away():
            threading.Event().wait(AWAY_SECONDS)


@pytest.fixture(scope="module")
def data(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A set in S3, written past any proxy."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.env().items():
            patch.setenv(name, value)
        return draw(f"{s3.bucket()}/faces")


@pytest.fixture
def proxy(s3_env: S3Server) -> Generator[Proxy]:
    with faults.serve(s3_env.endpoint) as proxy:
        yield proxy


def train(folder: Path, kind: str, data: str, storage: str, endpoint: str) -> str:
    """Train by the command line, as a user does; return what it said."""
    recipe = folder / "tiny.yaml"
    launch = {"kind": kind, "storage": storage}
    saves = {"evaluate_every_epochs": 1, "checkpoint_every_epochs": 1}
    recipe.write_text(yaml.safe_dump(tree(data, launch=launch, train=saves, data={"num_workers": 1})))
    ended = subprocess.run(
        [sys.executable, "-m", "hmtl_dist", "train", str(recipe), "name=tiny"],
        env=os.environ | {"HMTL_HOME": str(folder / "home"), "AWS_ENDPOINT_URL": endpoint},
        capture_output=True,
        text=True,
        timeout=AWAY_SECONDS + 300,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def stored(storage: str) -> dict[str, bytes]:
    checkpoints = open_storage(f"{storage}/tiny/checkpoints")
    newest = max(info.key.partition("/")[0] for info in checkpoints.list())
    names = [info.key for info in checkpoints.list(newest) if info.key.endswith(".safetensors")]
    assert names
    return {name: checkpoints.read(name) for name in names}


@pytest.fixture(scope="module")
def undisturbed(
    data: str, s3: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[int, dict[str, bytes]]]:
    """Requests and weights of a run that nothing happens to, by launcher."""
    found: dict[str, tuple[int, dict[str, bytes]]] = {}
    with pytest.MonkeyPatch.context() as patch, faults.serve(s3.endpoint) as proxy:
        for name, value in s3.env().items():
            patch.setenv(name, value)
        for kind in KINDS:
            outage = Outage(proxy, sys.maxsize)
            proxy.plan = outage
            storage = f"{s3.bucket()}/runs"
            train(tmp_path_factory.mktemp(kind), kind, data, storage, proxy.url)
            found[kind] = outage.seen, stored(storage)
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "moment"), CASES)
def test_a_run_waits_for_s3_says_so_and_ends_with_the_same_weights(
    undisturbed: dict[str, tuple[int, dict[str, bytes]]],
    data: str,
    proxy: Proxy,
    s3: S3Server,
    tmp_path: Path,
    kind: str,
    moment: int,
) -> None:
    requests, weights = undisturbed[kind]
    # not among the very first: what was never reached is given up after seconds
    outage = Outage(proxy, random.Random(moment).randrange(4, requests))
    proxy.plan = outage
    storage = f"{s3.bucket()}/runs"

    said = train(tmp_path, kind, data, storage, proxy.url)

    assert outage.struck is not None
    if AWAY_SECONDS > 20:
        assert re.search(r"waiting for s3://\S+ \d+s", said), said
    assert stored(storage) == weights
