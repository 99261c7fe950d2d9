"""Threads that work on one image together: equal to one thread to the last bit, and none is left waiting."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from lab.core import kernels
from lab.core.batch import tensors
from lab.sparsebytenn import compiler, int8, packed, runtime
from lab.sparsebytenn.packed import Map, Network, Op
from lab.sparsebytenn.runtime import Engine

from . import graphs
from .native import every_kind, rolled, small_networks
from .test_graphs import KINDS, built, fresh

pytestmark = [
    pytest.mark.skipif(kernels.lib is None, reason="the C kernels are not built"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def together():
    """Networks as small as these are worth several threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "MANY", 0)
        yield


def same(a, b) -> bool:
    """Equal to the last bit, NaN where there is NaN."""
    return all(torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(
        tensors(a), tensors(b), strict=True))  # fmt: skip


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(graphs.network(KINDS))
def test_any_network_is_the_same_with_two_and_three_threads(drawn):
    net, inputs = drawn
    engine = built(net, inputs)
    alone = engine(*fresh(inputs))
    assert all(same(engine(*fresh(inputs), threads=n), alone) for n in (2, 3))


def files():
    """Chains of rolling row buffers, int8, every kind of operator, blocks of every size."""
    with torch.random.fork_rng():
        wide = torch.nn.Sequential(torch.nn.Conv2d(6, 32, 3), torch.nn.Conv2d(32, 32, 1), torch.nn.Conv2d(32, 24, 3, 2))
        for name, (net, shape) in {**small_networks(), "wide": (wide, (6, 13, 11))}.items():
            network = compiler.compile(net, torch.zeros(1, *shape))
            yield from (network, rolled(network), rolled(network, 0))
            if name in ("every", "two convolutions", "wide"):
                quantised = int8.quantised(network, torch.randn(2, *shape))
                yield from (quantised, rolled(quantised))
    yield from (every_kind(), rolled(every_kind()))
    g = np.random.default_rng(0)
    for block in (1, 4, 8, 16):
        for side in (3, 16):  # split by groups of rows, and by rows of the map
            w = g.standard_normal((64, 40), np.float32) * (g.random((64, 40)) > 0.5)
            weights = kernels.pack(w, block=block, k_tile=40 if block == 16 else 16)
            op = Op("pointwise", "", 0, 1, weights=weights, bias=g.standard_normal(64, np.float32))
            yield Network([Map(40, side, side), Map(64, side, side)], [op], (0,), (1,))


@pytest.mark.slow
def test_chains_of_row_buffers_int8_and_every_block_are_the_same():
    g = np.random.default_rng(0)
    for network in files():
        engine = Engine(packed.write(network))
        arrays = [g.standard_normal(network.maps[i].shape, np.float32) for i in network.inputs]
        for spoiled in (False, True):
            if spoiled:
                arrays[0].reshape(-1)[len(arrays[0].reshape(-1)) // 2] = np.nan
            alone = [torch.from_numpy(y) for y in engine._run(arrays)]
            for n in (2, 3, 5):
                assert same([torch.from_numpy(y) for y in engine._run(arrays, n)], alone), (network.ops, n)


def convolution(width: int = 64) -> tuple[Engine, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x = torch.nn.Sequential(torch.nn.Conv2d(3, width, 3)), torch.randn(3, 3, 40, 40)
    return built(net, (x[:1],)), x


def test_fewer_images_than_threads_are_each_worked_on_together(monkeypatch):
    engine, x = convolution()
    calls = []
    monkeypatch.setattr(Engine, "_run_together", lambda self, threads, *ends: calls.append(threads))
    engine(x, threads=2)
    assert calls == []
    engine(x, threads=4)
    assert calls == [4, 4, 4]
    monkeypatch.setattr(runtime, "MANY", 1 << 40)
    engine(x, threads=4)
    assert calls == [4, 4, 4]


@pytest.mark.parametrize("after", [0, 1])
def test_a_thread_that_cannot_start_leaves_nobody_waiting(monkeypatch, after):
    engine, x = convolution()
    submit = runtime.ThreadPoolExecutor.submit
    left = [after]

    def refuses(self, *call):
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        return submit(self, *call)

    with monkeypatch.context() as patch:
        patch.setattr(runtime.ThreadPoolExecutor, "submit", refuses)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            engine(x[:1], threads=3)
    assert torch.equal(engine(x[:1], threads=3), engine(x[:1]))


def test_a_thread_whose_others_never_come_is_stopped():
    engine, x = convolution()
    meeting = kernels.ffi.new("meeting *")
    team = kernels.ffi.new("team *", {"meeting": meeting, "rank": 0, "threads": 2})
    y = np.empty(engine(x[:1]).shape, np.float32)
    arguments = kernels.pointer(engine._file), engine._arena(), engine._arena(), kernels.isa(), team
    ends = kernels.pointer(x.numpy()), kernels.pointer(y)
    waits = threading.Thread(target=kernels.lib.engine_run_part, args=(*arguments, *ends), daemon=True)
    waits.start()
    waits.join(0.2)
    assert waits.is_alive()
    kernels.lib.engine_stop(meeting)
    waits.join(20)
    assert not waits.is_alive()
