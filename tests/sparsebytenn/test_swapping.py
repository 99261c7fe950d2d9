"""Sparse modules in torch's networks: which layers give way, what torch does with them, sizes that vary."""

import io
import sys

import pytest
import torch
from torch import nn

from lab import sparsebytenn
from lab.core import kernels
from lab.sparsebytenn import swapping
from lab.sparsebytenn.swapping import SparseConv2d, SparseLinear, swap

from .native import thinned

pytestmark = pytest.mark.skipif(kernels.lib is None, reason="the C kernels are not built")
SIZES = [(1, 3, 16, 16), (3, 3, 20, 12), (2, 3, 16, 17)]
FREE = torch.export.Dim.DYNAMIC


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def network() -> nn.Module:
    """A network of every kind of layer that may give way, 80 % of whose blocks are gone."""
    return thinned(nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 20, (3, 5), (2, 1), "valid", bias=False), nn.ReLU(),
        nn.Conv2d(20, 8, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(2), nn.Linear(4, 8), nn.Flatten(), nn.Linear(64, 10),
    ), 0.8)  # fmt: skip


@pytest.fixture
def all_pay(monkeypatch):
    """Whatever may be sparse is, however long it takes."""
    monkeypatch.setattr(swapping, "GAIN", float("inf"))


def is_close(y: torch.Tensor, exact: torch.Tensor) -> bool:
    return y.shape == exact.shape and float((y - exact).abs().max()) < 1e-5 * float(exact.abs().max())


@pytest.mark.slow
@torch.no_grad()
def test_layers_whose_zeros_pay_give_way_and_the_network_answers_as_before(all_pay):
    net = network()
    sparse = sparsebytenn.swap(net, torch.randn(2, 3, 16, 16))
    assert [type(sparse[i]) for i in (0, 2, 4, 7, 9)] == [SparseConv2d] * 3 + [SparseLinear] * 2
    assert type(net[0]) is nn.Conv2d and sparse.state_dict().keys() == net.state_dict().keys()
    for size in SIZES:
        x = torch.randn(size)
        assert is_close(sparse(x), net(x))
    assert is_close(sparse[0](x[0]), net[0](x[0])) and is_close(sparse[9](torch.ones(64)), net[9](torch.ones(64)))
    assert sparse(torch.zeros(0, 3, 16, 16)).shape == (0, 10) and "79% zeros" in repr(sparse[9])


class Beside(nn.Sequential):
    """A chain that does not run its last module."""

    def forward(self, x):
        for module in list(self)[:-1]:
            x = module(x)
        return x


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
def test_a_field_says_why_each_layer_was_taken_or_left():
    others = [nn.Linear(10, 64), nn.Unflatten(1, (4, 4, 4)), nn.Conv2d(4, 4, 3, padding_mode="reflect")]
    others += [nn.Conv2d(4, 4, 2, groups=2), nn.Conv2d(4, 4, 2, padding="same"), nn.Linear(2, 2)]
    swaps = swap(Beside(*network(), *others), torch.randn(1, 3, 16, 16)).swaps
    measured = [swaps[name] for name in "02479"]
    assert all(s.ms > 0 and s.torch_ms > 0 and s.taken == (s.ms < swapping.GAIN * s.torch_ms) for s in measured)
    assert all(s.taken != s.why.endswith("its zeros do not pay") and f"{s.ms:.3g} ms" in s.why for s in measured)
    assert swaps["9"].zeros == pytest.approx(0.8, abs=0.1)
    left = {name: s.why for name, s in swaps.items() if s not in measured}
    assert left == {
        "10": "zeros in 0% of its blocks of 4 rows",
        "12": "padding (0, 0), reflect: sparse modules pad with zeros, both sides alike",
        "13": "2 groups",
        "14": "padding 'same', zeros: sparse modules pad with zeros, both sides alike",
        "15": "not called for the example",
    }


