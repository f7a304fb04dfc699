"""Recipes, overrides, and the one line for whatever is wrong with them."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from hmtl_dist.config import io
from hmtl_dist.config.base import Section
from hmtl_dist.config.dialect import one_line, parse
from hmtl_dist.errors import UserError


class Classification(Section):
    type: Literal["classification"]
    weight: float = 1.0
    labels: tuple[str, ...] = ()


class Puzzling(Section):
    type: Literal["puzzling"]
    weight: float = 1.0
    """Factor of the loss."""
    grid: Literal[2, 3] = 2


AnyTask = Annotated[Classification | Puzzling, Field(discriminator="type")]


class Data(Section):
    url: str
    """Folder or URL of the shards; `s3://` for object storage."""
    batch_size: int = Field(default=64, ge=1)
    """Samples a step, over all workers."""
    lanes: int = 8
    split: Literal["train", "val"] = "train"


class Launch(Section):
    kind: Literal["ray", "local"] = "ray"
    num_workers: int = 1

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


class Root(Section):
    name: str = "run"
    data: Data
    tasks: dict[str, AnyTask]
    launch: Launch = Launch()
    max_steps: int | None = None
    rate: float | Literal["auto"] = "auto"

    @model_validator(mode="after")
    def _divides(self) -> "Root":
        if self.data.batch_size % self.data.lanes:
            raise ValueError(f"data.batch_size: {self.data.batch_size} is not a multiple of {self.data.lanes}")
        return self


RECIPE = """
data: {url: s3://bucket/faces}
tasks:
  expression: {type: classification}
  puzzling: {type: puzzling, grid: 3}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return str(path)


def problem(recipe: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        io.load_tree(Root, recipe, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


# --- overrides


def test_overrides_reach_sections_mappings_and_lists(recipe: str) -> None:
    config = io.load_tree(
        Root,
        recipe,
        ["data.batch_size=32", "tasks.puzzling.weight=5e-1", "tasks.expression.labels=[a, b]", "max_steps=7"],
    )
    assert config.data.batch_size == 32
    assert config.tasks["puzzling"].weight == 0.5
    assert config.tasks["expression"] == Classification(type="classification", labels=("a", "b"))
    assert config.max_steps == 7


def test_later_override_wins(recipe: str) -> None:
    assert io.load_tree(Root, recipe, ["name=a", "name=b"]).name == "b"


def test_override_adds_a_task(recipe: str) -> None:
    config = io.load_tree(Root, recipe, ["tasks.gender.type=classification", "tasks.gender.weight=2"])
    assert config.tasks["gender"].weight == 2


def test_override_removes_a_task(recipe: str) -> None:
    assert list(io.load_tree(Root, recipe, ["tasks.puzzling=null"]).tasks) == ["expression"]


def test_null_is_a_value_where_the_key_is_fixed(recipe: str) -> None:
    assert io.load_tree(Root, recipe, ["max_steps=3", "max_steps=null"]).max_steps is None


def test_override_reaches_into_a_short_form(tmp_path: Path) -> None:
    path = write(tmp_path, "short.yaml", RECIPE + "launch: local\n")
    assert io.load_tree(Root, path, ["launch.num_workers=2"]).launch == Launch(kind="local", num_workers=2)


def test_value_may_hold_an_equals_sign(recipe: str) -> None:
    assert io.load_tree(Root, recipe, ["data.url=s3://b/a=b"]).data.url == "s3://b/a=b"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name", "override 'name': write it as path.to.key=value"),
        ("a..b=1", "override 'a..b=1': write it as path.to.key=value"),
        ("name.first=x", "name.first: 'name' has no keys, it is 'run'"),
        ("tasks.puzling=null", "tasks.puzling: no task 'puzling' to remove; did you mean 'puzzling'?"),
        ("data.url=[1", "data.url: expected ',' or ']', but got '<stream end>'"),
    ],
)
def test_override_that_cannot_be_applied_is_explained(recipe: str, override: str, message: str) -> None:
    assert problem(recipe, "name=run", override) == message


# --- what the schema says


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dta.url=x", "dta: unknown key 'dta'; did you mean 'data'?"),
        ("data.batchsize=8", "data.batchsize: unknown key 'batchsize'; did you mean 'batch_size'?"),
        ("batch_size=8", "batch_size: unknown key 'batch_size'; did you mean 'data.batch_size'?"),
        ("data.zzz=8", "data.zzz: unknown key 'zzz'; allowed: url, batch_size, lanes, split"),
        ("tasks.puzzling.wieght=1", "tasks.puzzling.wieght: unknown key 'wieght'; did you mean 'weight'?"),
        ("data.batch_size=many", "data.batch_size: given 'many', allowed a whole number"),
        ("data.batch_size=0", "data.batch_size: given 0, allowed at least 1"),
        ("data.batch_size=60", "data.batch_size: 60 is not a multiple of 8"),
        ("data.split=vall", "data.split: given 'vall', allowed train, val (did you mean 'val'?)"),
        ("tasks.puzzling.grid=4", "tasks.puzzling.grid: given 4, allowed 2, 3"),
        ("tasks.puzzling.weight=.inf", "tasks.puzzling.weight: given inf, allowed a finite number"),
        ("tasks.expression.labels=a", "tasks.expression.labels: given 'a', allowed a list, such as [a]"),
        ("tasks.expression.labels='a, b'", "tasks.expression.labels: given 'a, b', allowed a list, such as [a, b]"),
        ("tasks.expression.labels=3", "tasks.expression.labels: given 3, allowed a list, such as [3]"),
        ("tasks.expression.labels={a: b}", "tasks.expression.labels: given {'a': 'b'}, allowed a list"),
        ("data=5", "data: given 5, allowed a section with the keys url, batch_size, lanes, split"),
        ("data={lanes: 4}", "data.url: required, but not given: Folder or URL of the shards"),
        ("tasks.puzzling=5", "tasks.puzzling: given 5, allowed a section with type: classification, puzzling"),
        (
            "tasks.puzzling.type=puzling",
            "tasks.puzzling.type: given 'puzling', allowed classification, puzzling (did you mean 'puzzling'?)",
        ),
        ("tasks={x: {}}", "tasks.x.type: required, but not given; allowed: classification, puzzling"),
        ("tasks.puzling.weight=1", "tasks.puzling.weight: no task 'puzling'; did you mean 'puzzling'?"),
        (
            "tasks.age.weight=1",
            (
                "tasks.age.weight: no task 'age'; there are: expression, puzzling; "
                "a new one needs tasks.age.type=classification|puzzling"
            ),
        ),
        ("rate=fast", "rate: given 'fast', allowed a number or auto"),
        ("name=3", "name: given 3, allowed text (in quotes if it looks like a number)"),
    ],
)
def test_one_line_says_path_given_and_allowed(recipe: str, override: str, message: str) -> None:
    assert problem(recipe, override) == message


