import pytest

from hmtl_dist.launch.failure import one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("bad shape"), "ValueError: bad shape"),
        (RuntimeError("\n  first\nsecond"), "RuntimeError: first"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_an_error_is_told_in_one_line(error: Exception, line: str) -> None:
    assert one_line(error) == line
