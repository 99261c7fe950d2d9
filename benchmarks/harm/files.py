"""Every reader, handed damaged files: it refuses them in one line, or it reads what is there; it never falls.

An input is known by its reader, its cell and its number: `seen("PNG folder", 3, 17)` makes the same damage again. Each
cell is a process of its own; what kills or stops it is one of its inputs, kept by name, and the next goes on behind it.
"""

import faulthandler
import gc
import json
import mmap
import os
import resource
import signal
import struct
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch

from lab.core import running

from . import mutations
from .readers import READERS, SLOW, Reader

HANG = 10  # seconds
ONE_LINE = (ValueError, TypeError, OSError)  # what a user may be told
EACH = 500  # inputs a cell
MEMORY = Path("/dev/shm")


def cells(quick: bool) -> list[tuple[str, int]]:
    """(reader, number): a round of all readers, then of each as many as are its share, then what takes long."""
    first = [(name, 0) for name in READERS]
    more = [(name, k) for name, reader in READERS.items() for k in range(1, reader.rounds)]
    more.sort(key=lambda cell: (READERS[cell[0]].rounds == SLOW, cell[1] / READERS[cell[0]].rounds))
    return first if quick else first + more


def seen(name: str, cell: int, number: int, folder: Path) -> str:
    """Make the whole input and damage it as in this cell; gives what was done."""
    return mutations.put(Random(f"{name} {cell} {number}"), laid(name, folder))[1]


def laid(name: str, folder: Path) -> dict[Path, bytes]:
    """The files of a whole input, laid into the folder."""
    READERS[name].make(folder)
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@cache
def whole(name: str) -> str:
    """The digest of what the reader makes of a whole input."""
    with tempfile.TemporaryDirectory(dir=place()) as folder:
        READERS[name].make(Path(folder))
        return running.digest(READERS[name].read(Path(folder)))


def place() -> Path | None:
    """Where inputs are laid: in memory where that can be, for a disk is no part of what is asked."""
    return MEMORY if MEMORY.is_dir() else None


def run(item: tuple[str, int], each: int = EACH) -> dict[str, Any]:
    """A cell: how many inputs were refused, and read, and what went wrong."""
    name, cell = item
    whole(name)
    counts, faults, most, start = Counter(), [], 0.0, 0
    while start < each:
        with tempfile.TemporaryDirectory(dir=place()) as folder, tempfile.TemporaryFile() as at:
            at.write(bytes(8))
            at.flush()
            child = os.fork()
            if not child:
                _child(name, cell, range(start, each), Path(folder), at.fileno())
            _, status = os.waitpid(child, 0)
            file = Path(folder) / "ended.json"
            if file.exists():
                ended = json.loads(file.read_text())
                counts.update(ended["counts"])
                faults += ended["faults"]
                most = max(most, ended["memory_mb"])
                break
            if os.WIFEXITED(status):
                raise RuntimeError(f"{name} fell: its error stands above")
            at.seek(0)
            (reached,) = struct.unpack("<Q", at.read(8))
        what = "hang" if status in (signal.SIGALRM, signal.SIGPROF) else f"crash by signal {os.WTERMSIG(status)}"
        faults.append({"input": reached, "what": what})
        counts["inputs"] += reached + 1 - start
        start = reached + 1
    return {**counts, "faults": faults, "memory_mb": round(most)}


def _child(name: str, cell: int, numbers: range, folder: Path, at: int) -> None:
    code = 1
    try:
        faulthandler.disable()  # a crash is told by its signal
        gc.freeze()  # what has been imported need not be looked through again
        torch.set_num_threads(1)
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
        warnings.simplefilter("ignore")
        ended = _inputs(name, cell, numbers, folder, mmap.mmap(at, 8))
        (folder / "ended.json").write_text(json.dumps(ended))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _inputs(name: str, cell: int, numbers: range, folder: Path, at: mmap.mmap) -> dict[str, Any]:
    """All of these inputs in this process: one file of a whole input is damaged, and then put back."""
    (folder / "input").mkdir()
    contents, counts, faults = laid(name, folder / "input"), Counter(), []
    honest, before = whole(name), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in numbers:
        at[:8] = struct.pack("<Q", number)
        path, done = mutations.put(Random(f"{name} {cell} {number}"), contents)
        with _alarm():
            what, fault = _read(READERS[name], folder / "input", honest, done)
        counts.update(["inputs", what])
        if fault:
            faults.append({"input": number, "done": done, "what": fault})
        path.write_bytes(contents[path])
        for left in path.parent.iterdir():
            if left.is_file() and left not in contents:
                left.unlink()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"counts": counts, "faults": faults, "memory_mb": grown}


@contextmanager
def _alarm() -> Iterator[None]:
    """A block that the system kills after HANG seconds of computing, or ten times as many of waiting.

    Code in C hears nothing else. On a machine that does much besides, ten seconds on the clock may be one of work.
    """
    clocks = (signal.SIGPROF, signal.ITIMER_PROF, HANG), (signal.SIGALRM, signal.ITIMER_REAL, 10 * HANG)
    for number, clock, seconds in clocks:
        signal.signal(number, signal.SIG_DFL)
        signal.setitimer(clock, seconds)
    try:
        yield
    finally:
        for _, clock, _ in clocks:
            signal.setitimer(clock, 0)


def _read(reader: Reader, folder: Path, honest: str, done: str) -> tuple[str, str]:
    """What became of an input, and what is wrong with that."""
    try:
        result = running.digest(reader.read(folder))
    except ONE_LINE as error:
        line = str(error)
        if not line or "\n" in line or len(line) > 1000:
            return "refused", f"not one line: {type(error).__name__}: {line[:300]!r}"
        return "refused", ""
    except BaseException as error:  # whatever else a reader lets through
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "refused", f"{type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name}:{where.lineno})"
    if result == honest:
        return "read as it was", ""
    is_silent = reader.is_sealed and not done.endswith("within")
    return "read otherwise", f"silent: {done}" if is_silent else ""


def figures(rows: dict[tuple[str, int], dict[str, Any]]) -> dict[str, Any]:
    """Totals, and by reader."""
    names = list(dict.fromkeys(name for name, _ in rows))
    by = {}
    for name in names:
        mine = [row for key, row in rows.items() if key[0] == name]
        by[name] = {
            "inputs": sum(row["inputs"] for row in mine),
            "refused": sum(row.get("refused", 0) for row in mine),
            "faults": sum(len(row["faults"]) for row in mine),
            "most_memory_mb": max(row["memory_mb"] for row in mine),
        }
    kinds = Counter(_kind(fault["what"]) for row in rows.values() for fault in row["faults"])
    return {"inputs": sum(row["inputs"] for row in by.values()), "faults": dict(kinds), "count": len(by), "readers": by}


def _kind(what: str) -> str:
    return next((kind for kind in ("hang", "crash", "silent") if what.startswith(kind)), "no line")
