"""Bad inputs over the whole public surface, out of the table that the tests read."""

import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.bad_inputs import ROWS

ONE_LINE = (ValueError, TypeError, OSError, ImportError)


def cells(quick: bool) -> list[tuple[int, str]]:
    """(row, public name)."""
    return [(k, row.name) for k, row in enumerate(ROWS)][:: 10 if quick else 1]


def run(item: tuple[int, str]) -> dict[str, Any]:
    """One call, which must end in one line with the words of its row."""
    row = ROWS[item[0]]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        try:
            row.call(Path(folder))
        except ONE_LINE as error:
            line = str(error)
            is_told = line and "\n" not in line and all(word in line for word in row.words)
            return {"kind": type(error).__name__, "faults": [] if is_told else [line[:200]]}
        except Exception as error:
            return {"kind": type(error).__name__, "faults": [f"{type(error).__name__}: {error}"[:200]]}
    return {"kind": "none", "faults": ["nothing was said"]}


def figures(rows: dict[tuple[int, str], dict[str, Any]]) -> dict[str, Any]:
    """How many calls of how many public names, and what they raised."""
    faults = [f"{name}: {line}" for (_, name), row in rows.items() for line in row["faults"]]
    kinds = Counter(row["kind"] for row in rows.values())
    return {"inputs": len(rows), "names": len({name for _, name in rows}), "raised": dict(kinds), "faults": faults}
