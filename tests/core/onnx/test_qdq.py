"""The written file answers as torch does, however its operators are called, or it is refused before it is there."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lab.core.onnx import ort_report, qdq
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.core.quantisation.qparams import FixedQuantiser, QParams, set_int_repr

pytest.importorskip("onnx", reason="needs the extra `export`")
pytest.importorskip("onnxruntime", reason="needs the extra `export`")
from lab.core.onnx.runtime import Deployed, loadable

X = torch.randn(2, 4, 8, 9, generator=torch.Generator().manual_seed(0))

STEPS = {
    "relu": F.relu,
    "relu by keyword": lambda x: F.relu(input=x),
    "clamp": lambda x: x.clamp(min=-0.5),
    "clamp by position": lambda x: torch.clamp(x, -1, 0.5),
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, max_val=0.7),
    "max pool": lambda x: F.max_pool2d(x, 2),
    "max pool by keyword": lambda x: F.max_pool2d(input=x, kernel_size=3, stride=(2, 1), padding=1),
    "max pool to the end": lambda x: F.max_pool2d(x, [3], 2, ceil_mode=True),
    "mean pool": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "mean pool by keyword": lambda x: F.avg_pool2d(x, kernel_size=2, padding=(1, 0), count_include_pad=False),
    "zeros": lambda x: F.pad(x, (1, 0, 2, 1)),
    "twos": lambda x: F.pad(x, pad=(1, 1), value=2.0),
    "twos by position": lambda x: F.pad(x, [0, 1], "constant", 2),
    "mirror": lambda x: F.pad(x, (1, 1, 1, 1), "reflect"),
    "edge": lambda x: F.pad(x, (2, 0, 0, 1), mode="replicate"),
    "crop": lambda x: F.pad(x, (-1, 0)),
    "add twice": lambda x: torch.add(x, x.sigmoid(), alpha=2),
    "sub by keyword": lambda x: torch.sub(other=x, input=x * 2, alpha=3),
    "method": lambda x: x.sub(1, alpha=2).mul(other=0.5).div(2),
    "from a number": lambda x: 1 - x,
    "channels": lambda x: torch.cat([x, -1 * x], 1)[:, 1:5],
    "rows": lambda x: torch.cat(tensors=(x, x.abs()), dim=2),
    "columns": lambda x: torch.concat((x, x), axis=-1)[..., ::2],
    "leaky": lambda x: F.leaky_relu(x, negative_slope=0.2),
    "leaky by position": lambda x: F.leaky_relu(x, 0.3),
    "all of it": lambda x: x[:],
    "enlarged": lambda x: F.interpolate(x, scale_factor=2),
    "enlarged by position": lambda x: F.interpolate(x, None, (1, 2), "bilinear", True),
    "shuffled": lambda x: F.pixel_shuffle(input=x, upscale_factor=2)[:, :1] * x.mean((1, 2, 3), keepdim=True),
    "mean of channels": lambda x: x - x.mean(dim=1, keepdim=True),
    "mean by NumPy's names": lambda x: x - torch.mean(x, axis=(2, 3), keepdims=True),
    "softmax": lambda x: torch.softmax(x, dim=1),
    "dropout": lambda x: F.dropout(x, 0.5, False),
}


class Net(nn.Module):
    """Steps between two convolutions, the first with one number for both axes."""

    def __init__(self, names, out: int = 3) -> None:
        super().__init__()
        self.names, self.first, self.last = names, nn.Conv2d(4, 4, 3, [1], [1]), nn.LazyConv2d(out, 1)
        with torch.no_grad():
            self(X)

    def forward(self, x):
        x = self.first(x)
        for name in self.names:
            x = STEPS[name](x)
        return self.last(x)


def net(names) -> nn.Module:
    torch.manual_seed(0)
    try:
        return Net(names).eval()
    except (RuntimeError, ValueError):  # too small a picture for these
        assume(False)
        raise


def deployed(graph) -> Deployed:
    return Deployed(loadable(qdq.to_model(graph).SerializeToString()))


@pytest.mark.parametrize("name", STEPS)
def test_a_step_alone(name):
    check(net([name]))


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=4))
def test_steps_in_any_order(names):
    check(net(names))


def check(model: nn.Module) -> None:
    run = deployed(fold_batch_norms(model, X))
    for x in (X, torch.randn(1, 4, 13, 11, generator=torch.Generator().manual_seed(1))):
        with torch.no_grad():
            torch.testing.assert_close(run(x), model(x), atol=1e-4, rtol=1e-4)


def quantised(model: nn.Module, x: torch.Tensor, zeros: float = 0.0):
    """A network on grids of 8 bits: its input, its answer and both convolutions' weights, as any method leaves it."""
    graph = fold_batch_norms(model, x)
    ends = [node for node in graph.graph.nodes if node.op == "placeholder" or node.target in ("first", "last")]
    with torch.no_grad():
        values = dict(zip(ends, (x, *_answers(graph, x, ("first", "last"))), strict=True))
        for name in ("first", "last"):
            layer = graph.get_submodule(name)
            step = layer.weight.abs().max().clamp(min=1e-30) / 127
            set_int_repr(layer, (layer.weight / step).round(), step)
    for node, value in values.items():
        graph.add_submodule(
            f"q_{node.name}", FixedQuantiser(QParams.from_min_max(float(value.min()), float(value.max()), 8))
        )
        with graph.graph.inserting_after(node):
            call = graph.graph.call_module(f"q_{node.name}", (node,))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call, delete_user_cb=lambda user, call=call: user is not call)
    graph.recompile()
    return graph