def test_further_problems_are_counted(recipe: str) -> None:
    assert problem(recipe, "data.lanes=x", "data.zzz=1").endswith("allowed: url, batch_size, lanes, split (and 1 more)")


# --- files


def test_base_is_merged_below(tmp_path: Path, recipe: str) -> None:
    child = write(
        tmp_path, "child.yaml", "base: recipe.yaml\nname: child\ntasks: {puzzling: {weight: 3}, expression: null}"
    )
    config = io.load_tree(Root, child)
    assert config.name == "child"
    assert config.tasks == {"puzzling": Puzzling(type="puzzling", grid=3, weight=3)}


def test_task_of_another_type_replaces_the_inherited_one(tmp_path: Path, recipe: str) -> None:
    child = write(tmp_path, "child.yaml", "base: recipe.yaml\ntasks: {puzzling: {type: classification}}")
    assert io.load_tree(Root, child).tasks["puzzling"] == Classification(type="classification")


def test_circle_of_bases_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "base: b.yaml")
    assert problem(write(tmp_path, "b.yaml", "base: a.yaml")).endswith(
        "b.yaml would inherit from itself; break the circle"
    )


def test_missing_base_names_the_file_that_asks_for_it(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "base: gone.yaml")
    assert problem(path) == f"{path}: base: recipe 'gone.yaml': no such file"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b", ", line 2: the key 'name' stands twice"),
        ("a:\n\tb: 1", ", line 2: a tab stands where YAML takes spaces only; indent with spaces"),
        ("a: &x 1\nb: *x", ", line 2: aliases (*name) are not supported: write the value out, or inherit with base:"),
        ("a: " + "[" * 40, ": nested deeper than 32 levels"),
        ("- a", ": given ['a'], allowed a mapping of keys to values"),
        ("1: a", ": the key 1 is not text; put it in quotes"),
        ("a: !!python/object:os.system x", ": could not determine a constructor for the tag"),
        ("a: b: c", ": mapping values are not allowed here"),
    ],
)
def test_unfit_yaml_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, "bad.yaml", text)
    assert problem(path).startswith(path + message)


def test_huge_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "big.yaml", "#" * (1 << 21))
    assert problem(path) == f"{path}: larger than 1 MiB; is it a YAML file?"


def test_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "picture.yaml"
    path.write_bytes(b"\xff\xd8\xff")
    assert problem(str(path)) == f"{path}: not a text file in UTF-8"


def test_file_and_shipped_name_are_told_apart(tmp_path: Path) -> None:
    assert problem(str(tmp_path / "none.yaml")) == f"recipe '{tmp_path}/none.yaml': no such file"
    assert problem(f"{tmp_path}/") == f"recipe '{tmp_path}/': is a folder, not a file"
    assert problem("nonesuch").startswith("recipe 'nonesuch': no recipe of this name is shipped; ")


def test_shipped_space_is_found_by_name() -> None:
    assert "task_weights" in io.list_shipped("tune_spaces")
    assert io.find_shipped("tune_spaces", "task_weights").is_file()


def test_misspelt_shipped_name_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'task_weights'"):
        io.find_shipped("tune_spaces", "task_weight")


# --- text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1_000", 1000),
        (".5", 0.5),
        ("no", "no"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("", None),
    ],
)
def test_scalars_are_read_as_in_yaml_1_2(text: str, value: Any) -> None:
    assert parse(text, "here") == value


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="ascii")),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab1.:-~", max_size=4), inner, max_size=3),
        max_leaves=6,
    )
)
def test_written_values_are_read_back(value: Any) -> None:
    assert parse(one_line(value), "here") == value


def test_described_tree_reads_back_the_same(tmp_path: Path, recipe: str) -> None:
    config = io.load_tree(Root, recipe, ["name='1e-3'", "data.url='a: # b'"])
    assert io.load_tree(Root, write(tmp_path, "again.yaml", io.describe(config))) == config


def test_description_carries_the_help(recipe: str) -> None:
    line = next(line for line in io.describe(io.load_tree(Root, recipe)).splitlines() if "batch_size" in line)
    assert " ".join(line.split()) == "batch_size: 64 # Samples a step, over all workers."


def test_flat_tree_is_dotted_text(recipe: str) -> None:
    flat = io.flatten(io.load_tree(Root, recipe))
    assert flat["tasks.puzzling.grid"] == "3"
    assert flat["data.url"] == "s3://bucket/faces"
    assert flat["max_steps"] == "null"


def test_home_is_absolute_and_follows_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HMTL_HOME", "here")
    assert io.home() == tmp_path / "here"
