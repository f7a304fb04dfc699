"""Models to serve, the front without Ray, and a client that can misbehave."""

import asyncio
import csv
import http.client
import json
import shutil
import socket
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from hmtl_dist.data.catalog.folder import FolderAdapter
from hmtl_dist.data.dataset.build import BuildSettings, build
from hmtl_dist.data.dataset.labels import parse_labels
from hmtl_dist.launch.driver import drive
from hmtl_dist.launch.export import export_model
from hmtl_dist.run_config import RunConfig
from hmtl_dist.serve.answers import Answer, Explanation, Refusal
from hmtl_dist.serve.front import build_front
from hmtl_dist.serve.model import ServedModel, describe
from hmtl_dist.serve.settings import Limits


@dataclass(frozen=True)
class Face:
    """A picture of somebody the model never saw."""

    path: Path
    expression: str
    gender: str


def train_on_faces(folder: Path, faces: Path, epochs: int = 8) -> tuple[Path, list[Face]]:
    """Train expression, gender and age on most of the London faces, as well as some seconds allow.

    Returns:
        The exported model, and the pictures of the people that were left out.
    """
    url, london = str(folder / "set"), faces / "london"
    rows = list(csv.DictReader((london / "labels.csv").read_text().splitlines()))
    rest = [row for row in rows if int(row["subject"]) % 8 == 0]
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row for row in rows if row not in rest)
    labels = parse_labels(["expression", "gender", "age:number:years"])
    images = london / "images"
    adapter = FolderAdapter(str(images), folder / "labels.csv", file_column="file", specs=labels, group="subject")
    build(adapter, url, BuildSettings(dataset="london", splits={"train": 0.95, "val": 0.05}, image_size=96))
    tree = {
        "name": "faces",
        "data": {"url": url, "image_size": 64, "batch_size": 16, "lanes": 4, "num_workers": 0},
        "augment": {"preset": "weak"},
        "tasks": {
            "expression": {"type": "classification"},
            "gender": {"type": "classification"},
            "age": {"type": "regression"},
        },
        "model": {"backbone": "resnet10t"},
        "optim": {"learning_rate": 0.001, "warmup_epochs": 1},
        "engine": {"kind": "plain"},
        "train": {"epochs": epochs, "evaluate_every_epochs": epochs, "checkpoint_every_epochs": epochs},
        "launch": {"kind": "local"},
        "tracking": {"enabled": False},
    }
    drive(RunConfig.model_validate(tree), lambda progress: None)
    model = Path(export_model("faces", form="safetensors", out=folder / "faces").folder)
    return model, [Face(images / row["file"], row["expression"], row["gender"]) for row in rest]


def chromium() -> str:
    """Where the browser is; the test is skipped without one."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium is installed")
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)  # of its own five seconds
    return browser


class InProcess:
    """A model that answers in this process, each picture alone: what the replicas do, without Ray."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model

    async def predict(self, picture: bytes) -> Answer | Refusal:
        decoded = self.model.decode(picture)
        return decoded if isinstance(decoded, Refusal) else (await asyncio.to_thread(self.model.predict, [decoded]))[0]

    async def explain(self, picture: bytes, head: str, name: str) -> Explanation | Refusal:
        decoded = self.model.decode(picture)
        return decoded if isinstance(decoded, Refusal) else self.model.explain(decoded, head, name)

    async def alive(self) -> bool:
        return True


@contextmanager
def front(source: Path | ServedModel, limits: Limits) -> Generator["Client"]:
    """Serve a model in a thread of this process."""
    model = ServedModel(source) if isinstance(source, Path) else source
    app = build_front(InProcess(model), describe(model.predictor, "tiny", limits.max_bytes), limits)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield Client(listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@dataclass(frozen=True)
class Reply:
    """An answer over HTTP."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def sentence(self) -> str:
        """What an error says."""
        assert set(self.json) == {"detail"}
        return self.json["detail"]


@dataclass(frozen=True)
class Client:
    """Whoever asks a server on this machine."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> Reply:
        return self._ask("GET", path, None, {})

    def post(self, path: str, body: bytes, media_type: str = "image/jpeg") -> Reply:
        return self._ask("POST", path, body, {"Content-Type": media_type})

    def post_form(self, path: str, file: bytes, media_type: str = "image/jpeg") -> Reply:
        head = (
            f'--edge\r\nContent-Disposition: form-data; name="file"; filename="x"\r\nContent-Type: {media_type}\r\n\r\n'
        )
        body = head.encode() + file + b"\r\n--edge--\r\n"
        return self._ask("POST", path, body, {"Content-Type": "multipart/form-data; boundary=edge"})

    def send_slowly(self, body: bytes, *, length: int, seconds: float) -> bytes:
        """Announce a body, send a little of it at a time, and return what the server says meanwhile."""
        with self.connect(length) as connection:
            connection.settimeout(0.2)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                connection.sendall(body[:10])
                try:
                    return connection.recv(65536)
                except TimeoutError:
                    continue
        return b""

    def send_part(self, body: bytes, *, length: int) -> None:
        """Announce a body and leave after a part of it."""
        with self.connect(length) as connection:
            connection.sendall(body)

    def connect(self, length: int) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode())
        return connection

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=180)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()
