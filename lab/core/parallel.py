"""Many independent runs: here, in processes, or on a cluster; results are kept as they come."""

import hashlib
import inspect
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import joblib

from .distribution import install
from .progress import tqdm

CHEAP = 1.0  # seconds an item: below this, processes cost more than they give, since each must import torch
BACKENDS = ("serial", "processes", "dask", "ray")


class FailedItems(RuntimeError):
    """Some items failed; `results` has the others in the order of the items, None where one failed."""

    def __init__(self, message: str, results: list) -> None:
        super().__init__(message)
        self.results = results


def map(
    fn: Callable[[Any], Any],
    items: Iterable[Any],
    n_jobs: int | None = None,
    backend: str | None = None,
    journal: str | Path | None = None,
    progress: bool = True,
) -> list:
    """Apply `fn` to every item and give the results in the order of the items, with one torch thread in each worker.

    Left to itself, the first item is run here and timed: under a second it goes on here, above it in one process per
    core. `n_jobs` sets the number of processes (-1: all cores), `backend` is "serial", "processes", "dask" or "ray".
    With `journal`, a folder, each result is written down at once as JSON, and a second start does only what is missing;
    results then come back as JSON gives them (tuples as lists). An item is known by the name of `fn` and its own repr:
    take a fresh folder when `fn` itself changes. A failed item does not stop the others: at the end one FailedItems
    names each with its error and holds the results of the rest. Bad arguments are a one-line error.
    """
    if not callable(fn):
        raise TypeError(f"lab.map: fn={fn!r}: give a function of one item")
    if not isinstance(items, Iterable):
        raise TypeError(f"lab.map: items is a {type(items).__name__}: give a list of them")
    items = list(items)
    backend, n_jobs = _plan(n_jobs, backend)
    diary = Journal(journal, fn, items) if journal is not None else None
    results: dict[int, Any] = dict(diary.done) if diary else {}
    errors: dict[int, tuple[str, str]] = {}
    if results and progress:
        print(f"lab.map: {len(results)} of {len(items)} items are already in {journal}", file=sys.stderr)
    todo = [index for index in range(len(items)) if index not in results]
    with tqdm(total=len(items), initial=len(results), desc="lab.map", disable=not progress, leave=False) as bar:
        for index, result, error in _finished(fn, items, todo, n_jobs, backend):
            if error is None:
                results[index] = diary.note(index, result) if diary else result
            else:
                errors[index] = error
            bar.update()
    ordered = [results.get(index) for index in range(len(items))]
    if errors:
        raise _failed(errors, items, ordered, journal)
    return ordered


# -- where the work is done ------------------------------------------------------------------------------------------


def _plan(n_jobs: int | None, backend: str | None) -> tuple[str | None, int | None]:
    """The backend's name (None: find out by timing) and the number of workers, checked."""
    integer = isinstance(n_jobs, int) and not isinstance(n_jobs, bool)
    if n_jobs is not None and not (integer and (n_jobs >= 1 or n_jobs == -1)):
        raise ValueError(f"lab.map: n_jobs={n_jobs!r}: give an integer, 1 or more, or -1 for all cores")
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"lab.map: backend={backend!r}: give one of {', '.join(BACKENDS)}")
    if backend is None and n_jobs is not None:
        backend = "serial" if n_jobs == 1 else "processes"
    return backend, n_jobs


def _finished(
    fn: Callable[[Any], Any], items: list, todo: list[int], n_jobs: int | None, backend: str | None
) -> Iterator[tuple]:
    """(index, result, error) of each item to do, as they finish."""
    if backend is None and todo:
        first, *todo = todo
        began = time.perf_counter()
        yield _attempt(fn, first, items[first])
        dear = time.perf_counter() - began >= CHEAP
        backend = "processes" if dear and len(todo) > 1 else "serial"
    if backend in (None, "serial"):
        for index in todo:
            yield _attempt(fn, index, items[index])
    elif todo:
        jobs = (joblib.delayed(_attempt)(fn, index, items[index]) for index in todo)
        with _workers(backend, n_jobs):
            yield from _from_workers(jobs)


def _from_workers(jobs: Iterable) -> Iterator[tuple]:
    try:
        yield from joblib.Parallel(return_as="generator_unordered", batch_size=1)(jobs)
    except Exception as error:  # joblib, loky and the clusters each have their own for a worker that died
        reason = next(iter(str(error).splitlines()), "no reason given")
        raise RuntimeError(
            f"lab.map: the workers stopped ({type(error).__name__}: {reason}): lower n_jobs if memory ran out, pass "
            "only what can travel between processes; with journal=folder a second start goes on from here"
        ) from error


def _workers(backend: str, n_jobs: int | None) -> Any:
    """joblib's configuration for a backend by its name in the lab; a one-line error where it is not installed."""
    if backend == "processes":
        return joblib.parallel_config(backend="loky", n_jobs=n_jobs or -1, inner_max_num_threads=1)
    module, remedy = {"dask": ("distributed", install("distributed")), "ray": ("ray", "pip install ray")}[backend]
    try:
        import_module(module)
    except ImportError as error:
        raise ImportError(f"lab.map: backend={backend!r} needs {module}: {remedy}") from error
    if backend == "ray":
        import_module("ray.util.joblib").register_ray()
    else:
        _dask_client()
    return joblib.parallel_config(backend=backend, n_jobs=n_jobs or -1)


