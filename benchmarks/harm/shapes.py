"""Networks of one operator, drawn as the tests draw them, beside the numpy reference: in C, in node, in odd arrays."""

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from lab.core import kernels
from lab.sparsebytenn import packed, reference
from lab.sparsebytenn.engine import compile
from lab.sparsebytenn.runtime import Engine

from . import readers

from tests.sparsebytenn import test_web  # isort: skip
from tests.sparsebytenn.test_operators import CASES, assert_same  # isort: skip

Case = tuple[bytes, list[np.ndarray], np.ndarray]  # a packed file, its inputs, what the reference gives


def drawn(number: int, count: int, take: Callable[[str, Case], object]) -> None:
    """Take so many cases, as many of each kind of operator."""
    for k, kind in enumerate(CASES):
        _drawn(kind, len(CASES) * number + k, -(-count // len(CASES)), take)


def _drawn(kind: str, number: int, count: int, take: Callable[[str, Case], object]) -> None:
    @seed(number)
    @settings(max_examples=count, phases=[Phase.generate], database=None, deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.data())
    def each(data: Any) -> None:
        network, arrays, _ = CASES[kind](data.draw)
        (y,) = reference.outputs(network, arrays)
        take(kind, (packed.write(network), [np.ascontiguousarray(array, np.float32) for array in arrays], y))

    each()


@contextmanager
def isa(name: str) -> Iterator[None]:
    """A block in which the engine runs with this instruction set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_ISA", name)
        yield


def in_c(number: int, count: int) -> tuple[int, list[str]]:
    """How many cases each instruction set of this machine was given, and where it was wrong."""
    done, faults = 0, []

    def take(kind: str, case: Case) -> None:
        nonlocal done
        file, arrays, y = case
        engine, done = Engine(file), done + 1
        for name in kernels.isas():
            with isa(name):
                faults.extend(_wrong(f"{name} {kind}", engine._run(arrays)[0], y, arrays))

    drawn(number, count, take)
    return done, faults[:10]


def in_node(number: int, count: int) -> tuple[int, list[str]]:
    """How many cases the builds for browsers were given in node, and where one was wrong."""
    cases: list[tuple[str, Case]] = []
    drawn(number, count, lambda kind, case: cases.append((kind, case)))
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Any] = {}
        for k, (_, (file, arrays, _)) in enumerate(cases):
            files |= {f"net{k}": file, f"x{k}": np.concatenate([array.reshape(-1) for array in arrays])}
        jobs = [(build, f"net{k}", f"x{k}", False) for k in range(len(cases)) for build in builds()]
        given_ = [case for case in cases for _ in builds()]
        done = test_web.run_in_node(Path(folder), files, jobs)["done"]
        for (kind, (_, arrays, y)), (build, *_), answer in zip(given_, jobs, done, strict=True):
            found = answer.get("y", np.zeros(0, np.float32))
            faults += _wrong(f"{build} {kind} {answer.get('message', '')}", found.reshape(-1), y.reshape(-1), arrays)
    return len(cases), faults[:10]


def builds() -> list[str]:
    """The builds that this node runs."""
    switch = [test_web.RELAXED] if _runs([test_web.node, test_web.RELAXED, "-e", ""]) else []
    return [*(["relaxed"] if switch else []), *test_web.common_builds()]


def _runs(command: list[Any]) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def _wrong(name: str, found: np.ndarray, exact: np.ndarray, arrays: list[np.ndarray]) -> list[str]:
    try:
        assert_same(found, exact, name, arrays)
    except AssertionError as error:
        return [json.dumps(f"{name}: {' '.join(str(error).split())[:300]}")]
    return []


# -- odd arrays --------------------------------------------------------------------------------------------------------


def read_only(x: np.ndarray) -> np.ndarray:
    copy = x.copy()
    copy.flags.writeable = False
    return copy


def strided(x: np.ndarray) -> np.ndarray:
    return np.repeat(x, 2, -1)[..., ::2]


RIGHT: dict[str, Callable[[np.ndarray], Any]] = {  # forms in which the same numbers may come
    "read-only": read_only,
    "strided": strided,
    "backwards": lambda x: x[..., ::-1].copy()[..., ::-1],
    "Fortran order": np.asfortranarray,
    "other byte order": lambda x: x.astype(">f4"),
    "float64": np.float64,
    "float16": lambda x: x.astype(np.float16),
    "integers": lambda x: (100 * x).astype(np.int64),
    "booleans": lambda x: x > 0,
    "lists": lambda x: x.tolist(),
    "torch, not contiguous": lambda x: torch.from_numpy(x).transpose(-1, -2).contiguous().transpose(-1, -2),
    "torch, float64": lambda x: torch.from_numpy(x).double(),
    "torch, bfloat16": lambda x: torch.from_numpy(x).bfloat16(),
    "torch, learning": lambda x: torch.from_numpy(x).requires_grad_(),
    "a NaN": lambda x: np.where(x == x.max(), np.float32(np.nan), x),
    "an Inf": lambda x: np.where(x == x.max(), np.float32(np.inf), x),
    "none at all": lambda x: x[:0],
}
REFUSED: dict[str, Callable[[np.ndarray], Any]] = {
    "complex": lambda x: x.astype(np.complex64),
    "torch, complex": lambda x: torch.from_numpy(x.astype(np.complex64)),
    "words": lambda x: x.astype(str),
    "objects": lambda x: x.astype(object),
    "another shape": lambda x: x[..., 1:],
    "no batch": lambda x: x[0],
    "a number": lambda x: 3.0,
}


def plain(given: Any) -> np.ndarray:
    """The same numbers as contiguous float32."""
    if isinstance(given, torch.Tensor):
        given = given.detach().float().numpy()
    return np.array(given, np.float32, order="C").reshape(np.shape(given))


def odd_arrays() -> tuple[int, list[str]]:
    """How many arrays an engine was given by each instruction set, and which it neither read rightly nor refused."""
    engine, x = compile(readers.network(), torch.zeros(1, 1, 6, 6)), np.float32(readers.picture(6)[None] / 128 - 1)
    x = np.ascontiguousarray(x[..., :1].transpose(0, 3, 1, 2))
    faults = []
    for name in kernels.isas():
        with isa(name):
            for form, change in RIGHT.items():
                given_ = change(x)
                exact = [reference.outputs(engine.network, [image])[0].reshape(-1) for image in plain(given_)]
                faults += _wrong(f"{name} {form}", engine(given_).numpy(), np.reshape(exact, (-1, 3)), [plain(given_)])
            kept = [form for form, change in REFUSED.items() if not _refuses(engine, change(x))]
            faults += [f"{name} {form}: not refused" for form in kept]
    return len(kernels.isas()) * (len(RIGHT) + len(REFUSED)), faults


def _refuses(engine: Engine, given_: Any) -> bool:
    try:
        engine(given_)
    except (ValueError, TypeError) as error:
        return bool(str(error)) and "\n" not in str(error)
    return False
