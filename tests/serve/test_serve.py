"""`hmtl-dist serve` as a person runs it: real Ray Serve, real faces, a real browser, and clients that mean no good."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from hmtl_dist.serve.answers import Prediction, prediction
from hmtl_dist.serve.model import ServedModel, describe
from tests.faults.leaks import open_to_others
from tests.processes import command_line, kill_all, process_name
from tests.serve import hostile, served
from tests.serve.served import Client, Face

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]

MAX_BYTES = 1_000_000
BATCH, QUEUED = 4, 4


@dataclass(frozen=True)
class Served:
    """A running server, what it serves, and faces that its model never saw."""

    client: Client
    process: psutil.Process
    model: ServedModel
    faces: list[Face]

    def expected(self, face: Face) -> Prediction:
        (answer,) = self.model.predict([self.model.predictor.decode([face.path.read_bytes()])[0]])
        return prediction(describe(self.model.predictor, "", 0), answer.values)

    def surest(self, expression: str) -> Face:
        """The left-out picture that shows an expression most clearly, as the model has it."""

        def sureness(face: Face) -> float:
            return self.expected(face).model_dump()["heads"]["expression"]["probabilities"][expression]

        return max((face for face in self.faces if face.expression == expression), key=sureness)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, faces: Path, hmtl_home: Path) -> Generator[Served]:
    """The command, serving a model that was trained on real faces; it must end in order, and leave no process."""
    folder = tmp_path_factory.mktemp("serve")
    model, left_out = served.train_on_faces(folder, faces)
    options = ["--port", "0", "--max-bytes", MAX_BYTES, "--read-timeout", 1.5, "--batch-size", BATCH]
    options += ["--max-queued", QUEUED, "--batch-wait-ms", 20]
    command = [sys.executable, "-m", "hmtl_dist", "serve", str(model), *map(str, options)]
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, "HMTL_HOME": str(hmtl_home)})
    try:
        while not (found := re.search(r"^serving .* at http://127\.0\.0\.1:(\d+) ", (folder / "said").read_text())):
            assert process.poll() is None, (folder / "said").read_text()
            time.sleep(0.2)
        family = psutil.Process(process.pid)
        yield Served(Client(int(found[1])), family, ServedModel(model), left_out)
        below = family.children(recursive=True)
        assert any("raylet" in process_name(child) for child in below)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0
        assert (folder / "said").read_text().endswith("stopping\nstopped\n")
        assert not psutil.wait_procs(below, timeout=20)[1]
    finally:
        process.kill()


def test_real_faces_of_people_it_never_saw_are_read_as_the_model_reads_them(server: Served) -> None:
    right = 0
    for face in server.faces:
        said = Prediction.model_validate(server.client.post("/predict", face.path.read_bytes()).json)
        expected = server.expected(face).model_dump()
        assert said.model_dump()["heads"]["age"]["values"] == pytest.approx(
            expected["heads"]["age"]["values"], rel=1e-4
        )
        assert said.model_dump()["heads"]["expression"]["label"] == expected["heads"]["expression"]["label"]
        right += said.model_dump()["heads"]["expression"]["label"] == face.expression
    assert right >= 0.75 * len(server.faces)


def test_all_of_it_listens_on_this_machine_alone(server: Served) -> None:
    family = [server.process, *server.process.children(recursive=True)]
    assert open_to_others(family) == set()


def test_hostile_uploads_are_refused_and_the_next_picture_is_answered(server: Served) -> None:
    client, picture = server.client, server.faces[0].path.read_bytes()
    assert client.post("/predict", b"garbage").status == 422
    assert client.post("/predict", picture[:2000]).status == 422
    assert client.post("/predict", hostile.claims(30_000, 30_000), "image/png").status == 413
    assert client.post("/predict", bytes(MAX_BYTES + 1)).status == 413
    assert client.post_form("/predict", bytes(MAX_BYTES + 1)).status in {413, 422}
    assert client.post("/predict", picture, "application/zip").status == 415
    client.send_part(picture[:1000], length=len(picture))
    assert client.send_slowly(picture, length=len(picture), seconds=60).startswith(b"HTTP/1.1 408 ")
    assert client.post("/predict", picture).status == 200


def test_under_more_load_than_it_can_take_it_answers_or_refuses(server: Served) -> None:
    picture = server.faces[0].path.read_bytes()
    clients, each = 48, 4

    def ask(_: int) -> list[tuple[int, bool]]:
        replies = [server.client.post("/predict", picture) for _ in range(each)]
        return [(reply.status, "retry-after" in reply.headers) for reply in replies]

    with ThreadPoolExecutor(clients) as pool:
        said = Counter(reply for replies in pool.map(ask, range(clients)) for reply in replies)
    assert set(said) == {(200, False), (503, True)}
    assert sum(said.values()) == clients * each
    assert server.client.get("/healthz").json == {"status": "ok"}
    metrics = server.client.get("/metrics").body.decode()
    assert f'hmtl_requests_total{{path="/predict",status="503"}} {said[503, True]}.0' in metrics
    batches, pictures = (
        float(re.findall(rf"^hmtl_batch_size_{name} (\S+)$", metrics, re.MULTILINE)[0]) for name in ("count", "sum")
    )
    assert 1 < pictures / batches <= BATCH


def test_a_replica_that_dies_is_started_again(server: Served) -> None:
    picture = server.faces[0].path.read_bytes()
    expected = server.client.post("/predict", picture).json
    below = server.process.children(recursive=True)
    # busy with a call, even with one that asks for its health, a replica adds the call to its name
    replicas = [child for child in below if re.search(r"hmtl:model\b", command_line(child))]
    kill_all(replicas)
    assert len(replicas) == 1
    psutil.wait_procs(replicas, timeout=20)
    deadline = time.monotonic() + 240
    while (reply := server.client.post("/predict", picture)).status != 200:
        assert (reply.status, time.monotonic() < deadline) == (503, True)
        time.sleep(float(reply.headers["retry-after"]))
    assert reply.json == expected


@pytest.fixture(scope="module")
def page(server: Served) -> "Generator[Page]":
    """The page in a browser whose camera shows a test picture."""
    browser = served.chromium()
    from playwright.sync_api import sync_playwright

    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", *camera])
        page = chromium.new_page(viewport={"width": 1100, "height": 760}, color_scheme="light")
        troubles: list[str] = []
        page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("filechooser", lambda chooser: None)  # caught from now on: asked for with a key press, it may come late
        page.goto(server.client.url)
        yield page
        chromium.close()
    # what was refused on purpose is in the console too
    assert [text for text in troubles if "422" not in text] == []


def test_a_face_is_shown_with_its_label_by_keyboard_alone(server: Served, page: "Page", tmp_path: Path) -> None:
    from playwright.sync_api import expect

    face = server.surest("happy")
    page.keyboard.press("Tab")
    chooser = page.get_by_label("Choose a picture")
    expect(chooser).to_be_focused()
    with page.expect_file_chooser() as chosen:
        page.keyboard.press("Enter")
    chosen.value.set_files(str(face.path))
    expression = page.get_by_role("table", name="expression")
    first = expression.get_by_role("row").first
    expect(first.get_by_role("rowheader")).to_have_text("happy")
    share = server.expected(face).model_dump()["heads"]["expression"]["probabilities"]["happy"]
    expect(first.get_by_role("cell").first).to_have_text(f"{100 * share:.1f} %")
    expect(page.get_by_role("table", name="age")).to_contain_text("years")
    expect(page.get_by_role("status")).to_contain_text("expression: happy")

    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Use the camera")).to_be_focused()
    page.keyboard.press("Tab")
    where = page.get_by_role("button", name="Show where happy is seen")
    expect(where).to_be_focused()
    page.keyboard.press("Enter")
    expect(where).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("status")).to_contain_text("happy.")
    expect(page.get_by_role("img", name=re.compile("marked is what speaks for happy"))).to_be_visible()
    folder = Path(os.environ.get("HMTL_SCREENSHOTS", tmp_path))
    page.screenshot(path=str(folder / "serve_page.png"))
    page.emulate_media(color_scheme="dark")
    page.screenshot(path=str(folder / "serve_page_dark.png"))
    page.emulate_media(color_scheme="light")
    page.keyboard.press("Enter")
    expect(where).to_have_attribute("aria-pressed", "false")
    page.emulate_media(media="print")
    expect(where).to_be_hidden()
    page.screenshot(path=str(folder / "serve_page_print.png"), full_page=True)
    page.emulate_media(media="screen")


def test_what_is_no_picture_is_one_sentence_on_the_page(page: "Page", tmp_path: Path) -> None:
    from playwright.sync_api import expect

    (tmp_path / "notes.jpg").write_text("no picture")
    page.get_by_label("Choose a picture").set_input_files(str(tmp_path / "notes.jpg"))
    expect(page.get_by_role("alert")).to_have_text(re.compile(r"^The picture cannot be read: [^.]+\.$"))


def test_a_picture_of_the_camera_is_answered(page: "Page") -> None:
    from playwright.sync_api import expect

    page.get_by_role("button", name="Use the camera").click()
    expect(page.get_by_label("Camera", exact=True)).to_be_visible()
    page.get_by_role("button", name="Take the picture").click()
    expect(page.get_by_role("table", name="expression")).to_be_visible()
    expect(page.get_by_label("Camera", exact=True)).to_be_hidden()
    expect(page.get_by_role("alert")).to_have_text("")