def test_the_faster_of_the_two_stays(monkeypatch):
    """By the clock, which says here that the first layer is faster in the engine and the second in torch."""
    seconds = iter([[0.001, 0.002], [0.002, 0.001]])
    monkeypatch.setattr(swapping, "_raced", lambda *_: next(seconds))
    net = thinned(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1)), 0.95)
    first, second = swap(net, torch.randn(1, 8, 4, 4)).swaps.values()
    assert first.taken and (first.ms, first.torch_ms) == (1.0, 2.0) and first.why == "1 ms, torch 2 ms"
    assert not second.taken and second.why == "2 ms, torch 1 ms: its zeros do not pay"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_torch_compiles_it(all_pay, backend):
    if backend == "inductor" and " " in sys.prefix:
        pytest.skip("torch's inductor hands paths with a space to the compiler in two")
    net = network()
    compiled = torch.compile(swap(net, torch.randn(SIZES[0])), backend=backend)
    for size in SIZES:
        x = torch.randn(size)
        with torch.no_grad():
            assert is_close(compiled(x), net(x))


@pytest.mark.slow
def test_torch_exports_it_and_it_comes_back(all_pay):
    net = network()
    sparse = swap(net, torch.randn(SIZES[0]))
    sizes = ({0: FREE, 2: FREE, 3: FREE},)
    program = torch.export.export(sparse, (torch.randn(2, 3, 16, 18),), dynamic_shapes=sizes)
    assert str(program.graph).count("lab.sparse_") == 5
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for size in [(3, 3, 20, 12), (2, 3, 16, 17)]:
        x = torch.randn(size)
        with torch.no_grad():
            assert is_close(loaded(x), net(x))


@pytest.mark.slow
def test_torch_holds_its_operators_to_their_fakes():
    conv, linear = nn.Conv2d(3, 5, (3, 2), 2, 1), nn.Linear(6, 4)
    arguments = (conv.weight.detach(), conv.bias.detach(), [2, 2], [1, 1], [1, 1], 1, "conv")
    for size in ((2, 3, 8, 7), (3, 8, 7)):
        torch.library.opcheck(swapping.sparse_conv2d, (torch.randn(size), *arguments))
    for size in ((6,), (3, 6), (2, 3, 6)):
        torch.library.opcheck(swapping.sparse_linear, (torch.randn(size), linear.weight.detach(), None, "linear"))


@torch.no_grad()
def test_weights_that_change_are_packed_anew(all_pay):
    net = network()
    sparse, x = swap(net, torch.randn(SIZES[0])), torch.randn(SIZES[0])
    other = thinned(network(), 0.3)
    before = sparse(x)
    sparse.load_state_dict(other.state_dict())
    assert is_close(sparse(x), other(x)) and not is_close(sparse(x), before)
    with torch.inference_mode():
        assert is_close(sparse(x), other(x))


def test_what_is_packed_is_kept_and_bounded(all_pay, monkeypatch):
    monkeypatch.setattr(swapping, "KEPT", 3)
    monkeypatch.setattr(swapping, "_engines", type(swapping._engines)())
    layer = SparseLinear(nn.Linear(4, 4))
    for rows in (1, 2, 3, 4, 2):
        layer(torch.ones(rows, 4))
    assert len(swapping._engines) == 3
    engine = next(reversed(swapping._engines.values()))
    layer(torch.ones(2, 4))
    assert next(reversed(swapping._engines.values())) is engine


def test_bad_input_is_told_in_one_line(all_pay):
    net = network()
    with pytest.raises(ValueError, match="does not run on the example") as caught:
        swap(net, torch.randn(1, 4, 16, 16))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="the network is on meta: the engine computes on the CPU"):
        swap(network().to("meta"), torch.randn(SIZES[0]))
    with pytest.raises(ValueError, match=r"x holds torch\.float64 numbers: a sparse layer takes float32"):
        swap(net, torch.randn(SIZES[0]))(torch.randn(SIZES[0]).double())


def test_a_single_layer_and_none(all_pay):
    layer = thinned(nn.Linear(32, 32), 0.5)
    assert isinstance(swap(layer, torch.ones(2, 32)), SparseLinear)
    assert swap(nn.ReLU(), torch.ones(1)).swaps == {}
