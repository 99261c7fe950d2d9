"""The benchmark of faults in short: a real cloud that is killed, lies and is cut off, and every picture right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_request_is_answered_and_none_wrongly(tmp_path):
    lines, kept = tmp_path / "lines.jsonl", tmp_path / "faults.json"
    command = [sys.executable, ROOT / "benchmarks" / "hybridsd_faults.py", "--requests", "24", "--clients", "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for _ in range(2):  # the second has nothing left to ask
        subprocess.run([*command, "--json", kept, "--work", lines], check=True, env=environment, timeout=300)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    figures = json.loads(kept.read_text())["figures"]
    assert sorted(row["number"] for row in rows) == list(range(24)) and figures["requests"] == 24
    assert figures["wrong"] == 0, [row for row in rows if not row["right"]]
    lies = [row for row in rows if row["fault"].startswith(("lying", "cut off", "wrong model", "nobody"))]
    assert len(lies) >= 10 and all(row["notes"] for row in lies)
    assert len({row["fault"] for row in rows}) == len(figures["faults"]) == 18
