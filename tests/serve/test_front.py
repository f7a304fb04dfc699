"""What is answered over HTTP and what is refused, by a real server and model in this process, without Ray."""

import http.client
import re
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from hmtl_dist.errors import UserError
from hmtl_dist.inference.folder import load_model
from hmtl_dist.inference.predictor import Predictor
from hmtl_dist.launch.export import export_model
from hmtl_dist.serve.model import ServedModel
from hmtl_dist.serve.settings import Limits
from tests.export import trained
from tests.serve import hostile, served
from tests.serve.served import Client

PICTURE = hostile.jpeg()
MAX_BYTES = 20_000
READ_SECONDS = 30.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported model of a small run: expression, age and pose."""
    folder = tmp_path_factory.mktemp("serve")
    trained.train(folder, "tiny")
    return Path(export_model("tiny", form="safetensors", out=folder / "model").folder)


@pytest.fixture(scope="module")
def client(model: Path) -> Generator[Client]:
    with served.front(model, Limits(max_bytes=MAX_BYTES, read_seconds=READ_SECONDS)) as client:
        yield client


def test_a_picture_is_answered_as_the_model_answers_it(client: Client, model: Path) -> None:
    predictor = ServedModel(model).predictor
    expected = {name: values[0] for name, values in predictor.predict(predictor.decode([PICTURE])).items()}
    heads = client.post("/predict", PICTURE).json["heads"]
    assert list(heads) == ["expression", "age", "pose"]
    probabilities = heads["expression"]["probabilities"]
    assert heads["expression"]["label"] == max(probabilities, key=probabilities.__getitem__)
    assert sum(probabilities.values()) == pytest.approx(1)
    said = {f"expression.{name}": value for name, value in probabilities.items()}
    said |= {f"{head}.{name}": value for head in ("age", "pose") for name, value in heads[head]["values"].items()}
    assert said == pytest.approx(expected)


def test_a_form_with_a_file_is_as_good_as_a_body(client: Client) -> None:
    plain = client.post("/predict", PICTURE).json
    assert client.post_form("/predict", PICTURE).json == plain
    assert client.post_form("/predict", PICTURE, "application/octet-stream").json == plain


def test_an_explanation_is_a_map_of_the_likeliest_class_or_of_what_is_asked_for(client: Client) -> None:
    label = client.post("/predict", PICTURE).json["heads"]["expression"]["label"]
    found = client.post("/explain", PICTURE).json
    assert (found["head"], found["name"]) == ("expression", label)
    assert all(0 <= heat <= 1 for row in found["map"] for heat in row)
    assert client.post("/explain?head=pose&name=roll", PICTURE).json["name"] == "roll"


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("head=mood", "There is no head 'mood'; there is expression, age, pose."),
        ("head=pose&name=tilt", "The head 'pose' has no 'tilt'; it has yaw, roll."),
    ],
)
def test_what_the_model_does_not_have_is_not_explained(client: Client, query: str, sentence: str) -> None:
    reply = client.post(f"/explain?{query}", PICTURE)
    assert (reply.status, reply.sentence) == (404, sentence)


def test_a_model_without_gradients_is_not_explained(model: Path) -> None:
    other = ServedModel(model)
    other.predictor = Predictor(model, forward=load_model(model).forward)  # as a graph is opened
    with pytest.raises(UserError, match="cannot be explained; Grad-CAM takes safetensors"):
        other.predictor.explain(other.predictor.decode([PICTURE]), "age", "age")
    with served.front(other, Limits()) as client:
        assert client.get("/model").json["explains"] is False
        assert client.post("/explain", PICTURE).status == 501


@pytest.mark.parametrize(
    ("body", "media_type", "status", "sentence"),
    [
        (b"no picture at all", "image/jpeg", 422, "The picture cannot be read: "),
        (b"\xff\xd8\xff" + bytes(500), "image/jpeg", 422, "The picture cannot be read: "),
        (PICTURE[: len(PICTURE) // 2], "image/jpeg", 422, "The picture cannot be read: "),
        (hostile.claims(60, 60)[:60], "image/png", 422, "The picture cannot be read: "),
        (hostile.claims(30_000, 30_000), "image/png", 413, "The picture cannot be read: a picture of "),
        (hostile.claims(8_000, 8_000), "image/png", 413, "The picture cannot be read: a picture of 8000 x 8000"),
        (bytes(MAX_BYTES + 1), "image/jpeg", 413, "The picture's file is too large; at most 20,000 bytes"),
        (PICTURE, "text/plain", 415, "Given 'text/plain'; send image/jpeg, "),
        (PICTURE, "", 415, "Given no Content-Type; send "),
        (b"", "image/jpeg", 400, "The picture is empty."),
        (b"--edge--\r\n", "multipart/form-data; boundary=edge", 400, "The form has no file; "),
        (b"no form", "multipart/form-data; boundary=edge", 400, ""),
        (b"no form", "multipart/form-data", 400, ""),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(
    client: Client, body: bytes, media_type: str, status: int, sentence: str
) -> None:
    reply = client.post("/predict", body, media_type)
    assert reply.status == status
    assert reply.sentence.startswith(sentence)


def test_a_file_of_a_form_is_held_to_the_same(client: Client) -> None:
    assert client.post_form("/predict", PICTURE, "text/html").status == 415
    assert client.post_form("/predict", bytes(MAX_BYTES + 1)).status == 413
    assert client.post_form("/predict", bytes(200_000)).status == 413
    assert client.post_form("/predict", b"nothing").status == 422


def test_a_body_without_a_length_is_counted(client: Client) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
    parts = iter([bytes(8_000)] * 3)
    connection.request("POST", "/predict", parts, {"Content-Type": "image/png"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_who_sends_too_slowly_is_told_so(model: Path) -> None:
    with served.front(model, Limits(read_seconds=0.6)) as client:
        began = time.monotonic()
        said = client.send_slowly(PICTURE, length=len(PICTURE), seconds=20)
        assert said.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - began < 10


def test_who_leaves_halfway_harms_nobody(client: Client) -> None:
    client.send_part(PICTURE[:100], length=len(PICTURE))
    assert client.post("/predict", PICTURE).status == 200


def test_who_comes_too_often_is_told_when_to_come_again(model: Path) -> None:
    with served.front(model, Limits(max_requests_per_second=0.01)) as client:
        replies = [client.post("/predict", b"nothing") for _ in range(3)]
        assert [reply.status for reply in replies] == [422, 429, 429]
        assert 90 <= int(replies[-1].headers["retry-after"]) <= 100
        assert client.get("/healthz").status == 200


def test_a_server_that_has_too_much_open_refuses_more(model: Path) -> None:
    with served.front(model, Limits(max_open=1)) as client:
        with client.connect(100) as idle:
            idle.sendall(b"a")
            while client.get("/metrics").body.find(b"hmtl_open_requests 1.0") < 0:
                time.sleep(0.02)
            reply = client.post("/predict", PICTURE)
            assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        while client.get("/metrics").body.find(b"hmtl_open_requests 0.0") < 0:
            time.sleep(0.02)
        assert client.post("/predict", PICTURE).status == 200


def test_figures_tell_paths_statuses_times_and_batches(model: Path) -> None:
    with served.front(model, Limits()) as client:
        for _ in range(3):
            client.post("/predict", PICTURE)
        client.post("/predict", b"nothing")
        client.get("/no/such/place")
        metrics = client.get("/metrics").body.decode()
    assert 'hmtl_requests_total{path="/predict",status="200"} 3.0' in metrics
    assert 'hmtl_requests_total{path="/predict",status="422"} 1.0' in metrics
    assert 'hmtl_requests_total{path="other",status="404"} 1.0' in metrics
    assert 'hmtl_request_seconds_count{path="/predict"} 4.0' in metrics
    assert 'hmtl_batch_size_bucket{le="1.0"} 3.0' in metrics


def test_what_is_served_is_described(client: Client) -> None:
    about = client.get("/model").json
    assert about["heads"]["age"] == {"kind": "numbers", "names": ["age"], "units": {"age": "years"}}
    assert (about["run"], about["image_size"], about["explains"]) == ("tiny", trained.SIZE, True)
    paths = client.get("/openapi.json").json["paths"]
    assert {"/predict", "/explain", "/model", "/healthz", "/metrics"} == set(paths)
    assert {"400", "408", "413", "415", "422", "429", "503"} < set(paths["/predict"]["post"]["responses"])


def test_pages_take_nothing_from_elsewhere(client: Client) -> None:
    for path in ("/", "/docs"):
        reply = client.get(path)
        assert not re.search(rb"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", reply.body)
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "http" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in client.get("/").headers["content-security-policy"]
    assert client.get("/static-offline-docs/swagger-ui-bundle.js").status == 200


@pytest.mark.nightly
def test_numbers_with_a_sign_are_bars_from_the_middle_on_the_page(client: Client, tmp_path: Path) -> None:
    browser = served.chromium()
    from playwright.sync_api import expect, sync_playwright

    (tmp_path / "picture.jpg").write_bytes(PICTURE)
    pose = client.post("/predict", PICTURE).json["heads"]["pose"]["values"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 400, "height": 800})
        page.goto(client.url)
        page.get_by_label("Choose a picture").set_input_files(str(tmp_path / "picture.jpg"))
        for name, degrees in pose.items():
            row = page.get_by_role("table", name="pose").get_by_role("row", name=name)
            expect(row.get_by_role("cell").first).to_have_text(f"{degrees:.1f}°")
            left, width = (
                float(row.locator(".fill").evaluate(f"bar => parseFloat(bar.style.{side})"))
                for side in ("left", "width")
            )
            assert width == pytest.approx(max(0.5, abs(degrees) / 90 * 50), abs=0.01)
            assert left == pytest.approx(50 - (degrees < 0) * abs(degrees) / 90 * 50, abs=0.01)
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(overflow) == 0
        chromium.close()
