"""Networks of which the engine has a part: the rest is torch's, and the whole is torch."""

import pytest
import torch
from torch import nn

from lab.core import kernels
from lab.core.onnx import export
from lab.sparsebytenn import engine
from lab.sparsebytenn.runtime import Engine
from lab.sparsebytenn.segments import Segments, segmented

from .test_compiler import Net, conv

needs_c = pytest.mark.skipif(kernels.lib is None, reason="the C kernels are not built")


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def net_in_parts():
    """A convolution, what no engine has, and two more; two answers in a dictionary, one layer called twice."""
    return Net(
        lambda n, x: {"y": n.b(n.a(x).relu().cumsum(1)).sin() + n.c(x), "z": [n.a(x).mean((2, 3))]},
        a=conv(3, 8, 3), b=conv(8, 4), c=conv(3, 4, 3),
    ).eval()  # fmt: skip


def test_the_parts_together_are_torch():
    net, x = net_in_parts(), torch.randn(3, 3, 12, 12)
    with torch.no_grad():
        exact = net(x)
    found = engine.compile(net, x[:1], measure=False)
    assert isinstance(found, Segments) and repr(found) == "Segments(3 in the engine, 2 operators in torch)"
    y = found(x)
    assert torch.allclose(y["y"], exact["y"], atol=1e-5) and torch.allclose(y["z"][0], exact["z"][0], atol=1e-5)


@needs_c
def test_the_profile_says_where_each_part_ran_and_why():
    frame = segmented(net_in_parts(), torch.randn(1, 3, 12, 12)).profile(repeats=2)
    by_torch = frame[frame["where"] == "torch"]
    assert list(by_torch.layer) == ["cumsum", "sin"]
    assert all("which the engine does not have" in why for why in by_torch.why)
    assert {"a", "b", "c"} <= {*frame[frame["where"] != "torch"].layer} and (frame.ms >= 0).all()


def test_what_a_part_reads_may_be_of_any_kind_and_shape():
    """Token numbers go through torch's embedding; the engine has the linear layers behind."""
    layers = {"e": nn.Embedding(9, 8), "a": nn.Linear(8, 16), "b": nn.Linear(16, 5)}
    net = Net(lambda n, x: n.b(n.a(n.e(x)).relu()), **layers).eval()
    x = torch.randint(9, (4, 6))
    with torch.no_grad():
        assert torch.allclose(segmented(net, x[:1])(x), net(x), atol=1e-6)
    with pytest.raises(ValueError, match=r"x \(input\) gives torch.int64 numbers, the engine takes real ones"):
        engine.compile(net, x[:1], strict=True)


def test_bad_inputs_are_told_in_one_line():
    two = Net(lambda n, x: n.a(x).sort(1).values, a=conv(3, 4)).eval()
    found = segmented(two, torch.randn(1, 3, 6, 6))
    with pytest.raises(ValueError, match="x holds no image"):
        found(torch.zeros(0, 3, 6, 6))
    with pytest.raises(ValueError, match="give as many of each"):
        found(torch.zeros(2, 3, 6, 6), torch.zeros(1, 3, 6, 6))
    with pytest.raises(ValueError, match=r"the engine has no layer of this network: .*aten.sort"):
        segmented(Net(lambda n, x: x.sort(1).values), torch.randn(1, 3, 6, 6))
    with pytest.raises(ValueError, match=r"sort \(sort\) is aten.sort"):
        engine.compile(two, torch.randn(1, 3, 6, 6), strict=True)


def test_a_network_that_writes_into_its_input_is_held_to_its_answer_all_the_same():
    net = Net(lambda n, x: n.a(x.add_(1)), a=conv(3, 4)).eval()
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        assert torch.allclose(engine.compile(net, x[:1], measure=False)(x), net(x.clone()), atol=1e-6)


def test_an_answer_that_depends_on_the_others_of_a_batch_is_refused():
    net = Net(lambda n, x: n.a(x) - x.mean(0, keepdim=True), a=conv(3, 3)).eval()
    with pytest.raises(ValueError, match="no answer may depend on the others of a batch"):
        engine.compile(net, torch.randn(1, 3, 6, 6), measure=False)


def test_an_onnx_file_is_a_network_too(tmp_path):
    pytest.importorskip("onnx")
    body = (conv(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.Hardswish(), nn.MaxPool2d(2))
    net, x = nn.Sequential(*body, nn.Flatten(), nn.Linear(72, 4)).eval(), torch.randn(3, 3, 12, 12)
    path = export.onnx(net, tmp_path / "net.onnx", x[:1])
    with torch.no_grad():
        assert torch.allclose(engine.compile(path, x[:1], measure=False)(x), net(x), atol=1e-5)
    with pytest.raises(FileNotFoundError, match=r"other\.onnx is not there"):
        engine.compile(tmp_path / "other.onnx", x[:1])


@needs_c
def test_an_engine_that_is_not_its_network_is_refused(monkeypatch):
    net, x = nn.Sequential(conv(3, 4, 3), nn.ReLU()).eval(), torch.randn(1, 3, 8, 8)
    assert isinstance(engine.compile(net, x, measure=False), Engine)
    run = Engine._run
    monkeypatch.setattr(Engine, "_run", lambda self, arrays: [1.01 * y for y in run(self, arrays)])
    with pytest.raises(ValueError, match=r"the engine answers otherwise than torch, by 0\.0"):
        engine.compile(net, x, measure=False)


@needs_c
def test_a_nan_is_an_answer_where_torch_has_one_and_nowhere_else(monkeypatch):
    """The cubic root of a negative sum has none; a number in a NaN's place, or the other way, is another answer."""
    net, x = nn.Sequential(conv(3, 8, 3), nn.LPPool2d(3, 2), conv(8, 4, 1)).eval(), torch.zeros(1, 3, 16, 16)
    made = engine.compile(net, x, measure=False)
    y, exact = made(noise := torch.randn(1, 3, 16, 16)), net(noise)
    assert exact.isnan().any() and torch.equal(y.isnan(), exact.isnan())
    plain, run = nn.Sequential(conv(3, 4, 3), nn.ReLU()).eval(), Engine._run
    monkeypatch.setattr(Engine, "_run", lambda self, *given: [y * float("nan") for y in run(self, *given)])
    with pytest.raises(ValueError, match=r"otherwise than torch, by nan"):
        engine.compile(plain, x, measure=False)
