"""What people write in transformers and modern networks answers in onnxruntime as in torch, float and on integers.

A step here takes (N, C, H, W) and gives it: what lies between may have other axes. The file's batch is always free.
"""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from transformers.utils import ModelOutput

from lab.core.onnx import ort_report, qdq
from lab.core.quantisation.bn_folding import fold_batch_norms
from tests.core.onnx.networks import KINDS, quantised

onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
pytest.importorskip("onnxruntime", reason="needs the extra `export`")
from lab.core.onnx.runtime import Deployed, loadable  # noqa: E402

C, SIDE = 4, 6
X = torch.randn(2, C, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Self-attention over the picture's places, by a module or by scaled_dot_product_attention with fused q, k, v."""

    def __init__(self, kind: str, batch_first: bool = True) -> None:
        super().__init__()
        self.kind, self.batch_first = kind, batch_first
        self.whole, self.qkv = nn.MultiheadAttention(C, 2, batch_first=batch_first), nn.Linear(C, 3 * C)

    def forward(self, x):
        n, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        if self.kind == "module":
            tokens = tokens if self.batch_first else tokens.transpose(0, 1)
            tokens, _ = self.whole(tokens, tokens, tokens, need_weights=False)
            tokens = tokens if self.batch_first else tokens.transpose(0, 1)
        else:
            q, k, v = self.qkv(tokens).reshape(n, h * w, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
            if self.kind == "written":
                out = ((q * (c // 2) ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
            else:
                out = F.scaled_dot_product_attention(q, k, v, is_causal=self.kind == "causal")
            tokens = out.transpose(1, 2).reshape(n, h * w, c)
        return tokens.transpose(1, 2).reshape(n, c, h, w)


class Squeeze(nn.Module):
    """Squeeze and excite: each channel times a number from its mean."""

    def __init__(self, pool, gate) -> None:
        super().__init__()
        self.pool, self.gate, self.fc = pool, gate, nn.Conv2d(C, C, 1)

    def forward(self, x):
        return x * self.gate(self.fc(self.pool(x)))


class ChannelsLast(nn.Module):
    """A norm and a block of linear layers on (N, H, W, C), as ConvNeXt has them, with a scale a channel."""

    def __init__(self, norm) -> None:
        super().__init__()
        self.norm, self.first, self.last = norm, nn.Linear(C, 2 * C), nn.Linear(2 * C, C, bias=False)
        self.scale = nn.Parameter(torch.full((C, 1, 1), 0.5))

    def forward(self, x):
        y = self.last(F.gelu(self.first(self.norm(x.permute(0, 2, 3, 1)))))
        return x + self.scale * y.permute(0, 3, 1, 2)


class Classed(nn.Module):
    """A learned token beside all others, as a vision transformer has, and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.places = nn.Parameter(torch.randn(1, 1, C)), nn.Parameter(torch.randn(1, SIDE * SIDE + 1, C))

    def forward(self, x):
        n, c = x.shape[0], x.size(1)
        tokens = torch.cat([self.token.expand(n, -1, -1), x.reshape(n, c, -1).permute(0, 2, 1)], 1) + self.places
        return x * tokens[:, 0].sigmoid()[:, :, None, None] + tokens[:, 1:].mean(1).view(n, c, 1, 1)


class Gathered(nn.Module):
    """A table of learned numbers and where each of them stands, as shifted windows have their places."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, 1))
        self.register_buffer("index", torch.tensor([2, 0, 0, -2]))

    def forward(self, x):
        return x + self.table[self.index].view(-1, 1, 1)


def shuffled(x):
    n, c, h, w = x.size()
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


def gated_by_a_half(x):
    a, b = x.chunk(2, dim=1)
    return torch.cat([a * b.sigmoid(), b], 1)


def windows(h, w):
    """Which of four windows each place lies in, written in place as shifted windows have it: (1, H, W)."""
    which = torch.zeros((1, h, w))
    for count, (rows, columns) in enumerate([(slice(0, h // 2), slice(0, -2)), (slice(-2, None), slice(1, w))]):
        which[:, rows, columns] = count + 1.0
    return torch.split(which, [w - 2, 2], dim=2)[0].repeat(1, 1, 2)[:, :, :w].ne(1)


def norm_of_layers(x):
    return F.layer_norm(x.permute(0, 2, 3, 1), (C,)).permute(0, 3, 1, 2)


STEPS = {
    "pool to 1": Squeeze(nn.AdaptiveAvgPool2d(1), nn.Hardsigmoid()),
    "pool to 1 by function": Squeeze(lambda x: F.adaptive_avg_pool2d(x, (1, 1)), torch.sigmoid),
    "mean": Squeeze(lambda x: x.mean([2, 3], keepdim=True), F.hardsigmoid),
    "pool to a half": lambda x: F.adaptive_avg_pool2d(x, 3).repeat(1, 1, 2, 2),
    "pool to more": lambda x: F.interpolate(F.adaptive_avg_pool2d(x, (4, 7)), size=(SIDE, SIDE), mode="bilinear"),
    "max pool to a part": lambda x: F.interpolate(F.adaptive_max_pool2d(x, (3, 2)), size=x.shape[-2:]),
    "hardswish": nn.Hardswish(),
    "hardswish by function": F.hardswish,
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu with tanh": lambda x: F.gelu(x, approximate="tanh"),
    "mish": nn.Mish(),
    "elu": lambda x: F.elu(x, 0.5),
    "softplus": nn.Softplus(2.0),
    "powers": lambda x: (x.square() + x**2 + 1).sqrt() - torch.exp(-torch.abs(x)),
    "norm of layers": norm_of_layers,
    "norm of groups": nn.GroupNorm(2, C),
    "norm of groups by function": lambda x: F.group_norm(x, 4),
    "norm of instances": nn.InstanceNorm2d(C, affine=True),
    "channels last": ChannelsLast(nn.LayerNorm(C)),
    "channels last, root": ChannelsLast(nn.RMSNorm(C)),
    "shuffle": shuffled,
    "chunks": gated_by_a_half,
    "splits": lambda x: torch.cat([torch.split(x, [1, 3], dim=1)[k] for k in (1, 0)], 1),
    "stack": lambda x: torch.stack([x, x.relu()], dim=2).flatten(1, 2)[:, ::2],
    "maximum": lambda x: torch.maximum(x, x.amax((2, 3), keepdim=True) / 2),
    "transpose": lambda x: x.transpose(-1, -2) + x.mT,
    "squeeze": lambda x: x.unsqueeze(1).squeeze(1)[..., None][..., 0],
    "gathered": Gathered(),
    "roll": lambda x: torch.roll(x, shifts=(2, -1), dims=(2, 3)),
    "einsum": lambda x: torch.einsum("nchw, ndhw -> ncd", x, x).softmax(-1)[:, :, :, None].mean(2, True) * x,
    "bmm": lambda x: torch.bmm(x.flatten(2), x.flatten(2).transpose(1, 2)).mean(-1)[:, :, None, None] + x,
    "transposed convolution": nn.ConvTranspose2d(C, C, 3, padding=1),
    "padded": lambda x: nn.functional.pad(x, (1, 0, 1, 0), value=0.5)[:, :, 1:, 1:],
    "padded by sizes": lambda x: F.pad(x, (0, -x.shape[-1] % 4, 0, (4 - x.size(2) % 4) % 4))[:, :, :SIDE, :SIDE] * 2,
    "pool by sizes": lambda x: x * F.avg_pool2d(x, x.size()[2:]) + F.max_pool2d(x, x.shape[-1]),
    "pool to sizes": lambda x: F.adaptive_avg_pool2d(x, (x.shape[2] // 2, x.shape[3])).repeat(1, 1, 2, 1),
    "mask of sizes": lambda x: x.masked_fill(torch.arange(x.shape[-1]) % 2 == x.shape[2] - SIDE, -1.0),
    "windows of sizes": lambda x: x + windows(x.shape[2], x.shape[3]),
    "attention": Attention("module"),
    "attention, batch second": Attention("module", False),
    "attention by function": Attention("function"),
    "attention, causal": Attention("causal"),
    "attention, written out": Attention("written"),
    "token": Classed(),
}


class Net(nn.Module):
    """Steps between two convolutions."""

    def __init__(self, names) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, 3, 1)
        self.steps = [STEPS[name] for name in names]
        self.held = nn.ModuleList(step for step in self.steps if isinstance(step, nn.Module))

    def forward(self, x):
        x = self.first(x)
        for step in self.steps:
            x = step(x)
        return self.last(x)


def net(*names: str) -> nn.Module:
    torch.manual_seed(0)
    return Net(names).eval()


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_alone(name, opset):
    model = net(name)
    run = Deployed(loadable(qdq.to_model(fold_batch_norms(model, X), opset).SerializeToString()))
    for x in (X, torch.randn(5, C, SIDE, SIDE), X[:1]):
        with torch.no_grad():
            torch.testing.assert_close(run(x), model(x), atol=2e-5, rtol=1e-4)


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=3), st.sampled_from(KINDS))
@example(["attention", "pool by sizes"], "uint8")  # a window as large as a size, which is no tensor
def test_integers_are_within_a_step_of_torch(names, activation_type):
    graph = quantised(net(*names), X)
    assert ort_report.worst(ort_report.parity(graph, X, activation_type)).steps <= 1


def test_the_axes_stay_free_where_no_operator_needs_their_lengths():
    model = net("gelu", "norm of groups", "chunks", "pool to 1", "roll")
    run = Deployed(qdq.to_model(fold_batch_norms(model, X)).SerializeToString())
    x = torch.randn(1, C, 9, 11)
    with torch.no_grad():
        torch.testing.assert_close(run(x), model(x), atol=1e-5, rtol=1e-4)
    (entry,) = qdq.to_model(fold_batch_norms(net("shuffle"), X)).graph.input
    assert [axis.dim_param or axis.dim_value for axis in entry.type.tensor_type.shape.dim] == ["N", C, SIDE, SIDE]


class Two(nn.Module):
    """Reads a picture and numbers of classes, gives several tensors."""

    def __init__(self, form) -> None:
        super().__init__()
        self.form, self.conv, self.classes = form, nn.Conv2d(C, C, 1), nn.Embedding(5, C)

    def forward(self, x, label):
        y = self.conv(x) + self.classes(label)[:, :, None, None]
        return self.form(y)


@pytest.mark.parametrize(
    ("form", "names"),
    [
        (lambda y: y, ["output"]),
        (lambda y: (y, [y.mean((2, 3)), None]), ["output0", "output10"]),
        (lambda y: {"out": y, "sides": {"low": y.relu()}, "none": None}, ["out", "sides.low"]),
    ],
)
def test_several_inputs_and_outputs_have_their_names(form, names):
    torch.manual_seed(0)
    model, label = Two(form).eval(), torch.tensor([3, 1])
    graph = fx.symbolic_trace(model)
    ShapeProp(graph).propagate(X, label)
    written = qdq.to_model(graph)
    assert [end.name for end in written.graph.input] == ["x", "label"]
    assert [end.name for end in written.graph.output] == names
    run = Deployed(loadable(written.SerializeToString()))
    given = run(X, label)
    given = given if isinstance(given, dict) else {"output": given}
    for mine, torchs in zip(given.values(), [t for t in tree_leaves(model(X, label)) if t is not None], strict=True):
        torch.testing.assert_close(mine, torchs.detach(), atol=1e-6, rtol=1e-5)
    assert run(X[:1], label[:1]) is not None
    with pytest.raises(ValueError, match="the file reads 2: give x, label"):
        run(X)
    with pytest.raises(ValueError, match=r"reads tensor\(int64\)"):
        run(X, label.float())


@dataclass
class Record(ModelOutput):
    logits: Tensor | None = None
    states: tuple | None = None


def test_a_record_of_outputs_has_the_names_of_its_fields():
    torch.manual_seed(0)
    conv = nn.Conv2d(C, 3, 1)

    class Recording(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x):
            y = self.conv(x) if len(x) else x
            return Record(logits=y.mean((2, 3)), states=(y, y.relu()))

    written = qdq.to_model(fold_batch_norms(Recording(), X))
    assert [end.name for end in written.graph.output] == ["logits", "states0", "states1"]
    given = Deployed(loadable(written.SerializeToString()))(X)
    with torch.no_grad():
        torch.testing.assert_close(given["logits"], conv(X).mean((2, 3)))
        torch.testing.assert_close(given["states1"], conv(X).relu())


# -- what a runtime asks for -------------------------------------------------------------------------------------------


def constants(model):
    return {constant.name: onnx.numpy_helper.to_array(constant) for constant in model.graph.initializer}


@pytest.mark.parametrize("per_channel", [False, True])
def test_int8_is_what_tensorrt_takes(per_channel):
    """Every zero point is 0, of int8; biases are float; scales are one a tensor, or for weights one a channel."""
    model = qdq.to_model(quantised(net("channels last"), X, per_channel), activation_type="int8")
    held, pairs = constants(model), 0
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero = (held[name] for name in node.input[1:3])
            assert zero.dtype == "int8" and not zero.any() and (scale > 0).all() and scale.shape == zero.shape
            assert scale.ndim == (per_channel and node.input[0] in held)
            pairs += 1
        if node.op_type == "Conv":
            assert held[node.input[2]].dtype == "float32"
    assert pairs >= 2 * 6


def test_an_unsigned_grid_of_8_bits_is_written_with_7():
    points = quantised(net("softplus"), X).quantisers.children()
    grids = [[qdq.written(point.qparams(), kind) for kind in ("uint8", "int8")] for point in points]
    ends = {(before.qmin, before.qmax, after.qmin, after.qmax, after.zero_point) for before, after in grids}
    assert ends == {(0, 255, 0, 127, 0), (-127, 127, -127, 127, 0)}
    assert all(after.range == pytest.approx(before.range) for before, after in grids)


def test_opset_21_holds_weights_of_4_bits():
    graph = quantised(net("channels last"), X, bits=4)
    answers = {}
    for opset in (17, 21):
        model = qdq.to_model(graph, opset)
        kinds = {constant.name: constant.data_type for constant in model.graph.initializer}
        int4 = [name for name, kind in kinds.items() if kind == onnx.TensorProto.INT4 and name.endswith(".w")]
        assert len(int4) == (4 if opset == 21 else 0) and model.opset_import[0].version == opset
        answers[opset] = Deployed(loadable(model.SerializeToString()))(X)
    step = float(graph.get_submodule("quantisers.last").qparams().scale)
    torch.testing.assert_close(answers[17], answers[21], atol=1.01 * step, rtol=0)
    reasons = {row.reason for row in ort_report.fusion(qdq.to_model(graph, 21).SerializeToString()).rows}
    assert reasons == {"onnxruntime has no integer layer for weights of 4 bits"}


def test_linear_layers_on_tokens_run_on_integers():
    report = ort_report.fusion(quantised(net("channels last"), X))
    rows = {row.layer: row for row in report.rows}
    assert {"held.0.first", "held.0.last"} <= rows.keys() and rows["held.0.first"].integer, report


@pytest.mark.parametrize(("opset", "kind"), [(16, "uint8"), (22, "uint8"), (True, "uint8"), (17, "int4")])
def test_options_that_are_none_are_one_line(opset, kind):
    with pytest.raises(ValueError, match=r"are written here|choose uint8 or int8") as caught:
        qdq.to_model(fold_batch_norms(net("gelu"), X), opset, kind)
    assert "\n" not in str(caught.value)
