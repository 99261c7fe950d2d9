"""What a long-lived process keeps: memory, file descriptors and threads after much work, beside those after a little.

Each piece of work is a process of its own. Its memory is taken after a warm-up and at the end: `grown` is the share by
which it has grown, which may be 5 %, and 4 MB whatever the share.
"""

import ctypes
import gc
import json
import os
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lab.sparsebytenn.engine import compile

from . import kills, readers

MOST, LEAST = 0.05, 4.0  # share, MB
TIMES = {"slider": 2000, "engine calls": 100_000, "recipe": 20, "reader": 2000}


def cells(quick: bool) -> list[tuple[str, int]]:
    """(work, how often)."""
    works = ["slider", "engine calls"]
    works += [f"reader {name}" for name in ("PNG folder", "ONNX", "hand-off", "CSV", "npz")]
    works += [f"recipe {name}" for name in kills.NAMES]
    return [(work, TIMES.get(work) or TIMES[work.split()[0]]) for work in works] if not quick else [("slider", 100)]


def work_of(name: str) -> Callable[[], object]:
    """One step of this work."""
    kind, _, which = name.partition(" ")
    if kind == "recipe":
        recipe, task = kills.begin(which)
        return lambda: recipe.run(task(), progress=False)
    if kind == "reader":
        folder, reader = Path(tempfile.mkdtemp()), readers.READERS[which]
        reader.make(folder)
        return lambda: reader.read(folder)
    if kind == "engine":
        engine, x = compile(readers.network(), torch.zeros(1, 1, 6, 6)), np.ones((1, 6, 6), np.float32)
        return lambda: engine._run([x])
    return slider()


def slider() -> Callable[[], object]:
    """One position after another of the pruning-rate slider."""
    from lab.ui import pruning_rate
    from lab.ui.pruning import RATES

    explorer = pruning_rate(kills.begin("GAL")[1](), progress=False)
    step = iter(range(10**9))

    def move() -> None:
        explorer.rate = RATES[next(step) % len(RATES)]

    return move


def run(item: tuple[str, int]) -> dict[str, Any]:
    """This work as often as that, in a process of its own."""
    name, times = item
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ended.json"
        child = os.fork()
        if not child:
            _child(name, times, file)
        os.waitpid(child, 0)
        if not file.exists():
            raise RuntimeError(f"{name} fell: its error stands above")
        first, last = json.loads(file.read_text())
    grown = last["mb"] - first["mb"]
    faults = [f"{grown:.1f} MB more"] if grown > max(LEAST, MOST * first["mb"]) else []
    faults += [f"{last[k] - first[k]} {k} more" for k in ("descriptors", "threads") if last[k] > first[k]]
    return {"first": first, "last": last, "grown": round(grown / first["mb"], 4), "faults": faults}


def _child(name: str, times: int, file: Path) -> None:
    try:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        step = work_of(name)
        for _ in range(max(3, times // 10)):
            step()
        first = state()
        for _ in range(times):
            step()
        file.write_text(json.dumps([first, state()]))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def state() -> dict[str, Any]:
    """What this process holds once all is collected and given back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    return {"mb": pages * os.sysconf("SC_PAGESIZE") / 2**20, "descriptors": descriptors, "threads": threads}


def figures(rows: dict[tuple[str, int], dict[str, Any]]) -> dict[str, Any]:
    """By work, how often it was done and by which share memory has grown."""
    faults = [f"{name}: {line}" for (name, _), row in rows.items() for line in row["faults"]]
    works = {name: {"times": times, "grown": row["grown"]} for (name, times), row in rows.items()}
    return {"works": works, "most": max(row["grown"] for row in rows.values()), "faults": faults}
