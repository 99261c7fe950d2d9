"""The engine against torch: every operator, every instruction set, other people's networks, files that are broken."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lab.core import kernels, nets
from lab.sparsebytenn import compiler, packed, reference, tuning
from lab.sparsebytenn.records import PRODUCTS
from lab.sparsebytenn.runtime import Engine, race
from lab.sparsebytenn.tuning import tuned

from .native import rolled

needs_c = pytest.mark.skipif(kernels.lib is None, reason="the C kernels are not built")


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """The network in eval mode with norms that do something."""
    g = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=g)
            module.running_var.uniform_(0.5, 1.5, generator=g)
            module.weight.data.uniform_(0.5, 1.5, generator=g)
            module.bias.data.normal_(0, 0.1, generator=g)
    return model.eval()


def pruned(model: nn.Module, share: float, block: int = 4) -> nn.Module:
    """Random blocks of `block` rows set to 0 in every ordinary convolution but the first."""
    g = torch.Generator().manual_seed(1)
    for module in [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == 1][1:]:
        w = module.weight.data
        keep = torch.rand(-(-len(w) // block), w.shape[1], generator=g) >= share
        w *= keep.repeat_interleave(block, 0)[: len(w), :, None, None]
    return model


class Residual(nn.Module):
    """Sums of all kinds: into a convolution, of two that are read twice, with and without an activation behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 9, 3, 2, 1, bias=False), nn.BatchNorm2d(9), nn.ReLU6())
        self.a, self.b = nn.Conv2d(9, 9, 1), nn.Conv2d(9, 9, 3, 1, 1)
        self.wide = nn.Conv2d(9, 9, 5, 1, 2, groups=9)
        self.down = nn.Conv2d(9, 11, 1, 2)
        self.head = nn.Linear(11, 5)

    def forward(self, x):
        x = self.stem(x)
        y = x + self.a(x)
        z = F.relu(self.b(y) + y)
        u = torch.add(z, y)
        v = torch.relu(self.wide(u)) + z
        return self.head(self.down(v).mean((2, 3)))


def plain() -> nn.Module:
    """A chain that ends in a linear layer on a flattened map, as LeNet does."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 5),
        nn.ReLU(),
        nn.Dropout2d(),
        nn.Conv2d(6, 10, 3, 2),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(10 * 5 * 5, 20),
        nn.ReLU(),
        nn.Linear(20, 7),
    )


def mapped() -> nn.Module:
    """A network that gives a map, not a vector."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.ReLU(), nn.Conv2d(8, 2, 1))


NETWORKS = {  # name -> network, side of its picture
    "mobilenet_v1": (lambda: nets.mobilenet_v1(0.25, 10), 64),
    "mobilenet_v1, odd sides": (lambda: nets.mobilenet_v1(0.25, 10), 71),
    "mobilenet_v2": (lambda: nets.mobilenet_v2(0.35, 10), 64),
    "residual": (Residual, 33),
    "plain": (plain, 16),
    "mapped": (mapped, 13),
}


def built(name: str, share: float = 0.5) -> tuple[nn.Module, torch.Tensor]:
    make, side = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return pruned(shaken(make()), share), torch.randn(2, 3, side, side)


