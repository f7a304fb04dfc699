"""The table of faults in docs/reliability.md: every row names a test that there is."""

import re
from dataclasses import dataclass
from functools import cache

import pytest

from tests.faults.mutants import MUTANTS, REPOSITORY, Mutant

TABLE = REPOSITORY / "docs" / "reliability.md"
MET = {"R": 13, "U": 11, "D": 16}
"""How many kinds of trouble the second table tells of: with runs, in first hours, with data."""


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    number: int
    fault: str
    seen: str
    lost: str
    time: str
    test: str
    taken_out: str


@cache
def rows() -> list[Row]:
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in TABLE.read_text().splitlines()
        if re.match(r"\| *\d+ *\|", line)
    ]
    return [Row(int(first), *rest) for first, *rest in cells]


def names(row: Row) -> tuple[str, str]:
    """The file under `tests` and the name of a row's test."""
    found = re.fullmatch(r"`([\w/]+\.py)::(test_\w+)(\[[^`]*\])?`", row.test)
    assert found is not None, row.test
    return found[1], found[2]


def test_there_are_at_least_forty_rows_each_with_another_fault() -> None:
    assert len(rows()) >= 40
    assert [row.number for row in rows()] == list(range(1, len(rows()) + 1))
    assert len({row.fault for row in rows()}) == len(rows())


@pytest.mark.parametrize("number", [row.number for row in rows()])
def test_every_row_says_everything_and_its_test_exists(number: int) -> None:
    row = rows()[number - 1]
    assert all((row.fault, row.seen, row.lost, row.time))
    file, name = names(row)
    assert f"\ndef {name}(" in (REPOSITORY / "tests" / file).read_text()


def test_every_kind_of_trouble_has_a_row_whose_test_exists() -> None:
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in TABLE.read_text().splitlines()
        if re.match(r"\| *[RUD]\d+ *\|", line)
    ]
    assert [name for name, *_ in cells] == [f"{kind}{n + 1}" for kind, most in MET.items() for n in range(most)]
    for _, met, seen, test in cells:
        assert met
        assert seen
        file, name = test.strip("`").split("::")
        assert f"\ndef {name}(" in (REPOSITORY / "tests" / file).read_text()


def test_what_is_said_to_be_taken_out_has_a_mutant_that_names_the_test_of_its_row() -> None:
    claimed = {row.number for row in rows() if row.taken_out == "yes"}
    tests = {number: mutant.test for mutant in MUTANTS for number in mutant.rows}
    assert claimed <= tests.keys()
    assert {number: "{}::{}".format(*names(rows()[number - 1])) for number in tests} == {
        number: test.partition("[")[0] for number, test in tests.items()
    }


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"row {mutant.rows[0]}")
def test_what_a_mutant_takes_out_stands_in_the_sources_once(mutant: Mutant) -> None:
    assert (REPOSITORY / "hmtl_dist" / mutant.path).read_text().count(mutant.before) == 1
