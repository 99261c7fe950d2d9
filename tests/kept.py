"""What the tests of all contests ask of a kept file: it is of today's settings, and its cells can be made again.

Where a cell trains for a minute or more, the tests make it without its training; `CELLS=1` trains these too.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    import contest
finally:
    sys.path.remove(str(ROOT / "benchmarks"))

trains_for_minutes = pytest.mark.skipif(not os.environ.get("CELLS"), reason="CELLS=1 trains kept cells of minutes anew")


def validated(path: Path, now: contest.Contest) -> list[dict]:
    """The records of a kept file, which must be whole, of today's settings, rivals and seeds."""
    kept = json.loads(path.read_text())
    assert kept["digest"] == now.digest and contest.checked(kept["records"]) == kept["records"]
    assert kept["settings"] == json.loads(json.dumps(now.settings, default=repr))
    assert {r["rival"] for r in kept["records"]} <= {*now.rivals}
    assert {r["seed"] for r in kept["records"]} <= {*now.seeds}
    return kept["records"]


def twice(path: Path, now: contest.Contest, rival: str, budget: Any, folder: Path) -> tuple[dict, dict]:
    """The figures of seed 10's cell as they were kept, and made again."""
    records = json.loads(path.read_text())["records"]
    (record,) = (r for r in records if (r["rival"], r["budget"], r["seed"]) == (rival, budget, 10))
    return record["figures"], contest.made(now, budget, 10, rival, folder)["figures"]