def answer(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.slow
@needs_c
@pytest.mark.parametrize("isa", kernels.isas())
@pytest.mark.parametrize("name", NETWORKS)
def test_it_answers_as_torch_does(name, isa, monkeypatch):
    monkeypatch.setenv("LAB_ISA", isa)
    model, x = built(name)
    engine = Engine(packed.write(compiler.compile(model, x[:1])))
    y = engine(x)
    assert y.shape == answer(model, x).shape and distance(y, answer(model, x)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_numpy_reference_answers_as_torch_does(name, monkeypatch):
    monkeypatch.setenv("LAB_KERNELS", "numpy")
    model, x = built(name)
    engine = Engine(packed.write(compiler.compile(model, x[:1])))
    assert distance(engine(x), answer(model, x)) < 1e-4


@needs_c
@pytest.mark.parametrize("name", ["mobilenet_v1", "residual"])
def test_interleaved_pictures(name):
    model, x = built(name)
    engine = Engine(packed.write(compiler.compile(model, x[:1], interleaved=True)))
    assert distance(engine(x.permute(0, 2, 3, 1)), answer(model, x)) < 1e-4


@pytest.mark.slow
@needs_c
@pytest.mark.parametrize("floats", [0, 3_000, 20_000])
@pytest.mark.parametrize("name", NETWORKS)
def test_rolling_row_buffers_change_nothing(name, floats):
    model, x = built(name)
    network = compiler.compile(model, x[:1])
    buffered = rolled(network, floats)
    kept = [m.buffer_rows for m in buffered.maps]
    assert any(kept) == (name not in ("mapped", "residual")) and not any(m.buffer_rows for m in network.maps)
    data = packed.write(buffered)
    assert [m.buffer_rows for m in packed.read(data).maps] == kept
    assert torch.equal(Engine(data)(x), Engine(packed.write(network))(x))
    assert (Engine(data).profile(repeats=1).ms > 0).all()


@pytest.mark.slow
def test_maps_as_large_as_the_cache_are_rolling_row_buffers():
    with torch.random.fork_rng():
        network = compiler.compile(nets.mobilenet_v1(), torch.zeros(1, 3, 224, 224))
    kept = [m for m in network.maps if m.buffer_rows]
    assert [(m.c, m.h, m.buffer_rows) for m in kept] == [(64, 112, 17)]
    whole = replace(network, maps=[replace(m, buffer_rows=0) for m in network.maps])
    assert network.plan() < 0.8 * whole.plan()  # of what is placed well already


@needs_c
def test_a_buffer_that_cannot_be_is_refused():
    model, x = built("mobilenet_v1")
    network = rolled(compiler.compile(model, x[:1]), 0)
    at = next(op.x for op in network.ops if network.maps[op.x].buffer_rows)
    for rows, maps in ((1, at), (99, at), (1, network.inputs[0]), (1, network.outputs[0]), (2, network.ops[-1].x)):
        wrong = replace(network, maps=[replace(m) for m in network.maps])
        wrong.maps[maps].buffer_rows = rows
        with pytest.raises(ValueError, match=r"malformed|do not go together"):
            Engine(packed.write(wrong))


@pytest.mark.slow
@needs_c
def test_dense_and_tuned_forms_answer_alike():
    model, x = built("mobilenet_v1", 0.7)
    network = compiler.compile(model, x[:1])
    for form in (compiler.densified(network), tuned(network), tuned(compiler.densified(network))):
        assert distance(Engine(packed.write(form))(x), answer(model, x)) < 1e-4
    assert all(op.weights.col is None for op in compiler.densified(network).ops if op.weights is not None)


@pytest.mark.slow
@needs_c
@pytest.mark.parametrize("name", ["mobilenet_v1", "residual"])
def test_every_pattern_that_is_tried_answers_alike(name):
    """Single weights among them, where most are zero, and on maps of few pixels blocks of 8 and 16 rows."""
    model, x = built(name)
    g = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data *= torch.rand(layer.weight.shape, generator=g) > 0.9
    network = compiler.compile(model, x[:1])
    assert {op.weights.block for op in network.ops if op.kind in PRODUCTS} == {1}
    tried = {}
    for i, op in enumerate(network.ops):
        for form in tuning._patterns(op, network.maps[op.y]) if op.kind in PRODUCTS else ():
            tried.setdefault((form.block, form.col is None), {})[i] = form
    wide = {(8, True), (8, False), (16, True), (16, False)} if name == "mobilenet_v1" else set()  # of 9 channels: none
    assert set(tried) >= {(1, False), (4, True), (4, False), *wide}
    for forms in tried.values():
        ops = [replace(op, weights=forms.get(i, op.weights)) for i, op in enumerate(network.ops)]
        assert distance(Engine(packed.write(replace(network, ops=ops)))(x), answer(model, x)) < 1e-4


def test_blocks_stay_where_single_weights_spare_too_little():
    """A weight that stands alone costs 2.5 of a block's: with 70 % of zeros at random the two are about level."""
    g = np.random.default_rng(0)
    for share, single in ((0.0, False), (0.5, False), (0.8, True), (0.95, True)):
        w = g.normal(size=(64, 64)) * (g.random((64, 64)) >= share)
        assert compiler.mostly_single(w) is single
        assert not compiler.mostly_single(np.repeat(w[::4], 4, 0))  # the same zeros, in blocks of 4


def test_the_model_is_left_as_it_was():
    model, x = built("residual")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compiler.compile(model.train(), x[:1])
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_model_elsewhere_stays_there():
    model, x = built("mobilenet_v1")
    network = compiler.compile(model.cuda(), x[:1])
    assert all(p.is_cuda for p in model.parameters())
    assert distance(Engine(packed.write(network))(x), answer(model, x.cuda()).cpu()) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("share", "least"), [(0.3, 0.85), (0.5, 0.68), (0.9, 0.35)])
def test_a_sparse_file_is_smaller_than_the_dense_one(share, least):
    """16-bit columns: at 30 % the index does not eat what the zeros save."""
    model = pruned(shaken(nets.mobilenet_v1(1.0)), share)
    network = compiler.compile(model, torch.zeros(1, 3, 224, 224))
    sparse, dense = len(packed.write(network)), len(packed.write(compiler.densified(network)))
    assert sparse < least * dense


# -- what it does not have ---------------------------------------------------------------------------------------------

REFUSED = {
    "batch statistics": (
        nn.BatchNorm2d(4, track_running_stats=False),
        r"1 \(BatchNorm2d\) keeps no running statistics",
    ),
    "three axes": (
        nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 4, 1)),
        r"1.1 \(Conv3d\) has a window of 3 axes",
    ),
    "a power": (nn.LPPool2d(3, 2), r"is a power of 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_operator_it_lacks_is_named_in_one_line(name):
    layer, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        compiler.compile(nn.Sequential(nn.Conv2d(3, 4, 1), layer), torch.zeros(1, 3, 16, 16))
    assert "\n" not in str(caught.value)


@needs_c
@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (3, 64, 64), (1, 1, 64, 64)])
def test_a_picture_of_another_shape_is_refused(shape):
    model, x = built("mobilenet_v1")
    engine = Engine(packed.write(compiler.compile(model, x[:1])))
    with pytest.raises(ValueError, match=r"x has shape .*: this engine takes \(N, 3, 64, 64\)"):
        engine(torch.zeros(shape))
    assert engine(torch.zeros(0, 3, 64, 64)).shape == (0, 10)


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file() -> bytes:
    model, x = built("mobilenet_v1")
    return packed.write(compiler.compile(model, x[:1]))


