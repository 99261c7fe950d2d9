"""The exported file in onnxruntime: the same answers, integer kernels where they are due, and reasons where not."""

import sys

import pytest
import torch
from torch import nn

import lab
from lab.core.onnx import layers, ort_report, qdq
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.core.training import seeded
from tests.pams.small import QUICK, edsr, quantised, task

onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
pytest.importorskip("onnxruntime", reason="needs the extra `export`")
from lab.core.onnx.runtime import Deployed  # noqa: E402

X = torch.rand(1, 3, 14, 12, generator=torch.Generator().manual_seed(0))


def rdn():
    with seeded(1):
        return lab.nets.rdn(blocks=2, layers=2).eval()


def deployed(graph) -> Deployed:
    return Deployed(qdq.to_model(graph).SerializeToString())


@pytest.mark.parametrize("net", [edsr(), edsr(scale=3), edsr(scale=4, scaling=0.1), rdn()])
def test_a_float_network_answers_alike_at_any_size(net):
    run = deployed(fold_batch_norms(net, X))
    for x in (X, torch.rand(3, 3, 9, 17)):
        with torch.no_grad():
            torch.testing.assert_close(run(x), net(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "integers"),
    [
        ({"placement": "fig1", "grid": "signed"}, 0),
        ({"placement": "repo", "grid": "signed"}, 2),
        ({"placement": "cadyq", "grid": "signed"}, 2),
        ({"placement": "cadyq"}, 4),
        ({"placement": "cadyq", "scales": "channel"}, 4),
        ({"placement": "full"}, 8),
        ({"placement": "full", "activation_bits": 4, "weight_bits": 4}, 8),
    ],
)
def test_convolutions_that_run_on_integers(fields, integers):
    """As in the survey of this graph: a quantiser on both sides makes a convolution whole, and nothing less does."""
    graph, _ = quantised(edsr(), X, **fields)
    report = graph_report(graph)
    assert sum(row.integer for row in report.rows) == integers == report.operators.get("QLinearConv", 0)
    assert len(report.rows) == 8 and all(bool(row.reason) != row.integer for row in report.rows)


def graph_report(graph) -> ort_report.Fusion:
    return ort_report.fusion(graph)


def test_reasons_are_the_true_ones():
    graph, _ = quantised(edsr(), X, placement="fig1", grid="signed")
    reasons = {row.layer: row.reason for row in graph_report(graph).rows}
    assert reasons["head"] == "its weight is float"
    assert reasons["blocks.0.conv1"].startswith("a ReLU stands before a signed quantiser")
    assert reasons["blocks.0.conv2"] == "no quantiser stands right behind it (Add reads it)"
    graph, _ = quantised(edsr(), X, placement="repo")
    reasons = {row.layer: row.reason for row in graph_report(graph).rows}
    assert reasons["blocks.1.conv1"] == "it reads a float tensor (Add)"
    assert "6 of 8" not in repr(graph_report(graph)) and "2 of 8 layers" in repr(graph_report(graph))


def test_in_full_only_the_picture_itself_is_float():
    graph, _ = quantised(edsr(), X, placement="full")
    operators = graph_report(graph).operators
    assert operators["QLinearAdd"] == 3  # two blocks and the global sum
    assert operators["QuantizeLinear"] == operators["DequantizeLinear"] == 1
    moves = {"DepthToSpace", "Transpose", "Slice"}
    assert set(operators) <= moves | {"QLinearConv", "QLinearAdd", "QuantizeLinear", "DequantizeLinear", "Sub", "Add"}


@pytest.mark.parametrize(
    ("bits", "placement", "apart"), [(8, "cadyq", 0.05), (8, "full", 0.05), (8, "fig1", 0.05), (4, "full", 0.3)]
)
@pytest.mark.parametrize("net", [edsr(), edsr(scale=4), rdn()], ids=["edsr", "x4", "rdn"])
def test_every_layer_is_within_one_step(net, bits, placement, apart):
    """Integers round once where torch rounds in float: a code may differ by one, and few do at 8 bits.

    Biases are integer multiples of s_x s_w, and onnxruntime adds in fixed point.
    """
    graph, _ = quantised(net, X, placement=placement, weight_bits=bits, activation_bits=bits)
    rows = ort_report.parity(graph, X)
    assert len(rows) >= 4 and all(row.steps <= 1 for row in rows)
    assert ort_report.worst(rows).unequal < apart


def test_a_dense_network_is_whole_too():
    """Its ReLUs stand before a signed grid, which they share with what they are concatenated with."""
    report = graph_report(quantised(rdn(), X, placement="full")[0])
    assert report.share == 1.0, report


def test_a_layer_that_is_called_twice_has_two_biases():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.tail = nn.Conv2d(8, 12, 3, padding=1)

        def forward(self, x):
            x = self.body(self.head(x).relu())
            return nn.functional.pixel_shuffle(self.tail(self.body(2 * x).relu()), 2)

    with seeded(0):
        graph, _ = quantised(Twice().eval(), X, placement="full")
    assert ort_report.worst(ort_report.parity(graph, X)).steps <= 1
    assert [row.layer for row in graph_report(graph).rows] == ["head", "body", "body", "tail"]


def test_parity_sees_a_file_that_says_something_else(monkeypatch):
    """The control: a bias left out on export."""
    graph, _ = quantised(edsr(), X, placement="full")
    original = layers._rounded

    def without_bias(*args):
        return original(*args)[:1]

    monkeypatch.setattr(layers, "_rounded", without_bias)
    assert ort_report.worst(ort_report.parity(graph, X)).steps > 1