def _answers(graph, x, names):
    outputs = {}
    hooks = [
        graph.get_submodule(n).register_forward_hook(lambda _, __, y, n=n: outputs.__setitem__(n, y)) for n in names
    ]
    graph(x)
    for hook in hooks:
        hook.remove()
    return [outputs[name] for name in names]


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=2))
def test_integers_are_within_a_step_of_torch(names):
    graph = quantised(net(names), X)
    assert ort_report.worst(ort_report.parity(graph, X)).steps <= 1


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-30])
def test_a_bias_beside_weights_of_nearly_nothing_is_kept(size):
    """On the step of such weights 0.45 is more than 32 bits hold: the mean picture of a network that starts at 0."""
    model = net(["relu"])
    with torch.no_grad():
        model.last.weight.mul_(size)
        model.last.bias.fill_(0.45)
        model.last.bias[0] = -0.2
        graph = quantised(model, X)
        torch.testing.assert_close(deployed(graph)(X), graph(X), atol=0.65 / 255, rtol=0)
        torch.testing.assert_close(graph(X), model(X), atol=0.65 / 255, rtol=0)


def test_a_channel_of_zeros_keeps_its_bias_and_its_neighbours():
    model = net(["relu"])
    graph = quantised(model, X)
    with torch.no_grad():
        weight = model.last.weight.clone()
        weight[1] = 0
        model.last.weight.copy_(weight)
        step = weight.abs().flatten(1).amax(1).clamp(min=1e-12).view(-1, 1, 1, 1) / 127
        set_int_repr(graph.get_submodule("last"), (weight / step).round(), step)
        graph.get_submodule("last").bias.copy_(torch.tensor([0.1, 0.7, -0.3]))
    assert ort_report.worst(ort_report.parity(graph, X)).steps <= 1


class Around(nn.Module):
    def __init__(self, **kind) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, (3, 5), **kind)

    def forward(self, x):
        return self.conv(x)


@pytest.mark.parametrize(
    ("padding", "mode"),
    [(padding, mode) for mode in ("zeros", "reflect", "replicate") for padding in (1, (2, 0), "same", "valid")]
    + [((1,), "zeros")],  # torch itself takes one number in a list for no other mode
)
def test_padding_of_a_convolution_by_word_and_by_number(mode, padding):
    check(Around(padding=padding, padding_mode=mode, dilation=(2,) if padding == "same" else 1).eval())