def _dask_client() -> None:
    try:
        import_module("distributed").get_client()
    except ValueError as error:
        raise ValueError(
            "lab.map: backend='dask' finds no cluster: first make one, client = dask.distributed.Client(address)"
        ) from error


def _attempt(fn: Callable[[Any], Any], index: int, item: Any) -> tuple[int, Any, tuple[str, str] | None]:
    """(index, result, None), or (index, None, (error in one line, traceback)); runs in the worker."""
    with _one_thread():
        try:
            return index, fn(item), None
        except Exception as error:
            line = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            return index, None, (line, traceback.format_exc())


@contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread, whether torch is loaded already or will be by the item; given back afterwards."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 1
    if torch:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch:
            torch.set_num_threads(threads)
        if before is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _failed(errors: dict[int, tuple[str, str]], items: Sequence, results: list, journal: Any) -> FailedItems:
    kept = f"the others are in {journal}" if journal is not None else "the others are in this error's `results`"
    lines = [f"  {_short(items[index])}: {errors[index][0]}" for index in sorted(errors)]
    message = f"lab.map: {len(errors)} of {len(items)} items failed, {kept}:"
    failed = FailedItems("\n".join([message, *lines]), results)
    failed.add_note(f"The first of them in full:\n{errors[min(errors)][1]}")
    return failed


def _short(item: Any) -> str:
    text = " ".join(repr(item).split())
    return text if len(text) <= 200 else f"{text[:197]}..."


# -- the journal -----------------------------------------------------------------------------------------------------


class Journal:
    """A folder's `journal.jsonl`: a line for each finished item, {"key", "item", "result", "digest"}; `done` by index.

    The digest is of all before it: a line that a kill has torn, or that was altered, is passed over, and its item done
    again. So is a line without one, as versions before 0.2 wrote them: it cannot be told from a line that lost its own.
    """

    def __init__(self, folder: str | Path, fn: Callable, items: Sequence) -> None:
        self.path = Path(folder) / "journal.jsonl"
        self.items = items
        self.keys = [_key(fn, item) for item in items]
        kept = self._read()
        self.done = {index: kept[key] for index, key in enumerate(self.keys) if key in kept}

    def _read(self) -> dict[str, Any]:
        """Results by key, of all lines that are whole."""
        kept: dict[str, Any] = {}
        if self.path.exists():
            for line in self.path.read_bytes().split(b"\n"):
                try:
                    entry = json.loads(line)
                    if entry.pop("digest") == _digest(entry):
                        kept[entry["key"]] = entry["result"]
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    continue
        return kept

    def note(self, index: int, result: Any) -> Any:
        """Append a result and wait until it is on the disk; give it back as JSON holds it."""
        try:
            text = json.dumps({"key": self.keys[index], "item": _short(self.items[index]), "result": result})
            entry = json.loads(text)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"lab.map: the result of {_short(self.items[index])} is a {type(result).__name__}, no JSON "
                f"({error}): return numbers, e.g. outcome.report.to_dict(), or leave journal out"
            ) from error
        self._append(json.dumps(entry | {"digest": _digest(entry)}).encode() + b"\n")
        return entry["result"]

    def _append(self, line: bytes) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                torn = file.tell() and not self._ends_with_newline()
                file.write(b"\n" + line if torn else line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            reason = error.strerror or error
            raise OSError(f"lab.map: cannot write {self.path} ({reason}): give another journal folder") from error

    def _ends_with_newline(self) -> bool:
        with open(self.path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"


def _digest(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry).encode()).hexdigest()[:16]


def _key(fn: Callable, item: Any) -> str:
    return hashlib.sha256(f"{_name(fn)}\n{_identity(item)}".encode()).hexdigest()


def _name(fn: Callable) -> str:
    """What a function is called, with whatever is bound to it."""
    if isinstance(fn, partial):
        bound = sorted(fn.keywords.items())
        return f"partial({_name(fn.func)}, {_identity(fn.args)}, {_identity(bound)})"
    if inspect.ismethod(fn):
        return f"{_identity(fn.__self__)}.{fn.__name__}"
    name = getattr(fn, "__qualname__", None)
    if name is None:
        return _identity(fn)
    if "<lambda>" in name:
        raise ValueError(
            "lab.map: fn is a lambda, which has no name to keep results by: write a def, or leave journal out"
        )
    return f"{fn.__module__}.{name}"


def _identity(value: Any) -> str:
    """A text that is the same in every session: JSON where the value has one, else its repr."""
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError):
        text = repr(value)
    if re.search(r"\bat 0x[0-9a-fA-F]+", text) or "..." in text:
        raise ValueError(
            f"lab.map: {_short(value)} has no repr to keep its result by: make it of numbers, texts, dicts or frozen "
            "dataclasses, or leave journal out"
        )
    return text
