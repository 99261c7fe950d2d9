"""What an error says, in one line."""

import pytest

from lab.core.errors import first_line, kind_and_line


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
    error = ValueError("no zip file: " + "x" * 5000 + "\nmore")
    for line, start in ((first_line(error), "no zip file: xxx"), (kind_and_line(error), "ValueError: no zip")):
        assert len(line) == 300 and line.startswith(start) and line.endswith("x...")
