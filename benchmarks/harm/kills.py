"""Runs that are broken off at a moment drawn uniformly from their time, and go on: they end as if nothing had been.

Every run saves after each of its steps, so that many a moment lies within a save. Killed (SIGKILL, every third time
twice in a row), interrupted (SIGINT, and run again in the same process), on a disk that fills up, with a checkpoint
folder that is moved away, becomes read-only or was mounted and is no more, asked for by a second process; `lab.map`
with a worker that is killed. Whatever was saved is whole afterwards. What a run ends with is its report but for times,
its trace and all that it has found, weights included, to the last bit.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from joblib.externals.loky import get_reusable_executor
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lab
from lab.core import running, store, training

ROOT = Path(__file__).parents[2]
KINDS = {  # and how often
    "killed": 10, "interrupted": 10, "disk full": 2, "folder moved": 1, "second process": 1, "read-only folder": 1,
    "vanished mount": 1, "worker killed": 4,
}  # fmt: skip
MOUNTS = ("read-only folder", "vanished mount")
GAL = lab.GAL(units="channel", steps=30, finetune_steps=15)
BLOCKS = lab.SparseByteNN(steps=30)
INT8 = lab.DQSS(steps=20, calibration=8, mode="aware", candidates=("dorefa", "lsq"))


def begin(name: str) -> tuple[Any, Callable[[], Any]]:
    """A recipe and its task, of a second or a few; only what it needs is imported."""
    sys.path.insert(0, str(ROOT))
    if name == "AceNAS":
        from tests.acenas import spaces

        return lab.AceNAS(budget=12, rounds=3, top=3, epochs=10, pretrain_epochs=2), spaces.chains
    if name == "HybridSD":
        from tests.hybridsd import test_recipe as diffusion

        return lab.HybridSD(**diffusion.QUICK), diffusion.own_task
    if name == "HyperFD":
        from tests.hyperfd import small as clouds

        return lab.HyperFD(K=2, trials=4, R=2, m=16, steps=6), clouds.stream
    if name == "FoldGPT":
        from tests.chain.small import text

        return lab.FoldGPT(removal=1 / 6, sharing=1 / 6, rank=2, gate_steps=12, cure_steps=12), text
    if name == "PAMS":
        return lab.PAMS(steps=20, calibration=3), large_pictures
    gates, chain = lab.Decoupling(steps=30), lab.Chain(GAL, BLOCKS, INT8)
    made = {"GAL": GAL, "Decoupling": gates, "SparseByteNN": BLOCKS, "DQSS": INT8, "Chain": chain}
    return made[name], pictures


def pictures() -> lab.Task:
    """Pictures (1, 8, 8) of three classes, in a new order each pass, and a small network."""
    with training.seeded(0):
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
        ).eval()  # fmt: skip
        y = torch.arange(24) % 3
        x = torch.randn(24, 1, 8, 8) + y[:, None, None, None]
    batches = DataLoader(TensorDataset(x, y), 8, shuffle=True)
    return lab.Task(model=net, batches=batches, score=lab.tasks.accuracy([(x, y)]), name="small pictures")


def large_pictures() -> lab.Task:
    """Small and large pictures, and a network of super-resolution."""
    with training.seeded(0):
        net = lab.nets.edsr(blocks=1, width=4)
        pairs = [(torch.rand(2, 3, 12, 12), torch.rand(2, 3, 24, 24)) for _ in range(4)]
    return lab.Task(model=net, batches=pairs, score=lab.tasks.psnr(pairs), metric="psnr", unit="dB", name="pairs")


NAMES = ("GAL", "Decoupling", "SparseByteNN", "DQSS", "PAMS", "FoldGPT", "AceNAS", "HybridSD", "HyperFD", "Chain")


def cells(quick: bool) -> list[tuple[str, str, int]]:
    """(recipe, what happens, number); of each kind as many as are its share, wherever a run is broken off."""
    kinds = {kind: 1 if quick else count for kind, count in KINDS.items() if kind not in MOUNTS or may_mount()}
    names = {kind: ("lab.map",) if kind == "worker killed" else NAMES for kind in kinds}
    made = [(name, kind, k) for kind, count in kinds.items() for k in range(count) for name in names[kind]]
    return sorted(made, key=lambda cell: cell[2] / kinds[cell[1]])


@cache
def may_mount() -> bool:
    """Whether this process may mount folders: it is root's, under Linux."""
    return sys.platform == "linux" and os.geteuid() == 0 and shutil.which("mount") is not None


def ended(name: str, checkpoint: Path) -> dict[str, str]:
    """What the run ends with; it goes on from what is there."""
    recipe, task = begin(name)
    return ending(recipe.run(task(), progress=False, checkpoint=checkpoint))


def ending(outcome: Any) -> dict[str, str]:
    """All that two runs have in common, as digests."""
    parts = getattr(outcome, "outcomes", None)
    if parts:
        return {f"{k} {name}": value for k, part in enumerate(parts) for name, value in ending(part).items()}
    rows = [[row.name, row.before, row.after] for row in outcome.report if row.kind != "timed"]
    trace = [[step.stage, step.index, step.terms] for step in outcome.trace]
    return {"report": repr(rows), "trace": running.digest(trace), "found": running.digest(outcome.found())}


