"""What the lab promises of its own reliability, put to the test for as long as one likes.

    python benchmarks/reliability.py --part kills|files|kernels|service|privacy|memory|inputs
                                     [--quick] [--minutes 30] [--json FILE]

A part is a list of cells (a file of `harm` says which); what each has shown is a line in `runs/reliability`, so that a
run that was broken off goes on behind it, and `--minutes` ends one. `--json` keeps the figures of all that has run so
far: counts, faults, the seconds that it took, and the machine. The exit status is 1 where there is a fault.
"""

import argparse
import json
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from lab.core import store
from lab.core.machine import machine

PARTS = ("kills", "files", "kernels", "service", "privacy", "memory", "inputs")
RUNS = Path(__file__).parents[1] / "runs" / "reliability"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="a first look at each part")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="the time for each part")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=Path, default=RUNS, help="where lines are kept")
    options = parser.parse_args(argv)
    if unknown := set(options.part.split(",")) - set(PARTS):
        parser.error(f"--part {', '.join(sorted(unknown))}: give some of {', '.join(PARTS)}")
    torch.set_num_threads(1)
    shown = {}
    for name in options.part.split(","):
        rows = done(name, options)
        part = import_module(f"harm.{name}")
        seconds = round(sum(row.pop("seconds") for row in rows.values()))
        made = part.figures(rows)
        count = sum(made["faults"].values()) if isinstance(made["faults"], dict) else len(made["faults"])
        shown[name] = {**made, "fault_count": count, "cells": len(rows), "seconds": seconds}
        print(json.dumps({name: shown[name]}, indent=1), flush=True)
    if options.json:
        kept = json.loads(options.json.read_text()) if options.json.exists() else {}
        store.write(options.json, (json.dumps({**kept, **shown, "machine": machine()}, indent=1) + "\n").encode())
    return int(any(shown[name]["faults"] for name in shown))


def done(name: str, options: argparse.Namespace) -> dict[tuple, dict[str, Any]]:
    """What each cell has shown, those that are missing once they have run."""
    part, path = import_module(f"harm.{name}"), options.runs / f"{name}{'-quick' * options.quick}.jsonl"
    rows = {tuple(line.pop("cell")): line for line in lines(path)}
    until = time.monotonic() + 60 * options.minutes
    for cell in part.cells(options.quick):
        if cell in rows or time.monotonic() > until:
            continue
        start = time.monotonic()
        row = {**part.run(cell), "seconds": round(time.monotonic() - start, 2)}
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"cell": cell, **row}) + "\n")
        rows[cell] = row
        if row.get("faults"):
            print(cell, row["faults"], flush=True)
    return rows


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file: a kill may leave half of the last."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]


if __name__ == "__main__":
    sys.exit(main())
