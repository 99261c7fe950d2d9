"""Dense engines beside ours, each with its own best settings, and how contenders take turns on the clock.

onnxruntime, OpenVINO (`pip install openvino`) and MNN (`pip install MNN`; its command `mnnconvert` reports what is
converted to its makers, so the converter is called as a function here). One that is not installed is left out, with a
line that says so. Each must give torch's answer before it is timed, on no more threads than it was allowed.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas
import torch
from torch import nn

from lab.core.onnx import export

Call = Callable[[], np.ndarray]

DENSE = ("onnxruntime, dense", "OpenVINO, dense", "MNN, dense", "engine, 0%")
PACKAGES = {"onnxruntime": "onnxruntime", "OpenVINO": "openvino", "MNN": "MNN"}
TOLERANCE = 1e-3  # of the largest number that torch gives
# The converter's own protobuf, MNN.Compression.Pipeline: version 0.0.0, one algorithm, pruning in blocks of 4 rows.
BLOCKS_OF_4 = b"\x0a\x05" + b"0.0.0" + bytes([0x12, 10, 0x08, 1, 0x1A, 6, 0x08, 1, 0x1A, 2, 0x20, 4])


# -- the engines -------------------------------------------------------------------------------------------------------


def rivals(model: nn.Module, x: torch.Tensor, threads: int = 1) -> dict[str, Call]:
    """A call on x (N, ...) of each rival that is installed, dense: name -> call."""
    makers = {"onnxruntime": onnxruntime, "OpenVINO": openvino, "MNN": mnn}
    with tempfile.TemporaryDirectory() as folder:
        path = export.onnx(model, Path(folder) / "dense.onnx", x)
        calls = {name: makers[name](path, x, threads) for name in makers if installed(name)}
    return {f"{name}, dense": checked(name, call, model, x, threads) for name, call in calls.items()}


def sparse_mnn(model: nn.Module, x: torch.Tensor) -> Call | None:
    """MNN's kernels for 4 x 1 blocks of zeros, one thread; None where it is not installed.

    It takes them for a layer of which 30 % or more is zero.
    """
    if not installed("MNN"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        path, blocks = export.onnx(model, Path(folder) / "sparse.onnx", x), Path(folder) / "blocks"
        blocks.write_bytes(BLOCKS_OF_4)
        call = mnn(path, x, 1, "--detectSparseSpeedUp", "1", "--compressionParamsFile", str(blocks))
    return checked("MNN, sparse", call, model, x, 1)


def onnxruntime(path: Path, x: torch.Tensor, threads: int) -> Call:
    """onnxruntime's processor provider; all graph optimisations are its default."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, given)[0]


def openvino(path: Path, x: torch.Tensor, threads: int) -> Call:
    """OpenVINO's CPU plugin in float32, for latency: shapes fixed, compiled once, one request that is used again.

    Its threads are not pinned: the caller's would stay so for the contender whose turn is next.
    """
    import openvino as ov

    settings = {
        "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False,
    }  # fmt: skip
    core = ov.Core()
    model = core.read_model(str(path))
    model.reshape(list(x.shape))
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(ov.Tensor(x.numpy(), shared_memory=True))

    def call() -> np.ndarray:
        request.infer()
        return request.get_output_tensor(0).data

    return call


def mnn(path: Path, x: torch.Tensor, threads: int, *flags: str) -> Call:
    """MNN's CPU backend, precision high, by its session: a fifth faster here than the same file as its `nn.Module`."""
    with _quiet():
        import _tools
        import MNN

        made = str(path.with_suffix(".mnn"))
        _tools.mnnconvert(["", "-f", "ONNX", "--modelFile", str(path), "--MNNModel", made, "--bizCode", "lab", *flags])
        net = MNN.Interpreter(made)
        session = net.createSession({"numThread": threads, "precision": "high", "backend": "CPU"})
        inside = net.getSessionInput(session)
        net.resizeTensor(inside, tuple(x.shape))
        net.resizeSession(session)
    kind, order = MNN.Halide_Type_Float, MNN.Tensor_DimensionType_Caffe
    outside = net.getSessionOutput(session)
    shape = outside.getShape()
    given = MNN.Tensor(tuple(x.shape), kind, x.numpy(), order)
    output = MNN.Tensor(shape, kind, np.zeros(shape, np.float32), order)

    def call() -> np.ndarray:
        inside.copyFrom(given)
        net.runSession(session)
        outside.copyToHostTensor(output)
        return output.getNumpyData()

    return call


