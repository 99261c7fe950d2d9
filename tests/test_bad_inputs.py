"""A bad input anywhere on the public surface ends in one line with what is wrong, and leaves nothing behind."""

import inspect
import re
import warnings
from collections.abc import Iterator

import pytest

import lab

from .bad_inputs import ROWS, WITHOUT

ONE_LINE = (ValueError, TypeError, OSError, ImportError)
LONG = ("tasks.", "hybridsd.", "surgery.", "cost.", "sparsebytenn.")  # these bring libraries that take seconds to load


def public() -> Iterator[str]:
    """Every function and class that `lab` names, and those of the modules that it names, each at its first place."""
    seen: set[int] = set()
    modules = [("", lab), *((f"{name}.", getattr(lab, name)) for name in lab.__all__)]
    for path, module in modules:
        if not inspect.ismodule(module):
            continue
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        for name in getattr(module, "__all__", own):
            value = getattr(module, name)
            if callable(value) and id(value) not in seen and not name.startswith("_"):
                seen.add(id(value))
                yield path + name


@pytest.mark.slow
def test_every_public_name_has_its_bad_inputs():
    rows, names = {row.name for row in ROWS}, set(public())
    assert names - rows - WITHOUT.keys() == set(), "give these a row in bad_inputs.py"
    assert (rows | WITHOUT.keys()) - names == set() and not rows & WITHOUT.keys()
    assert len(ROWS) >= 120


def slowly(row) -> list:
    return [pytest.mark.slow] if row.name.startswith(LONG) else []


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=f"{k} {row.name}", marks=slowly(row)) for k, row in enumerate(ROWS)]
)
def test_it_is_told_in_one_line(row, tmp_path):
    before = re.findall("file", inspect.getsource(row.call))
    with warnings.catch_warnings(action="ignore"), pytest.raises(ONE_LINE) as caught:
        row.call(tmp_path)
    line = str(caught.value)
    assert line and "\n" not in line and len(line) < 600, line
    assert [word for word in row.words if word not in line] == [], line
    assert len(list(tmp_path.rglob("*"))) <= len(before), "something was left behind"
