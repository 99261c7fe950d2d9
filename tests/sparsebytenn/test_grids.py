"""Numbers on grids: quantised networks run whole in the engine, their products in int8, and answer as they did."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lab.core.onnx import export, reading
from lab.core.quantisation.qparams import FixedQuantiser, QParams
from lab.sparsebytenn import codes, engine, packed, reference

X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
CODES = st.sampled_from([(0, 255), (-128, 127), (0, 15), (-7, 7)])


def rounded_to(x: torch.Tensor, scale: float, zero: int, codes: tuple[int, int]) -> torch.Tensor:
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, *codes)


@torch.no_grad()
def on_grid(layer: nn.Module, most: int = 127) -> nn.Module:
    """A layer whose rows are integers of `most` at most, times a step each."""
    rows = layer.weight.flatten(1)
    step = rows.abs().max(1).values / most
    codes = (rows / step[:, None]).round()
    layer.weight.copy_((codes * step[:, None]).view_as(layer.weight))
    return layer


def held(net: nn.Module, x: torch.Tensor, step: float, given: object = None) -> engine.Engine:
    """The engine of all of a network, which answers as torch does, but for a step where a tie falls otherwise."""
    made = engine.compile(net.eval() if given is None else given, x[:1], measure=False, strict=True)
    with torch.no_grad():
        apart = (made(x) - net(x)).abs()
    assert apart.max() <= 1.01 * step + 1e-5 and (apart > 1e-4).float().mean() < 0.02
    return made


def in_int8(made: engine.Engine) -> list[str]:
    return [op.name for op in made.network.ops if op.int8 is not None]


class Quantised(nn.Module):
    """A convolution between two grids, its output on the second."""

    def __init__(self, layer: nn.Module, first: tuple, last: tuple, relu: bool) -> None:
        super().__init__()
        self.layer, self.first, self.last, self.relu = layer, first, last, relu

    def forward(self, x):
        y = self.layer(rounded_to(x, *self.first))
        return rounded_to(F.relu(y) if self.relu else y, *self.last)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(st.data())
def test_a_convolution_between_grids(data):
    groups = data.draw(st.sampled_from([1, 1, 1, 2, 4]))
    k, stride, pad = (data.draw(st.integers(*ends)) for ends in ((1, 3), (1, 2), (0, 2)))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    layer = on_grid(nn.Conv2d(4, data.draw(st.sampled_from([4, 8])), k, stride, min(pad, k - 1), groups=groups))
    grids = []
    for _ in range(2):
        low, high = data.draw(CODES)
        zero = data.draw(st.integers(low, high))
        grids.append((3 / max(high - zero, zero - low), zero, (low, high)))
    net, x = Quantised(layer, *grids, data.draw(st.booleans())), torch.randn(2, 4, 7, 6)
    made = held(net, x, grids[1][0])
    assert in_int8(made) == ["layer"] or groups == 4  # a depthwise layer, at times


def test_the_reference_rounds_as_the_kernels_do():
    net = Quantised(on_grid(nn.Conv2d(3, 8, 3, padding=1)), (0.02, 131, (0, 255)), (0.05, 0, (-128, 127)), True)
    made = held(net, X, 0.05)
    theirs = reference.run(made.network, X[0].numpy())
    apart = np.abs(theirs - made(X)[0].numpy())
    assert apart.max() <= 0.0501 and (apart > 1e-4).mean() < 0.02


def test_zeros_around_a_map_are_zeros_of_its_grid():
    net = Quantised(on_grid(nn.Conv2d(3, 8, 3, padding=2)), (0.02, 200, (0, 255)), (1e-4, 0, (-(2**20), 2**20)), False)
    made = held(net, X - 2, 1e-4)
    assert in_int8(made) == ["layer"]


class Everywhere(nn.Module):
    """Grids before sums, pools, depthwise layers and linear ones, per channel, and at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = on_grid(nn.Conv2d(3, 8, 3, 1, 1)), on_grid(nn.Conv2d(8, 8, 3, 1, 1), 7)
        self.deep, self.point = on_grid(nn.Conv2d(8, 8, 3, 1, 1, groups=8)), on_grid(nn.Conv2d(8, 16, 1))
        self.head = on_grid(nn.Linear(16, 5))
        self.register_buffer("scales", torch.linspace(0.01, 0.02, 8))
        self.register_buffer("zeros", torch.arange(8, dtype=torch.int32))

    def forward(self, x):
        x = F.relu(self.a(rounded_to(x, 0.03, 128, (0, 255))))
        x = rounded_to(x, 0.015, 0, (0, 255))
        x = rounded_to(x + rounded_to(self.b(x), 0.013, 0, (-128, 127)), 0.02, 3, (0, 255))
        x = torch.fake_quantize_per_channel_affine(self.deep(x), self.scales, self.zeros, 1, -100, 127)
        x = self.point(rounded_to(F.max_pool2d(x, 2), 0.02, 0, (-128, 127)))
        return rounded_to(self.head(rounded_to(F.relu(x).mean((2, 3)), 0.01, 0, (0, 255))), 0.02, 0, (-128, 127))


def test_grids_may_stand_everywhere():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Everywhere()
    made = held(net, X, 0.02)
    assert in_int8(made) == ["a", "b", "point"]
    again = engine.Engine(made.data)
    assert torch.equal(again(X), made(X)) and in_int8(again) == in_int8(made)


def test_weights_on_no_grid_stay_floats():
    net = Quantised(nn.Conv2d(3, 8, 3, padding=1), (0.02, 128, (0, 255)), (0.05, 0, (-128, 127)), True)
    assert in_int8(held(net, X, 0.05)) == []