@cache
def installed(name: str) -> bool:
    """Whether a rival is there; where not, a line that tells how to get it."""
    with suppress(PackageNotFoundError):
        return bool(version(PACKAGES[name]))
    print(f"{name} is left out: pip install {PACKAGES[name]}")
    return False


def packages() -> list[str]:
    """The packages of the rivals that are installed."""
    return [package for name, package in PACKAGES.items() if installed(name)]


def checked(name: str, call: Call, model: nn.Module, x: torch.Tensor, threads: int) -> Call:
    """The call, which has given torch's answer, on as many threads as it may use."""
    with torch.no_grad():
        answer = model(x).numpy()
    apart = np.abs(np.reshape(call(), answer.shape) - answer).max() / np.abs(answer).max()
    if not apart <= TOLERANCE:
        raise RuntimeError(f"{name} differs from torch by {apart:.1e} of the largest number")
    if (used := threads_at_work(call) if threads == 1 else threads_at_once(call)) > threads:
        raise RuntimeError(f"{name} works on {used} threads, and was given {threads}")
    return call


def threads_at_work(call: Call, times: int = 5) -> int:
    """How many threads of this process did a tenth or more of the work of some calls; 1 where Linux can't be asked."""
    before = _worked()
    for _ in range(times):
        call()
    spent = {task: ns - before.get(task, 0) for task, ns in _worked().items()}
    return max(1, sum(ns > sum(spent.values()) / 10 for ns in spent.values()))


def threads_at_once(call: Call, times: int = 20) -> int:
    """How many threads work at once, on the whole: the processor's time of some calls over the wall's.

    Of a contender that may use several, what counts: OpenVINO deals out its work to whichever of its pool are awake.
    """
    spent, passed = time.process_time(), time.perf_counter()
    for _ in range(times):
        call()
    return round((time.process_time() - spent) / (time.perf_counter() - passed))


def _worked() -> dict[str, int]:
    """Nanoseconds that each thread of this process has run."""
    return {task.parent.name: int(task.read_text().split()[0]) for task in Path("/proc/self/task").glob("*/schedstat")}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what compiled code prints."""
    kept = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


# -- the zeros ---------------------------------------------------------------------------------------------------------


def remove_blocks(weight: torch.Tensor, share: float, g: torch.Generator) -> None:
    """Set a share of the 4 x 1 blocks (all taps of an input at once) to 0, at random, and one more, in place.

    One more, so that no engine that asks for 30 % or more finds a hair less. The rows must be a multiple of 4.
    """
    if share:
        blocks = len(weight) // 4 * weight.shape[1]
        keep = torch.ones(blocks)
        keep[torch.randperm(blocks, generator=g)[: int(share * blocks) + 1]] = 0
        keep = keep.view(-1, weight.shape[1]).repeat_interleave(4, 0)
        weight.data *= keep.view(*weight.shape[:2], *[1] * (weight.dim() - 2))


# -- the clock ---------------------------------------------------------------------------------------------------------


def interleaved(
    contenders: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of every contender: in each round one run unclocked and three clocked, of which the fastest counts.

    The clock of contests on one thread is the time that all threads of this process ran: what else the machine does is
    not in it, and a contender that works in a thread of its own pays for it. Of two threads it is the wall's.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for r in range(rounds):
        for name in list(contenders) if r % 2 == 0 else reversed(contenders):
            contenders[name]()
            times[name].append(min(clocked(contenders[name], clock) for _ in range(3)))
    return times


def clocked(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def speedups(times: dict[str, list[float]]) -> pandas.DataFrame:
    """A row a contender: median ms, and times as fast as each dense one, the best of them, and MNN with these zeros."""
    dense = {name.removesuffix(", dense"): times[name] for name in DENSE if name in times}
    dense["our dense"] = dense.pop("engine, 0%")
    best = min(dense.values(), key=statistics.median)
    rows = {}
    for name, mine in times.items():
        over = {f"over {engine}": ratio(theirs, mine) for engine, theirs in dense.items()}
        quartiles = statistics.quantiles([a / b for a, b in zip(best, mine, strict=True)], n=4)
        row = {"ms": round(1000 * statistics.median(mine), 2), **over, "over the best dense": ratio(best, mine)}
        row["quartiles"] = f"{quartiles[0]:.2f} to {quartiles[2]:.2f}"
        sparse = times.get(name.replace("engine", "MNN"))
        rows[name] = row | ({"over MNN, same zeros": ratio(sparse, mine)} if sparse and "engine" in name else {})
    return pandas.DataFrame(rows).T


def ratio(theirs: list[float], mine: list[float]) -> float:
    """The median over the rounds of how many times as fast mine is."""
    return round(statistics.median(a / b for a, b in zip(theirs, mine, strict=True)), 3)
