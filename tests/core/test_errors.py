"""What an error says, in one line."""

import pytest

from lab.core.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError(), "ValueError"),
        (RuntimeError("\nbelow an empty line"), "RuntimeError"),
        (AssertionError(""), "AssertionError"),
    ],
)
def test_the_first_line_or_the_kind(error, line):
    assert first_line(error) == line
