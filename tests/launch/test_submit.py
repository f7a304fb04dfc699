"""What is known before a job is sent is told before it is sent; tests/e2e/test_ray_job.py has a real cluster."""

import http.server
import json
import shutil
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import pytest
import typer
import typer.main
import yaml
from typer.testing import CliRunner

from hmtl_dist.cli import submit as submit_command
from hmtl_dist.cli.app import app
from hmtl_dist.config.io import find_shipped
from hmtl_dist.errors import UserError
from hmtl_dist.launch.ray_token import find_token
from hmtl_dist.launch.submit import check_cluster, find_address


class Dashboard(http.server.BaseHTTPRequestHandler):
    """Answers as the dashboard of another version of Ray does: that one cannot be installed beside ours."""

    def do_GET(self) -> None:
        body = json.dumps({"version": "4", "ray_version": "2.1.0", "ray_commit": "0"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing."""


@pytest.fixture
def old_cluster() -> Generator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def test_cluster_of_another_version_is_refused(old_cluster: str) -> None:
    with pytest.raises(UserError, match=r"runs Ray 2\.1\.0, this machine 2\.\d+"):
        check_cluster(old_cluster)


def test_closed_address_is_refused() -> None:
    with pytest.raises(UserError, match=r"no Ray cluster answers at 'http://127\.0\.0\.1:1' "):
        check_cluster("http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("given", "environment", "found"),
    [
        ("http://head:8265/", {"RAY_ADDRESS": "http://other:1"}, "http://head:8265"),
        ("head:8265", {}, "http://head:8265"),
        (None, {"RAY_ADDRESS": "https://ray.example.org"}, "https://ray.example.org"),
        (None, {"RAY_ADDRESS": "http://a:1", "RAY_API_SERVER_ADDRESS": "http://b:1"}, "http://b:1"),
    ],
)
def test_address_is_the_one_given_else_the_environments(
    given: str | None, environment: dict[str, str], found: str
) -> None:
    assert find_address(given, environment) == found


@pytest.mark.parametrize("given", [None, "auto:x", "ray://head:10001", "http://head:port", "http://"])
def test_what_is_no_address_is_refused(given: str | None) -> None:
    with pytest.raises(UserError, match=r"^--address: "):
        find_address(given, {})


def test_password_in_an_address_is_refused_without_being_shown() -> None:
    with pytest.raises(UserError, match="leave name and password out") as refused:
        find_address("http://me:hunter22@head:8265", {})
    assert "hunter22" not in str(refused.value)


def test_token_is_found_where_ray_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_token({}) is None
    assert find_token({"RAY_AUTH_TOKEN_PATH": str(file)}) == "from-file"
    assert find_token({"RAY_AUTH_TOKEN_PATH": str(file), "RAY_AUTH_TOKEN": "named"}) == "named"
    assert find_token({"RAY_AUTH_TOKEN": "named", "RAY_AUTH_MODE": "disabled"}) is None
    with pytest.raises(UserError, match="RAY_AUTH_TOKEN_PATH"):
        find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "gone")})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give one of: a command such as `train demo`, --follow ID, --stop ID"),
        (["services", "start"], "submit: given 'services', allowed train, "),
        (["train", "demo", "--bogus"], "No such option: --bogus; see `hmtl-dist train --help`"),
        (["train", "demo", "tasks.puzling.weight=1"], "tasks.puzling"),
        (["train", "mine.yaml"], "recipe 'mine.yaml': no such file"),
        (["tune", "no_such_space", "demo"], "space 'no_such_space'"),
        (["reproduce", "no_such_suite"], "suite 'no_such_suite'"),
        (["train", "demo"], "--address: not given"),
    ],
)
def test_mistake_is_told_before_anything_is_sent(words: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["submit", *words], prog_name="hmtl-dist")
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


# --- the user's own files


def checked(*words: str) -> tuple[list[str], dict[str, str]]:
    """What `submit` makes of a command line."""
    root = typer.main.get_command(app)
    return submit_command.checked(typer.Context(cast("Any", root), info_name="hmtl-dist"), list(words))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_shipped_names_are_sent_as_they_are() -> None:
    words = ["tune", "task_weights", "demo", "data.url=s3://a/b", "--retrain", "1-5"]
    assert checked(*words) == (words, {})


def test_own_recipe_is_sent_with_all_that_it_inherits(here: Path) -> None:
    (here / "base.yaml").write_text("base: demo\nseed: 3\n")
    (here / "mine").mkdir()
    (here / "mine" / "run.yaml").write_text("base: ../base.yaml\nname: mine\n")
    words, files = checked("train", "mine/run.yaml", "seed=4", "--json")
    assert words == ["train", "mine/run.yaml", "seed=4", "--json"]
    tree = yaml.safe_load(files["mine/run.yaml"])
    assert (tree["name"], tree["seed"], "base" in tree) == ("mine", 3, False)
    assert list(files) == ["mine/run.yaml"]


def test_own_space_and_recipe_from_elsewhere_get_a_place_in_the_job(here: Path) -> None:
    space, recipe = here / "space.yaml", here / "recipe.yaml"
    shutil.copy(find_shipped("tune_spaces", "task_weights"), space)
    recipe.write_text("base: demo\n")
    words, files = checked("tune", str(space), str(recipe))
    assert words == ["tune", "submitted/space.yaml", "submitted/recipe.yaml"]
    assert set(files) == {"submitted/space.yaml", "submitted/recipe.yaml"}


def test_files_of_one_name_are_refused(here: Path) -> None:
    for folder in ("a", "b"):
        (here / folder).mkdir()
    shutil.copy(find_shipped("tune_spaces", "task_weights"), here / "a" / "one.yaml")
    (here / "b" / "one.yaml").write_text("base: demo\n")
    with pytest.raises(UserError, match="have the same name; rename one"):
        checked("tune", str(here / "a" / "one.yaml"), str(here / "b" / "one.yaml"))


def test_own_suite_takes_the_recipes_of_its_rows_along(here: Path) -> None:
    (here / "row.yaml").write_text("base: demo\n")
    rows = {"own": {"title": "Own", "recipe": "row.yaml"}, "shipped": {"title": "Shipped", "recipe": "demo"}}
    (here / "suite.yaml").write_text(json.dumps({"title": "Ours", "metric": "expression/accuracy", "rows": rows}))
    words, files = checked("reproduce", "suite.yaml", "--seeds", "0-1")
    assert words == ["reproduce", "suite.yaml", "--seeds", "0-1"]
    assert set(files) == {"suite.yaml", "row.yaml"}


def test_suite_with_a_recipe_from_elsewhere_is_refused(here: Path) -> None:
    (here / "row.yaml").write_text("base: demo\n")
    rows = {"own": {"title": "Own", "recipe": str(here / "row.yaml")}}
    (here / "suite.yaml").write_text(json.dumps({"title": "Ours", "metric": "expression/accuracy", "rows": rows}))
    with pytest.raises(UserError, match=r"rows\.own\.recipe: .* allowed a path below this folder"):
        checked("reproduce", "suite.yaml")
