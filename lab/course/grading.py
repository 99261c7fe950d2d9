"""The exercises of a notebook graded from the outputs that are stored in it: offline, and without running its code."""

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..core.distribution import needed
from .checking import EXERCISES, Verdict, check

ASKED = re.compile(r"course\.check\(\s*[\"'](?:\d+_)?(\w+)[\"']\s*,\s*(\d+)")
GIVEN = re.compile(r"^(\w+) (\d+): (.+?) is (?:right|not it yet: .*)$", re.MULTILINE)


def grade(path: str | Path, *, run: bool = False) -> list[Verdict]:
    """A verdict for each exercise that the notebook at `path` asks, by the last answer that its outputs hold.

    An answer is read from the line that `check` left and is checked again, so that a changed verdict changes nothing.
    The notebook's code runs only if `run` is true: what it asks of the machine it gets. ValueError for a file that is
    no notebook or asks nothing.
    """
    cells = _executed(Path(path)) if run else _cells(Path(path))
    try:
        sources = ["".join(cell.get("source", "")) for cell in cells]
        asked = {(name, int(number)) for source in sources for name, number in ASKED.findall(source)}
        given = {(name, int(number)): text for name, number, text in _lines(cells)}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(_none(path)) from error
    asked = {(name, number) for name, number in asked if 1 <= number <= len(EXERCISES.get(name, ()))}
    if not asked:
        raise ValueError(f"{path}: no cell calls lab.course.check: give a notebook of the course")
    return [check(name, number, given.get((name, number))) for name, number in sorted(asked)]


def graded(paths: list[Path], *, run: bool = False) -> Iterator[str]:
    """A line for each notebook, a folder's notebooks one by one: how many exercises are right, and which are not.

    What cannot be graded has its line as well, and the others go on.
    """
    files = [file for path in paths for file in (sorted(path.glob("*.ipynb")) if path.is_dir() else [path])]
    right = total = 0
    for file in files:
        try:
            verdicts = grade(file, run=run)
        except (ValueError, OSError) as error:
            if len(files) == 1:
                raise
            yield str(error)
            continue
        right, total = right + sum(map(bool, verdicts)), total + len(verdicts)
        missing = "".join(f"; {v.notebook} {v.number}: {_state(v)}" for v in verdicts if not v)
        yield f"{file}: {sum(map(bool, verdicts))} of {len(verdicts)} right{missing}"
    yield f"{right} of {total} right in {len(files)} notebook{'s' * (len(files) != 1)}"


def _state(verdict: Verdict) -> str:
    return "not right yet" if verdict.answer else "no answer"


def _cells(path: Path) -> list[dict[str, Any]]:
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(_none(path)) from error


def _none(path: str | Path) -> str:
    return f"{path} is no notebook: give a file that Jupyter saved"


def _executed(path: Path) -> list[dict[str, Any]]:
    """The cells with the outputs that they have when they run from top to bottom, in a folder of their own."""
    _cells(path)  # said in our words if it is none
    with needed("notebook"):
        import nbformat
        from nbclient import NotebookClient
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=None, allow_errors=True, resources=where, store_widget_state=False)
        client.execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _lines(cells: list[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Every line that a check left: notebook, number, answer."""
    for cell in cells:
        for output in cell.get("outputs", ()):
            text = output.get("text", "") or output.get("data", {}).get("text/plain", "")
            yield from GIVEN.findall("".join(text))
