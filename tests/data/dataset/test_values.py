import numpy as np
import pytest

from hmtl_dist.data.dataset.labels import read_value
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.data.dataset.values import Value, class_of, group_of, is_missing, number_of

NUMBER = Field(kind="number")


@pytest.mark.parametrize("value", [None, "", " ", "NA", "n/a", "nan", "NaN", "null", float("nan")])
def test_no_value_is_the_same_in_tables_and_json(value: Value) -> None:
    assert is_missing(value)
    assert read_value(value, "age", NUMBER) is None
    assert read_value(value, "mood", Field(kind="category", classes=("a", "b"))) is None


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (20170110.0, "20170110"),
        ("20170110.0", "20170110"),
        (20170110, "20170110"),
        ("1.", "1"),
        (-2.0, "-2"),
        (0.1, "0.1"),
        (1.23456789012, "1.23456789012"),
        (1e300, str(int(1e300))),
        (True, "true"),
        (" glad ", "glad"),
        ("1.0.0", "1.0.0"),
        ("v1.0", "v1.0"),
    ],
)
def test_a_class_is_the_exact_text_of_a_value(value: str | float | bool, name: str) -> None:
    assert class_of(value) == name


def test_neighbouring_codes_are_different_classes() -> None:
    assert len({class_of(20170110.0 + step) for step in range(20)}) == 20


@pytest.mark.parametrize("value", ["inf", "-Infinity", float("inf"), "1e400", 10**400, 3.5e38, "3.5e38", "ten", True])
def test_what_float32_cannot_hold_is_no_number(value: str | float | bool) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # it is all that is said
        number_of(value)
    with pytest.raises(ValueError, match=r"age is .*, not a number"):
        read_value(value, "age", NUMBER)


@pytest.mark.parametrize("value", ["3.25", 3.25, " 3.25 "])
def test_a_number_is_read_from_text_and_from_json_alike(value: str | float) -> None:
    assert number_of(value) == np.float32(3.25)


def test_a_class_that_was_asked_for_by_name_is_one_whatever_it_means_elsewhere() -> None:
    assert read_value("NA", "region", Field(kind="category", classes=("EU", "NA"))) == "NA"
    assert read_value("2.0", "version", Field(kind="category", classes=("1.0", "2.0"))) == "2.0"


@pytest.mark.parametrize(
    ("value", "group"),
    [("NA", "NA"), ("nan", "nan"), ("  p1 ", "p1"), (7.0, "7"), ("7.0", "7"), ("", None), (" ", None), (None, None)],
)
def test_a_group_is_nobodys_only_where_nothing_is_written(value: Value, group: str | None) -> None:
    assert group_of(value) == group
    assert group_of(float("nan")) is None