def test_the_whole_picture_is_near():
    graph, _ = quantised(edsr(), X, placement="full")
    with torch.no_grad():
        apart = (deployed(graph)(X) - graph(X)).abs()
        noise = (graph(X) - edsr()(X)).abs().mean()
    assert apart.mean() < noise and apart.max() < 0.05


@pytest.mark.slow
def test_alpha_in_the_file_is_its_step_times_n():
    outcome = lab.PAMS(**QUICK, placement="full").run(task(), progress=False)
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in qdq.to_model(outcome.model).graph.initializer}
    for name, point in outcome.placement.groups().items():
        n = 127 if point.signed else 255
        assert float(constants[f"{name}.step"]) * n == pytest.approx(outcome.alphas()[name], rel=1e-6)
        assert constants[f"zero{128 * point.signed}"].dtype == "uint8"


def test_biases_are_int32_on_the_step_of_input_times_weight():
    graph, _ = quantised(edsr(), X, placement="full")
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in qdq.to_model(graph).graph.initializer}
    step = constants["sub.step"] * constants["head.w.step"]
    filled = nn.functional.pad(graph.head.bias.detach(), (0, 8))  # to sixteen channels
    assert constants["head.b"].dtype == "int32" and constants["head.b.step"] == pytest.approx(step, rel=1e-5)
    assert constants["head.b"] * step == pytest.approx(filled.numpy(), abs=float(step))
    assert constants["head.w"].dtype == "int8"


def test_few_output_channels_are_filled_up_and_cut_off_again():
    model = qdq.to_model(quantised(edsr(), X, placement="full")[0])
    (weight,) = (c for c in model.graph.initializer if c.name == "tail.w")
    assert list(weight.dims) == [16, 8, 3, 3] and not onnx.numpy_helper.to_array(weight)[3:].any()
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.slow
def test_an_exported_file_is_whole_or_not_there(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 12, 3, padding=1)
            self.up = nn.PixelShuffle(2)

        def forward(self, x):
            return self.up(torch.cumsum(self.conv(x), 1))

    with pytest.raises(
        ValueError, match=r"cumsum \(cumsum\) has no ONNX form here: write it in operators that have one"
    ):
        qdq.write(fold_batch_norms(Odd(), X), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
    path = lab.PAMS(**QUICK).run(task(), progress=False).export(tmp_path / "net.onnx")
    assert Deployed(path)(X).shape == (1, 3, 28, 24)


class Kinds(nn.Module):
    """Every operator that is written, once."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.slope = nn.Conv2d(3, 8, 3, padding=1, stride=1, groups=1), nn.PReLU(8)
        self.side, self.deep = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4, bias=False), nn.Conv2d(16, 12, 1)
        self.up, self.big, self.tail = nn.ConvTranspose2d(8, 8, 2, 2), nn.Upsample(scale_factor=2), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        a = self.slope(self.head(x * 2.0))
        b = nn.functional.leaky_relu(self.side(a), 0.2)
        c = nn.functional.pixel_shuffle(self.deep(torch.cat([a, b], 1)), 2)
        d = self.tail(nn.functional.relu(self.up(b)))
        e = nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return torch.sigmoid(c - d) * e / 3 + self.big(x) + nn.functional.interpolate(x, scale_factor=2, mode="bicubic")


def test_operators_of_other_peoples_networks():
    with seeded(0):
        net = Kinds().eval()
    with torch.no_grad():
        torch.testing.assert_close(deployed(fold_batch_norms(net, X))(X), net(X), atol=1e-5, rtol=1e-4)
    graph, placement = quantised(net, X, placement="full")
    assert set(placement.unquantised) >= {"slope", "up", "leaky_relu", "sigmoid"}
    assert ort_report.worst(ort_report.parity(graph, X)).steps <= 1
    assert {row.layer: row.reason for row in graph_report(graph).rows}["up"].startswith("onnxruntime has no integer")


@pytest.mark.parametrize("channels", [(8, 8, 4), (8, 8, 8), (12, 12, 3), (8, 12, 1), (20, 4, 2)])
def test_groups_and_odd_widths_stay_what_they_are(channels):
    before, after, groups = channels
    with seeded(0):
        net = nn.Sequential(
            nn.Conv2d(3, before, 3, padding=1),
            nn.Conv2d(before, after, 3, padding=1, groups=groups),
            nn.Conv2d(after, 12, 1),
            nn.PixelShuffle(2),
        ).eval()
    graph, _ = quantised(net, X, placement="full")
    assert ort_report.worst(ort_report.parity(graph, X)).steps <= 1


def test_missing_extras_are_one_line(monkeypatch, tmp_path):
    graph, _ = quantised(edsr(), X)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"needs onnxruntime: pip install 'shrinklab\[export\]'"):
        deployed(graph)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"needs onnx: pip install 'shrinklab\[export\]'"):
        qdq.write(graph, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_published_size_has_the_kernels_and_bytes_it_should():
    net, x = lab.nets.edsr(blocks=16, width=64, scale=4), torch.rand(1, 3, 24, 24)
    rows = (
        ("fig1", "signed", 0, 0),
        ("repo", "signed", 16, 0),
        ("cadyq", "unsigned", 32, 15),
        ("full", "unsigned", 37, 17),
    )
    for placement, grid, integers, adds in rows:
        graph, _ = quantised(net, x, placement=placement, grid=grid)
        report = graph_report(graph)
        assert sum(row.integer for row in report.rows) == integers
        assert report.operators.get("QLinearAdd", 0) == adds
