"""A network's attempts, each in a process of its own with limits of time and memory, and what became of each.

works      what was asked of the method holds, within the tolerances of `attempts`
refused    the lab said no in one line
different  the outcome differs from what it must equal, without a word
failed     any other exception: what a user would see as a traceback
hangs      more than the seconds allowed, of the processor's time
memory     more than the memory allowed
skipped    not tried, and why
"""

import multiprocessing
import os
import resource
import signal
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import lab

from . import attempts, weights
from .networks import Network, by_name

REFUSALS = (ValueError, TypeError, FloatingPointError)  # what the lab raises, in one line
SECONDS, GIGABYTES = 60, 8
LARGE = 150e6  # parameters above which only surgery is tried
PACKAGE = str(Path(lab.__file__).parent)
OF_TORCH = ("DefaultCPUAllocator", "not enough memory", "bad allocation")


def trials(name: str, methods: list[str], pipe: Connection) -> None:
    """Build a network once and send a record for each method; runs in a process of its own."""
    torch.set_num_threads(1)
    network = by_name(name)
    try:
        model, x = built(network)
    except Exception as error:
        for method in methods:
            pipe.send({"method": method, "outcome": "skipped", "why": f"not built here: {in_one_line(error)}"})
        return
    size = sum(p.numel() for p in model.parameters())
    for method in methods:
        if size > LARGE and method not in ("surgery", "Torch-Pruning"):
            record = {"outcome": "skipped", "why": f"over {LARGE / 1e6:.0f} M parameters: by surgery alone"}
        else:
            record = _guarded(network, model, x, method)
        pipe.send({"method": method, "parameters": size, "side": x.shape[-1], **record})


def built(network: Network) -> tuple[torch.nn.Module, torch.Tensor]:
    """A network with weights that hide nothing, and its two pictures; the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network.build()
    x = network.images()
    return weights.lively(model, x), x


def _guarded(network: Network, model: torch.nn.Module, x: torch.Tensor, method: str) -> dict[str, Any]:
    """The record of one attempt, which runs in a fork of this process."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=_attempt, args=(network, model, x, method, theirs))
    start = time.monotonic()
    process.start()
    theirs.close()
    record: dict[str, Any] = {}
    while ours.poll(max(0.0, start + 5 * SECONDS - time.monotonic())):  # its own processor time is limited below
        try:
            record |= ours.recv()
        except EOFError:
            break
    else:
        process.kill()
    process.join()
    if "outcome" not in record:
        late = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        why = f"over {SECONDS} s" if late else f"the process ended with status {process.exitcode}"
        record |= {"outcome": "hangs" if late else "failed", "why": why}
    return record


def _attempt(network: Network, model: torch.nn.Module, x: torch.Tensor, method: str, pipe: Connection) -> None:
    """One attempt under its limits, telling figures as they come."""
    _limit()
    start, base = time.process_time(), _status("VmRSS")
    record = judged(network, model, x, method, lambda **figures: pipe.send(figures))
    seconds, peak = time.process_time() - start, _status("VmHWM") - base
    pipe.send({**record, "seconds": seconds, "megabytes": max(0.0, peak / 1024)})
    pipe.close()


def judged(
    network: Network, model: torch.nn.Module, x: torch.Tensor, method: str, note: attempts.Note
) -> dict[str, Any]:
    """Try a method on a network, here and now: the outcome and why, while `note` takes the figures."""
    try:
        attempts.attempt(method, model, x, network.classifies, note)
    except Exception as error:
        outcome = _outcome(error)
        where = {"where": _where(error)} if outcome == "failed" else {}
        return {"outcome": outcome, "why": in_one_line(error), **where}
    return {"outcome": "works"}


def _limit() -> None:
    """Limit this process's time and memory from here on, and count its peak anew."""
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (used + SECONDS, used + SECONDS + 5))
    room = (_status("VmSize") << 10) + (GIGABYTES << 30)
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    """A line of /proc/self/status, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def _outcome(error: Exception) -> str:
    """Whether outputs differ, memory ran out, the lab refused in one line, or something broke."""
    if isinstance(error, weights.Different):
        return "different"
    if isinstance(error, MemoryError) or any(words in str(error) for words in OF_TORCH):
        return "memory"
    raised = traceback.extract_tb(error.__traceback__)[-1].filename
    is_line = isinstance(error, REFUSALS) and "\n" not in str(error)
    return "refused" if is_line and raised.startswith(PACKAGE) else "failed"


def _where(error: Exception) -> str:
    """The last line of the lab's own that the error came through."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(PACKAGE)]
    return f"{os.path.relpath(ours[-1].filename, PACKAGE)}:{ours[-1].lineno}" if ours else ""


def in_one_line(error: BaseException) -> str:
    """An error as one line of at most 200 letters; its kind, where it is none that the lab raises on purpose."""
    kind = "" if isinstance(error, (*REFUSALS, weights.Different)) else f"{type(error).__name__}: "
    return (kind + " ".join(str(error).split()))[:200]