def test_a_depthwise_layer_and_the_product_behind_it_stay_one():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deep, self.point = nn.Conv2d(8, 8, 3, 1, 1, groups=8), on_grid(nn.Conv2d(8, 8, 1))

        def forward(self, x):
            return self.point(rounded_to(F.relu(self.deep(x)), 0.01, 0, (0, 255)))

    made = engine.compile(Pair().eval(), torch.randn(1, 8, 9, 9), measure=False, strict=True)
    assert [op.kind for op in made.network.ops] == ["separable"] and in_int8(made) == ["point"]


class Deep(nn.Module):
    """A grid that a depthwise layer reads, and as `also` says another convolution in int8, or a sum."""

    def __init__(self, zero: int, also: str) -> None:
        super().__init__()
        self.first, self.deep = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.side, self.zero, self.also = on_grid(nn.Conv2d(8, 8, 1)), zero, also

    def forward(self, x):
        x = rounded_to(self.first(x), 0.05, self.zero, (0, 255))
        y = self.deep(x)
        return y + self.side(x) if self.also == "int8" else y + x if self.also == "sum" else y


@pytest.mark.parametrize("zero", [0, 130])
@pytest.mark.parametrize("also", ["nothing", "int8", "sum"])
def test_what_a_depthwise_layer_reads_stays_in_codes(zero, also):
    """Its taps take the scale, and no operator multiplies by it, but where a sum reads the grid too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Deep(zero, also)
    made = held(net, X, 0.06)  # a step that falls otherwise, times the taps
    multiplied = [op for op in made.network.ops if op.kind == "binary" and op.fn == "mul"]
    assert len(multiplied) == (also == "sum") and in_int8(made) == (["side"] if also == "int8" else [])


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 70), st.integers(1, 127), st.integers(0, 2**31))
def test_the_step_of_rows_is_found(rows, columns, most, seed):
    g = np.random.default_rng(seed)
    integers = g.integers(-most, most + 1, (rows, columns))
    step = np.exp(g.standard_normal(rows))
    w = (integers.astype(np.float32) * step[:, None].astype(np.float32)).astype(np.float64)
    exact = codes.steps(w)
    assert exact is not None and np.allclose(np.rint(w / exact[:, None]) * exact[:, None], w, rtol=1e-6, atol=0)
    assert codes.steps(g.standard_normal((rows, columns + 8))) is None


# -- files and modules -------------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.deep, self.point = nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Conv2d(8, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = F.relu(x + self.b(x))
        return self.head(F.relu(self.point(F.relu(self.deep(x)))).mean((2, 3)))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", ["QInt8", "QUInt8"])
def test_what_onnxruntime_quantised(kind, per_channel, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    quantization = pytest.importorskip("onnxruntime.quantization")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Small().eval()
    images = iter([{"input": x[None].numpy()} for x in X])

    class Images(quantization.CalibrationDataReader):
        def get_next(self):
            return next(images, None)

    path = tmp_path / "codes.onnx"
    quantization.quantize_static(
        str(export.onnx(net, tmp_path / "floats.onnx", X[:1])), str(path), Images(), per_channel=per_channel,
        quant_format=quantization.QuantFormat.QDQ, activation_type=getattr(quantization.QuantType, kind),
        weight_type=quantization.QuantType.QInt8, reduce_range=True,
    )  # fmt: skip
    read = reading.module(path, X[:1])
    scale = next(node.args[1] for node in reversed(read.graph.nodes) if len(node.args) == 5)
    made = held(read, X, scale, path)
    assert in_int8(made) == ["a", "b", "point"]
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    theirs = session.run(None, {"input": X.numpy()})[0]
    apart = np.abs(made(X).numpy() - theirs)
    assert apart.max() <= 1.01 * scale and (apart > 1e-4).mean() < 0.05


def test_fake_quantisers_of_torch():
    from torch.ao.quantization import FakeQuantize

    class Trained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = FakeQuantize().eval(), FakeQuantize().eval()
            for part, scale in ((self.first, 0.03), (self.last, 0.02)):
                part.disable_observer()
                part.scale, part.zero_point = torch.tensor([scale]), torch.tensor([120], dtype=torch.int32)
            self.layer = on_grid(nn.Conv2d(3, 8, 3, padding=1))

        def forward(self, x):
            return self.last(self.layer(self.first(x)))

    assert in_int8(held(Trained(), X, 0.02)) == ["layer"]


def test_quantisers_of_the_lab():
    net = nn.Sequential(
        FixedQuantiser(QParams(0.03, -127, 127, 128)), on_grid(nn.Conv2d(3, 8, 3, padding=1)), nn.ReLU(),
        FixedQuantiser(QParams(0.02, 0, 15, 0)), on_grid(nn.Conv2d(8, 8, 1)), FixedQuantiser(QParams(0.05, -7, 7, 0)),
    )  # fmt: skip
    assert in_int8(held(net, X, 0.05)) == ["1", "4"]


def test_a_network_clamped_to_tensors():
    class Clamped(nn.Module):
        def forward(self, x):
            return x.clamp(torch.tensor(-0.5), torch.tensor([0.75])).clamp(max=torch.tensor(0.6))

    made = engine.compile(Clamped(), X[:1], measure=False, strict=True)
    assert torch.equal(made(X), X.clamp(-0.5, 0.6))


def test_numbers_are_rounded_as_torch_rounds():
    class Rounded(nn.Module):
        def forward(self, x):
            return torch.round(x * 8) / 8

    x = torch.arange(-64, 64).float().view(1, 2, 8, 8) / 16
    made = engine.compile(Rounded(), x, measure=False, strict=True)
    assert torch.equal(made(x), Rounded()(x))
    assert packed.read(made.data).ops[1].act == "round" or any(op.act == "round" for op in made.network.ops)
