"""The deprecation rule: a warning names the replacement and a version, and nothing outlives the version it names."""

import ast
import re
import warnings
from pathlib import Path

import pytest
from packaging.version import InvalidVersion, Version

import lab
from lab.core import deprecation

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "lab").rglob("*.py"))


def overdue(source: str, version: Version) -> list[str]:
    """Every call of `deprecated` in a source that names no version, or one that has come."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    names = [(call, getattr(call.func, "attr", getattr(call.func, "id", ""))) for call in calls]
    return [fault for call, name in names if name == "deprecated" for fault in late(call, version)]


def late(call: ast.Call, version: Version) -> list[str]:
    try:
        old, _, gone = (ast.literal_eval(part) for part in call.args)
        return [f"{old} was to go in {gone}"] if Version(gone) <= version else []
    except (ValueError, InvalidVersion):
        return [f"line {call.lineno}: give three texts, the last a version"]


def this_version() -> Version:
    """The version that is being made: of a development version the one that it leads to."""
    newest = re.findall(r'fallback_version = "(.+)"', (ROOT / "pyproject.toml").read_text())
    return max(Version(Version(text).base_version) for text in [*newest, lab.__version__])


@pytest.mark.slow
def test_nothing_outlives_its_version():
    version = this_version()
    found = {str(path.relative_to(ROOT)): overdue(path.read_text(encoding="utf-8"), version) for path in SOURCES}
    assert {name: faults for name, faults in found.items() if faults} == {}


def test_what_is_overdue_is_noticed():
    call = "deprecation.deprecated('GAL(rate=...)', 'GAL(lr=...)', '0.4')"
    assert overdue(call, Version("0.3")) == []
    assert overdue(call, Version("0.4")) == ["GAL(rate=...) was to go in 0.4"]
    assert overdue("deprecated('a', 'b', 'soon')", Version("0.3")) == ["line 1: give three texts, the last a version"]
    assert overdue("deprecated('a', 'b')", Version("0.3")) == ["line 1: give three texts, the last a version"]


def test_the_warning_is_one_line_at_the_callers():
    def old():
        deprecation.deprecated("lab.old()", "lab.new()", "0.4")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        old()
    (warning,) = caught
    assert str(warning.message) == "lab.old() goes in version 0.4: write lab.new()"
    assert warning.category is FutureWarning and warning.filename == __file__