# -- processes ---------------------------------------------------------------------------------------------------------


def begun(action: Callable[[], Any], file: Path) -> int:
    """A process that does the action and writes down what it gives, or the line that it ends with; its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        training.SAVE_SECONDS = 0.0
        start = time.monotonic()
        try:
            value: Any = {"ended": action()}
        except (OSError, ValueError, RuntimeError) as error:
            value = {"line": str(error)}
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        file.write_text(json.dumps(value | {"seconds": time.monotonic() - start}))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def result(child: int, file: Path) -> dict[str, Any]:
    """What the process has written, once it is over."""
    os.waitpid(child, 0)
    if not file.exists():
        raise RuntimeError("the run fell: its error stands above")
    value = json.loads(file.read_text())
    file.unlink()
    return value


def whole(action: Callable[[], Any], folder: Path) -> dict[str, Any]:
    """What an action gives in a process of its own."""
    return result(begun(action, folder / "ended.json"), folder / "ended.json")


@cache
def unbroken(name: str) -> tuple[dict[str, str], float]:
    """What the run ends with where nothing happens, and its seconds; what it imports is there for all that follow."""
    begin(name)
    with tempfile.TemporaryDirectory() as folder:
        value = whole(lambda: ended(name, Path(folder) / "checkpoint"), Path(folder))
    return value["ended"], value["seconds"]


# -- what happens ------------------------------------------------------------------------------------------------------


def run(item: tuple[str, str, int]) -> dict[str, Any]:
    """One run that is broken off: whether it ended as the unbroken one, when it was, and what was wrong."""
    name, kind, number = item
    if name == "lab.map":
        return mapped(number)
    wanted, seconds = unbroken(name)
    moment = Random(f"{name} {kind} {number}").uniform(0, seconds)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "checkpoint"
        faults = HAPPENS[kind](name, number, place, moment) + half(place)
        value = whole(lambda: ended(name, place), Path(folder))
        litter = [path.name for path in place.rglob("*.part")]
    faults += [f"did not go on: {value['line']}"] if "line" in value else []
    faults += [f"litter: {litter[0]}"] if litter else []
    if "ended" in value and value["ended"] != wanted:
        parts = [part for part in wanted if value["ended"].get(part) != wanted[part]]
        faults.append(f"ended otherwise: {', '.join(parts)}")
    return {"same": not faults, "at": round(moment, 2), "of": round(seconds, 2), "faults": faults}


def half(place: Path) -> list[str]:
    """What has been saved and cannot be read."""
    faults = []
    for path in place.rglob("*.json"):
        try:
            if "tensors" in json.loads(path.read_text(encoding="utf-8")):
                store.load(path.parent, path.stem)
        except ValueError as error:
            faults.append(f"half a save: {error}")
    return faults


def killed(name: str, number: int, place: Path, moment: float) -> list[str]:
    for _ in range(1 + (number % 3 == 0)):
        child = begun(lambda: ended(name, place), place.parent / "ended.json")
        time.sleep(moment)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return []


def interrupted(name: str, number: int, place: Path, moment: float) -> list[str]:
    recipe, task = begin(name)

    def action() -> Any:
        given = task()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        timer = threading.Timer(moment, os.kill, [os.getpid(), signal.SIGINT])
        timer.start()
        with suppress(KeyboardInterrupt):
            recipe.run(given, progress=False, checkpoint=place)
            timer.join()
        return ending(recipe.run(given, progress=False, checkpoint=place))

    value = whole(action, place.parent)
    if "line" in value:
        return [f"the process could not go on: {value['line']}"]
    return [] if value["ended"] == unbroken(name)[0] else ["the process ended otherwise"]


def disk_full(name: str, number: int, place: Path, moment: float) -> list[str]:
    def action() -> Any:
        limit = (500, resource.RLIM_INFINITY)
        timer = threading.Timer(moment, resource.setrlimit, [resource.RLIMIT_FSIZE, limit])
        timer.daemon = True
        timer.start()
        return ended(name, place)

    line = whole(action, place.parent).get("line", "cannot write, nothing was changed")
    is_told = "\n" not in line and "cannot write" in line
    return [] if is_told else [f"not told in one line: {line[:200]!r}"]


def folder_moved(name: str, number: int, place: Path, moment: float) -> list[str]:
    def action() -> Any:
        timer = threading.Timer(moment, lambda: place.exists() and place.rename(place.with_name("elsewhere")))
        timer.daemon = True
        timer.start()
        return ended(name, place)

    line = whole(action, place.parent).get("line", "")
    return [f"not told in one line: {line[:200]!r}"] if "\n" in line else []


def read_only_folder(name: str, number: int, place: Path, moment: float) -> list[str]:
    """From the moment on there lies a view of the folder over it that cannot be written to."""
    place.mkdir()
    child = begun(lambda: ended(name, place), place.parent / "ended.json")
    time.sleep(moment)
    mount("--bind", place, place)
    mount("-o", "remount,bind,ro", place)
    try:
        line = result(child, place.parent / "ended.json").get("line", "cannot write")
    finally:
        subprocess.run(["umount", place], check=True)
    is_told = "\n" not in line and ("cannot write" in line or "cannot save" in line)
    return [] if is_told else [f"not told in one line: {line[:200]!r}"]


def vanished_mount(name: str, number: int, place: Path, moment: float) -> list[str]:
    """The folder is mounted, and no more from the moment on; the run goes on from what the mount held."""
    held = place.with_name("held")
    for folder in (place, held):
        folder.mkdir()
    mount("--bind", held, place)
    child = begun(lambda: ended(name, place), place.parent / "ended.json")
    time.sleep(moment)
    subprocess.run(["umount", "-l", place], check=True)
    line = result(child, place.parent / "ended.json").get("line", "")
    faults = [f"not told in one line: {line[:200]!r}"] if "\n" in line else []
    faults += half(place)
    shutil.rmtree(place)
    held.rename(place)
    return faults


def mount(*options: object) -> None:
    subprocess.run(["mount", *map(str, options)], check=True)


def second_process(name: str, number: int, place: Path, moment: float) -> list[str]:
    first = begun(lambda: ended(name, place), place.parent / "ended.json")
    time.sleep(moment)
    held = (place / ".lock").exists() and _is_alive(first)
    second = whole_beside(lambda: ended(name, place), place.parent / "second.json")
    both = held and _is_alive(first)
    value = result(first, place.parent / "ended.json")
    line = second.get("line", "")
    faults = [f"the first ended otherwise: {value}"] if value.get("ended") != unbroken(name)[0] else []
    if both and not ("is in use by another run" in line and "\n" not in line):
        faults.append(f"the second was not refused: {line[:200]!r}")
    return faults


def whole_beside(action: Callable[[], Any], file: Path) -> dict[str, Any]:
    return result(begun(action, file), file)


def _is_alive(child: int) -> bool:
    """Whether a process still runs; one that is over and not yet waited for does not."""
    state = Path(f"/proc/{child}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


HAPPENS: dict[str, Callable[[str, int, Path, float], list[str]]] = {
    "killed": killed, "interrupted": interrupted, "disk full": disk_full, "folder moved": folder_moved,
    "second process": second_process, "read-only folder": read_only_folder, "vanished mount": vanished_mount,
}  # fmt: skip


# -- the workers of lab.map --------------------------------------------------------------------------------------------


def job(number: int) -> dict[str, str]:
    """A run of an item, in a worker."""
    torch.set_num_threads(1)
    recipe, task = begin("Decoupling")
    return ending(recipe.run(task(), seed=number, progress=False))


def mapped(number: int) -> dict[str, Any]:
    """Runs by `lab.map`, one of whose workers is killed; a second start goes on with the journal."""
    wanted = one_by_one()
    moment = Random(f"lab.map {number}").uniform(0, 3)
    with tempfile.TemporaryDirectory() as folder:
        file, journal = Path(folder) / "ended.json", Path(folder) / "journal"
        child = begun(lambda: across(journal), file)
        while not (workers := children(child)) and _is_alive(child):
            time.sleep(0.01)
        time.sleep(moment)
        for worker in workers[:1]:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        first = result(child, file)
        value = whole(lambda: across(journal), Path(folder))
    line = first.get("line", "journal=folder a second start goes on")
    faults = [] if "\n" not in line and "second start goes on" in line else [f"not told in one line: {line[:200]!r}"]
    faults += [] if value.get("ended") == wanted else ["lab.map ended otherwise"]
    return {"same": not faults, "at": round(moment, 2), "of": 3.0, "faults": faults}


def across(journal: Path) -> list[dict[str, str]]:
    """The same runs by two workers, who are gone afterwards, as they are where a process ends by itself."""
    try:
        return lab.map(job, range(6), n_jobs=2, journal=journal, progress=False)
    finally:
        get_reusable_executor().shutdown(kill_workers=True)


@cache
def one_by_one() -> list[dict[str, str]]:
    """What the same runs give without workers."""
    with tempfile.TemporaryDirectory() as folder:
        return whole(lambda: [job(k) for k in range(6)], Path(folder))["ended"]


def children(process: int) -> list[int]:
    """The workers of a process, which joblib starts anew and not as copies of it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            words = (path.parent / "cmdline").read_text()
            if parent == process and "popen_loky" in words:
                found.append(int(path.parent.name))
    return sorted(found)


def figures(rows: dict[tuple[str, str, int], dict[str, Any]]) -> dict[str, Any]:
    """How many of each kind ended as the unbroken run."""
    count, same = Counter(key[1] for key in rows), Counter(key[1] for key, row in rows.items() if row["same"])
    faults = [f"{name} {kind} {k}: {line}" for (name, kind, k), row in rows.items() for line in row["faults"]]
    return {
        "runs": len(rows),
        "same": sum(same.values()),
        "kinds": {kind: [same[kind], count[kind]] for kind in count},
        "faults": faults,
    }