def test_a_file_reads_as_it_was_written(file):
    again = packed.write(packed.read(file))
    assert again == file and file[:4] == b"SBNN"


def test_a_saved_engine_is_the_same_engine(file, tmp_path):
    path = Engine(file).save(tmp_path / "net.sbnn")
    assert Engine.load(path).data == file and repr(Engine.load(path)) == repr(Engine(file))


@pytest.mark.parametrize("backend", [pytest.param("c", marks=needs_c), "numpy"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "cut short"),
        (lambda data: data[:40], "cut short"),
        (lambda data: b"", "cut short"),
        (lambda data: b"PK" + data[2:], "does not begin as"),
        (lambda data: data[:4] + b"\7" + data[5:], "another version"),
        (lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:], "checksum"),
    ],
)
def test_a_damaged_file_is_refused(file, damage, message, backend, monkeypatch):
    monkeypatch.setenv("LAB_KERNELS", backend)
    with pytest.raises(ValueError, match=f"not a packed network that can be run: .*{message}"):
        Engine(damage(file))


# -- use ---------------------------------------------------------------------------------------------------------------


@needs_c
def test_several_threads_may_call_at_once(file):
    engine, x = Engine(file), torch.randn(24, 3, 64, 64)
    alone = engine(x)
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda i: engine(x[i : i + 1]), range(24)))
    assert torch.equal(torch.cat(together), alone) and torch.equal(engine(x, threads=3), alone)
    with pytest.raises(ValueError, match="threads=0: give an integer"):
        engine(x, threads=0)


@needs_c
def test_a_nan_in_the_picture_is_not_hidden(file):
    x = torch.zeros(1, 3, 64, 64)
    x[0, 1, 30, 30] = math.nan
    assert torch.isnan(Engine(file)(x)).all()


@needs_c
def test_the_profile_counts_what_is_done(file):
    frame = Engine(file).profile(repeats=2)
    assert list(frame.layer)[:2] == ["features.0.0", "features.1.3"] and (frame.ms >= 0).all()
    assert frame.macs[0] == 8 * 27 * 32 * 32 and frame["blocks kept"][1] < 0.7
    assert all(ms > 0 for ms in race(Engine(file), Engine(file), repeats=3))


def test_the_reference_and_the_file_agree_on_names(file):
    network = packed.read(file)
    head = np.frombuffer(file, np.uint32, 16)
    meta = json.loads(file[head[13] : head[13] + head[14]])
    assert meta["names"] == [op.name for op in network.ops] and meta["classes"] == 10
    assert reference.run(network, np.zeros((3, 64, 64), np.float32)).shape == (1, 1, 10)


class Boxes(NamedTuple):
    where: torch.Tensor
    scores: tuple


def test_a_named_tuple_comes_back_with_its_fields():
    class Named(nn.Module):
        def forward(self, x):
            return Boxes(x + 1, (x * 2, x - 1))

    x = torch.randn(2, 3, 4, 4)
    made = Engine(packed.write(compiler.compile(Named(), x[:1])))(x)
    assert made._fields == Boxes._fields and torch.equal(made.where, x + 1)
    assert torch.equal(made.scores[0], x * 2) and torch.equal(made[1][1], x - 1)


@pytest.mark.parametrize(("kind", "fn"), [("unary", "add"), ("binary", ""), ("binary", "mean")])
def test_a_function_that_a_kind_lacks_is_not_dropped(kind, fn):
    network = compiler.compile(nn.Sequential(nn.ReLU()), torch.zeros(1, 3, 4, 4))
    network.ops[0] = replace(network.ops[0], kind=kind, fn=fn)
    with pytest.raises(ValueError, match=f"^fn={fn!r}: give an operator of kind '{kind}' .*(add|none)"):
        packed.write(network)