@pytest.mark.parametrize(
    "module",
    [
        nn.ConstantPad2d((1, 0, 2, 1), 3.0),
        nn.ReflectionPad2d(1),
        nn.ReplicationPad2d((1, 2, 0, 1)),
        nn.ZeroPad2d(1),
        nn.MaxPool2d(3, [2], [1]),
        nn.AvgPool2d([2], 1),
        nn.Hardtanh(-0.2, 2),
        nn.ReLU6(),
        nn.PReLU(4),
        nn.Softmax(1),
        nn.ConvTranspose2d(4, 4, 3, [2], 1, output_padding=[1], groups=2),
        nn.BatchNorm2d(4, affine=False),
        nn.UpsamplingBilinear2d(scale_factor=2),
        nn.Dropout2d(0.5),
        nn.AdaptiveAvgPool2d((1, 1)),
    ],
)
def test_modules(module):
    check(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh(), module).eval())


def test_a_vector_and_modules_named_as_the_ends_of_the_file():
    class Ends(nn.Module):
        def __init__(self):
            super().__init__()
            self.input, self.output = nn.Linear(6, 5), nn.Linear(5, 4)

        def forward(self, x):
            return torch.relu(self.output(F.relu(self.input(x))))

    model, x = Ends().eval(), torch.randn(3, 6)
    with torch.no_grad():
        torch.testing.assert_close(deployed(fold_batch_norms(model, x))(x), model(x))


def refused(forward, match, x=X, **parts):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)
            for name, part in parts.items():
                setattr(self, name, part)

    Odd.forward = forward
    with pytest.raises(ValueError, match=match) as caught:
        qdq.to_model(fold_batch_norms(Odd().eval(), x))
    assert "\n" not in str(caught.value)


def test_what_has_no_form_is_one_line():
    refused(
        lambda self, x: F.pad(self.conv(x), (1, 1, 1, 1), "circular"), "padding 'circular' by .* has no ONNX form here"
    )
    refused(lambda self, x: F.avg_pool2d(self.conv(x), 2, divisor_override=3), "divisor_override")
    refused(lambda self, x: F.dropout(self.conv(x), 0.5), "goes on dropping in eval mode")
    refused(lambda self, x: self.conv(x)[:, [0, 2]], "take slices by numbers")
    refused(lambda self, x: torch.div(self.conv(x), 2, rounding_mode="floor"), "divide plainly")
    refused(lambda self, x: F.interpolate(self.conv(x), size=(4, 4), mode="area"), "give nearest, bilinear or bicubic")
    refused(lambda self, x: F.adaptive_max_pool2d(self.conv(x), 3), "pool to sizes that divide the picture's")
    refused(lambda self, x: self.conv(x) * x.size(0), "depends on the batch size")
    refused(
        lambda self, x: self.norm(self.conv(x)).relu(),
        "without running statistics",
        norm=nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4, track_running_stats=False)),
    )


def test_a_second_output_or_input_and_other_numbers_are_one_line():
    refused(lambda self, x: (self.conv(x), 2), r"the network gives \(.*tensors are written here")
    refused(lambda self, x: {}, "Odd returns a dict that holds no tensor: return one")
    refused(lambda self, x: x * 2.0, "x is torch.complex64: real float32 is written here", X + 1j)
    refused(lambda self, x: x * 2.0, "x is torch.float64: real float32 is written here", X.double())


def test_a_file_that_would_not_load_is_not_written(tmp_path, monkeypatch):
    graph = fold_batch_norms(net(["relu"]), X)
    monkeypatch.setitem(qdq._MODULES, nn.Conv2d, lambda writer, node: writer.emit("Conv", ["nothing"], node.name))
    with pytest.raises(ValueError, match="the ONNX file would not load, nothing was written") as caught:
        qdq.write(graph, tmp_path / "net.onnx")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_onnxruntime_is_given_real_numbers_only():
    run = deployed(fold_batch_norms(net(["relu"]), X))
    for x in (X + 1j, X.double()):
        with pytest.raises(ValueError, match=r"onnxruntime reads real float32 here"):
            run(x)
