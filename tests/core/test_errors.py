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


def test_a_line_that_quotes_a_whole_file_is_cut():
    line = first_line(ValueError("no zip file: " + "x" * 5000 + "\nmore"))
    assert len(line) == 300 and line.startswith("no zip file: xxx") and line.endswith("x...")
