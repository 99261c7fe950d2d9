"""A network read from an ONNX file answers as the file does in onnxruntime, at other batches too."""

import io
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import nn

from lab.core.batch import tensors

onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
pytest.importorskip("onnxruntime", reason="needs the extra `export`")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from lab.core.onnx import export, reading  # noqa: E402
from lab.core.onnx.runtime import Deployed  # noqa: E402
from lab.sparsebytenn import compiler, packed  # noqa: E402
from lab.sparsebytenn.engine import Engine  # noqa: E402
from tests.sparsebytenn import graphs, layer_steps, move_steps, tensor_steps, zoo  # noqa: E402

GENERATOR = np.random.default_rng(0)
X4 = (2, 6, 7, 9)
FREE = ("N", 6, 7, 9)


def numbers(*shape: int, low: float = -1.0) -> np.ndarray:
    return (GENERATOR.random(shape) * (1 - low) + low).astype(np.float32)


def file_of(path, nodes, opset: int, axes=FREE, held=None, outputs=("y",), shape=None):
    """A file of nodes that read x and give y, with constants by name."""
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in (held or {}).items()]
    reads = [helper.make_tensor_value_info("x", TensorProto.FLOAT, axes)]
    shape = axes if nodes[0].op_type == "GroupNormalization" else shape  # onnx does not infer it
    gives = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs]
    graph = helper.make_graph(nodes, "made", reads, gives, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10)
    path.write_bytes(onnx.shape_inference.infer_shapes(made).SerializeToString())
    return path


def apart(ours, theirs) -> float:
    pairs = list(zip(tensors(ours), tensors(theirs), strict=True))
    assert [a.shape for a, _ in pairs] == [b.shape for _, b in pairs]
    return max(float((a - b).abs().max()) / (float(b.abs().max()) or 1.0) for a, b in pairs)


def beside(path, *inputs: torch.Tensor) -> float:
    """How far the network that is read is from onnxruntime."""
    with torch.no_grad():
        return apart(reading.module(path)(*inputs), Deployed(path)(*inputs))


def exported(net: nn.Module, path, *inputs: torch.Tensor, opset: int = 17):
    """A file as torch's own exporter writes it, its batch free."""
    names = [f"x{k}" for k in range(len(inputs))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = io.BytesIO()
        torch.onnx.export(
            net.eval(), inputs, content, dynamo=False, input_names=names, opset_version=opset,
            dynamic_axes={name: {0: "batch"} for name in names},
        )  # fmt: skip
    path.write_bytes(content.getvalue())
    return path


# -- one operator ------------------------------------------------------------------------------------------------------


def node(kind: str, reads="x", gives="y", **attributes):
    return helper.make_node(kind, reads.split(), gives.split(), **attributes)


W = {"w": numbers(4, 6, 3, 3), "b": numbers(4)}
UP = {"w": numbers(6, 4, 3, 3), "b": numbers(4)}
INTEGERS = {"pads": np.array([1, 2, 3, 1]), "axes": np.array([2, 3]), "fill": np.float32(0.5)}
REDUCED = ("Mean", "Sum", "Max")
NODES = {
    "conv": (13, node("Conv", "x w b"), W),
    "conv, strides, dilations, uneven pads": (
        13, node("Conv", "x w b", strides=[2, 1], dilations=[1, 2], pads=[0, 2, 1, 0]), W
    ),
    "conv, same upper": (13, node("Conv", "x w", auto_pad="SAME_UPPER", strides=[2, 2]), W),
    "conv, same lower": (13, node("Conv", "x w", auto_pad="SAME_LOWER", strides=[2, 2]), W),
    "conv, valid": (13, node("Conv", "x w", auto_pad="VALID"), W),
    "conv, grouped": (13, node("Conv", "x w", group=3), {"w": numbers(3, 2, 2, 3)}),
    "transposed": (13, node("ConvTranspose", "x w b", strides=[2, 3], pads=[1, 0, 1, 0], output_padding=[1, 2]), UP),
    "transposed, uneven pads": (13, node("ConvTranspose", "x w b", strides=[2, 2], pads=[1, 0, 0, 2]), UP),
    "transposed, a size": (13, node("ConvTranspose", "x w b", strides=[2, 2], output_shape=[14, 18]), UP),
    "transposed, same upper": (13, node("ConvTranspose", "x w b", strides=[2, 2], auto_pad="SAME_UPPER"), UP),
    "transposed, same lower": (13, node("ConvTranspose", "x w b", strides=[2, 2], auto_pad="SAME_LOWER"), UP),
    "product": (13, node("MatMul", "x w"), {"w": numbers(9, 5)}),
    "batch norm": (
        13, node("BatchNormalization", "x a b c d", epsilon=1e-3),
        {"a": numbers(6), "b": numbers(6), "c": numbers(6), "d": numbers(6, low=0.2)},
    ),
    "layer norm": (17, node("LayerNormalization", "x a b", axis=-2), {"a": numbers(7, 9), "b": numbers(7, 9)}),
    "layer norm without bias": (17, node("LayerNormalization", "x a"), {"a": numbers(9)}),
    "group norm": (21, node("GroupNormalization", "x a b", num_groups=3), {"a": numbers(6), "b": numbers(6)}),
    "instance norm": (13, node("InstanceNormalization", "x a b"), {"a": numbers(6), "b": numbers(6)}),
    "prelu, channels": (13, node("PRelu", "x a"), {"a": numbers(6, 1, 1)}),
    "prelu, one": (13, node("PRelu", "x a"), {"a": numbers(1)}),
    "prelu, columns": (13, node("PRelu", "x a"), {"a": numbers(9)}),
    **{
        f"max pool {about}": (13, node("MaxPool", kernel_shape=[3, 2], **about), {})
        for about in (
            {"strides": [2, 2]}, {"strides": [2, 2], "ceil_mode": 1}, {"strides": [3, 2], "pads": [1, 0, 1, 1]},
            {"strides": [3, 2], "pads": [1, 0, 0, 1], "ceil_mode": 1},
            {"strides": [4, 2], "pads": [0, 0, 1, 0], "ceil_mode": 1}, {"dilations": [2, 3]},
            {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, {"auto_pad": "SAME_LOWER"},
        )
    },
    **{
        f"average pool {about}": (19, node("AveragePool", kernel_shape=[3, 2], **about), {})
        for about in (
            {"strides": [2, 2]}, {"strides": [2, 2], "ceil_mode": 1}, {"pads": [1, 1, 1, 1]},
            {"pads": [1, 1, 1, 1], "count_include_pad": 1}, {"strides": [3, 2], "pads": [1, 0, 2, 1]},
            {"pads": [1, 0, 2, 1], "count_include_pad": 1}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
            {"auto_pad": "SAME_LOWER", "count_include_pad": 1}, {"dilations": [2, 2]},
            {"dilations": [2, 1], "pads": [1, 0, 1, 0]}, {"strides": [2, 2], "pads": [1, 0, 0, 0], "ceil_mode": 1},
        )
    },
    "global mean": (13, node("GlobalAveragePool"), {}),
    "global max": (13, node("GlobalMaxPool"), {}),
    **{f"reduce {kind} 11": (11, node(f"Reduce{kind}", axes=[-1, 1], keepdims=0), {}) for kind in REDUCED},
    **{
        f"reduce {kind} 18": (18, node(f"Reduce{kind}", "x axes"), {"axes": np.array([2, 3])})
        for kind in ("Mean", "Sum", "Max", "Min", "L2", "L1", "SumSquare", "LogSumExp")
    },
    "reduce nothing": (18, node("ReduceSum", noop_with_empty_axes=1), {}),
    **{
        kind: (20, node(kind), {})
        for kind in (
            "Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Gelu", "Mish", "Softplus",
            "Exp", "Erf", "Softmax", "LogSoftmax", "Neg", "Reciprocal", "Abs", "Selu", "Celu", "Softsign", "Identity",
            "Dropout", "Floor", "Ceil", "Round", "Sign", "Sin", "Cos", "ThresholdedRelu",
        )
    },
    "hard sigmoid of torch": (13, node("HardSigmoid", alpha=1 / 6), {}),
    "gelu tanh": (20, node("Gelu", approximate="tanh"), {}),
    "clip 6": (9, node("Clip", min=-0.2, max=0.3), {}),
    "clip 11": (11, node("Clip", "x low high"), {"low": np.float32(-0.1), "high": np.float32(0.4)}),
    **{f"softmax {n}, {axis}": (n, node("Softmax", axis=axis), {}) for n in (11, 13) for axis in (1, 2, -1)},
    "softmax of all": (11, node("Softmax"), {}),
    "transpose": (13, node("Transpose", perm=[0, 2, 3, 1]), {}),
    "turned about": (13, node("Transpose"), {}),
    "flatten": (13, node("Flatten", axis=2), {}),
    "flatten all": (13, node("Flatten", axis=0), {}),
    "reshape": (13, node("Reshape", "x s"), {"s": np.array([0, -1, 3, 9])}),
    "unsqueeze 11": (11, node("Unsqueeze", axes=[0, 5]), {}),
    "unsqueeze 13": (13, node("Unsqueeze", "x s"), {"s": np.array([-1, 1])}),
    "expand": (13, node("Expand", "x s"), {"s": np.array([3, 1, 1, 1, 9])}),
    "tile": (13, node("Tile", "x s"), {"s": np.array([1, 2, 1, 3])}),
    "slice 9": (9, node("Slice", starts=[1, -5], ends=[5, 2**40], axes=[1, 3]), {}),
    "slice 11": (
        11, node("Slice", "x s e a t"),
        {"s": np.array([-1, 1]), "e": np.array([-(2**40), 8]), "a": np.array([1, 3]), "t": np.array([-2, 3])},
    ),
    "gather one": (13, node("Gather", "x s", axis=1), {"s": np.array(-2)}),
    "gather a slice": (13, node("Gather", "x s", axis=3), {"s": np.array([1, 3, 5])}),
    "gather any": (13, node("Gather", "x s", axis=2), {"s": np.array([[3, -1], [0, 0]])}),
    "pad 9": (9, node("Pad", pads=[0, 1, 0, 2, 0, 0, 3, 1], value=0.25), {}),
    "pad, cutting": (13, node("Pad", "x s"), {"s": np.array([0, 0, -1, 2, 0, 0, 1, -2])}),
    **{
        f"pad {mode}": (19, node("Pad", "x pads fill axes", mode=mode), INTEGERS)
        for mode in ("constant", "reflect", "edge", "wrap")
    },
    "pad channels, reflect": (13, node("Pad", "x s", mode="reflect"), {"s": np.array([0, 2, 0, 1, 0, 1, 0, 0])}),
    "depth to space": (13, node("DepthToSpace", blocksize=2), {}),
    "depth to space, columns first": (13, node("DepthToSpace", blocksize=2, mode="CRD"), {}),
    "einsum": (13, node("Einsum", "x w", equation="nchw, wd -> nhcd"), {"w": numbers(9, 4)}),
    **{
        f"{kind} of {'a number' if shape == () else shape}, {order}": (
            13, node(kind, order), {"w": numbers(*shape, low=0.3)}
        )
        for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min")
        for shape in ((), (1, 6, 1, 1), (9,), (1, 1, 1, 1, 1))
        for order in ("x w", "w x")
    },
    "power": (13, node("Pow", "x w"), {"w": np.float32(2)}),
}  # fmt: skip


@pytest.mark.parametrize("name", NODES)
def test_one_operator(name, tmp_path):
    opset, made, held = NODES[name]
    x = torch.from_numpy(numbers(*((2, 8, 6, 4) if "depth" in name else X4)))
    path = file_of(tmp_path / "net.onnx", [made], opset, ("N", *x.shape[1:]), held)
    assert beside(path, x) < 2e-6
    if name not in ("expand",):
        assert beside(path, torch.cat([x, x[:1]])) < 2e-6


MODES = [
    {"mode": mode, "coordinate_transformation_mode": coordinates, **nearest}
    for mode in ("nearest", "linear", "cubic")
    for coordinates in ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners", "half_pixel_symmetric")
    for nearest in (
        [{"nearest_mode": kind} for kind in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")]
        if mode == "nearest"
        else [{}]
    )
    if mode != "cubic" or coordinates in ("half_pixel", "align_corners")
]


@pytest.mark.parametrize("about", MODES, ids=lambda about: " ".join(about.values()))
@pytest.mark.parametrize("wanted", [(2.0, 2.0), (1.5, 0.7), (12, 4), (7, 18)], ids=str)
def test_resizing(about, wanted, tmp_path):
    whole = (2, 6, *wanted) if isinstance(wanted[0], int) else (1.0, 1.0, *wanted)
    held = {"s": np.array(whole, np.int64 if isinstance(wanted[0], int) else np.float32), "none": numbers(0)}
    reads = ["x", "", "", "s"] if isinstance(wanted[0], int) else ["x", "", "s"]
    made = helper.make_node("Resize", reads, ["y"], **about)
    path = file_of(tmp_path / "net.onnx", [made], 19, X4, held)
    assert beside(path, torch.from_numpy(numbers(*X4))) < 3e-6


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("kind", "opset"), [("Upsample", 9), ("Resize", 10)])
def test_older_resizing(kind, opset, mode, tmp_path):
    held = {"s": np.array([1, 1, 2, 3], np.float32)}
    path = file_of(tmp_path / "net.onnx", [node(kind, "x s", mode=mode)], opset, FREE, held)
    assert beside(path, torch.from_numpy(numbers(*X4))) < 2e-6


GEMMS = {
    "plain": (node("Gemm", "x w b"), {"w": numbers(5, 3), "b": numbers(3)}),
    "turned": (node("Gemm", "x w b", transB=1, alpha=0.5, beta=2.0), {"w": numbers(3, 5), "b": numbers(1, 3)}),
    "one number": (node("Gemm", "x w b"), {"w": numbers(5, 3), "b": np.float32(0.5)}),
    "no vector": (node("Gemm", "x w"), {"w": numbers(5, 3)}),
    "a vector of rows": (node("Gemm", "x w b"), {"w": numbers(5, 3), "b": numbers(4, 1)}),
    "x second": (node("Gemm", "w x", transA=1, transB=1), {"w": numbers(5, 3)}),
    "a batch norm": (
        node("BatchNormalization", "x a b c d"),
        {"a": numbers(5), "b": numbers(5), "c": numbers(5), "d": numbers(5, low=0.1)},
    ),
    "a slope a channel": (node("PRelu", "x a"), {"a": numbers(5)}),
}


@pytest.mark.parametrize("name", GEMMS)
def test_vectors(name, tmp_path):
    made, held = GEMMS[name]
    path = file_of(tmp_path / "net.onnx", [made], 13, (4, 5), held)
    assert beside(path, torch.from_numpy(numbers(4, 5))) < 2e-6


# -- networks ----------------------------------------------------------------------------------------------------------


class Everything(nn.Module):
    """Layers by every way of calling them, one of them twice, with shapes that the batch decides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.PReLU(8))
        self.token, self.norm = nn.Parameter(torch.randn(1, 1, 8)), nn.LayerNorm(8)
        self.project, self.shared = nn.Linear(8, 8), nn.Linear(8, 8)
        self.gelu, self.hard, self.mish = nn.GELU(), nn.Hardswish(), nn.Mish()

    def forward(self, x):
        n = x.shape[0]
        y = self.mish(self.body(self.stem(x))).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(n, -1, -1), y], 1)
        y = self.gelu(self.project(self.norm(y)))
        y = self.hard(self.shared(self.shared(y)))
        parts = y.reshape(n, -1, 2, 4).permute(2, 0, 1, 3)
        return (parts[0] @ parts[1].transpose(1, 2)).softmax(-1).mean((1, 2)) + x.new_ones(n), y[:, 0]


@pytest.mark.parametrize("opset", [9, 11, 13, 16, 17, 18])
def test_a_network_of_any_opset_has_its_layers(opset, tmp_path):
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    net = Everything()
    if opset < 17:
        net.hard, net.mish = nn.ReLU6(), nn.Softplus()
    path = exported(net.eval(), tmp_path / "net.onnx", x, opset=opset)
    read = reading.module(path)
    with torch.no_grad():
        assert apart(read(x[:1]), Deployed(path)(x[:1])) < 1e-5
        assert apart(list(read(x).values()), net(x)) < 1e-5
    kinds = [type(m).__name__ for m in read.modules() if not list(m.children())]
    assert sorted(kinds) == ["Conv2d", "Conv2d", "LayerNorm", "Linear", "Linear", "PReLU"]  # a norm is in its layer
    assert {"stem", "project", "shared"} <= {name for name, _ in read.named_modules()}
    calls = [n.target for n in read.graph.nodes if n.op == "call_module"]
    assert calls.count("shared") == 2
    functions = {getattr(n.target, "__name__", n.target) for n in read.graph.nodes if n.op == "call_function"}
    assert {"gelu", "silu"} <= functions and not {"erf", "sqrt"} & functions


def test_what_is_read_can_be_traced_and_cut(tmp_path):
    from lab.core import cost
    from lab.core.graph import surgery
    from lab.core.graph.tracing import trace

    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 2)).eval()
    x = torch.randn(2, 3, 6, 6)
    read = reading.module(exported(net, tmp_path / "net.onnx", x))
    assert {"0", "2", "4"} <= {name for name, _ in read.named_modules()}
    assert cost.layer_macs(read, x) == cost.layer_macs(net, x)
    smaller = surgery.remove(trace(read, x), surgery.Plan(channels={"0": [0, 2, 5]}), x)
    assert smaller.get_submodule("2").in_channels == 3 and smaller(x).shape == (2, 2)


def test_a_layer_named_as_a_part_of_another_has_a_name_beside_it(tmp_path):
    """As attention's projections are, whose weight is called after the module that their second one is a part of."""
    nodes = [node("Gemm", "x attention.weight", "h", transB=1), node("Gemm", "h attention.out.weight", "y", transB=1)]
    held = {"attention.weight": numbers(6, 4), "attention.out.weight": numbers(3, 6)}
    path = file_of(tmp_path / "net.onnx", nodes, 17, axes=["N", 4], held=held)
    read = reading.module(path)
    assert {"attention", "attention_out"} <= {name for name, _ in read.named_modules()}
    assert beside(path, torch.randn(2, 4)) < 1e-5


def test_sizes_that_are_free(tmp_path):
    """Axes beside the first may be free where nothing needs them; an example says them where something does."""
    path = file_of(tmp_path / "free.onnx", [node("Conv", "x w")], 13, ("N", "C", "H", "W"), {"w": W["w"]})
    read = reading.module(path)
    for x in (torch.randn(1, 6, 8, 9), torch.randn(3, 6, 20, 5)):
        with torch.no_grad():
            assert apart(read(x), Deployed(path)(x)) < 2e-6
    needs = [
        node("Shape", "x", "s"), node("Slice", "s a b", "rows"), node("Mul", "rows rows", "all"),
        node("Concat", "c all", "wanted", axis=0), node("Reshape", "x wanted"),
    ]  # fmt: skip
    held = {"a": np.array([2]), "b": np.array([3]), "c": np.array([-1])}
    path = file_of(tmp_path / "needs.onnx", needs, 13, ("N", 1, "H", "H"), held, shape=("N", "M"))
    with pytest.raises(ValueError, match=r"Reshape \(y\).*give an example") as caught:
        reading.module(path)
    assert "\n" not in str(caught.value)
    x = torch.randn(2, 1, 5, 5)
    assert torch.equal(reading.module(path, x)(x), x.reshape(-1, 25))
    with pytest.raises(ValueError, match=r"example has shapes \(2, 2, 5, 5\): the file takes x \(any, 1, any, any\)"):
        reading.module(path, torch.randn(2, 2, 5, 5))


def test_a_batch_that_a_file_takes_for_one(tmp_path):
    """A free first axis with shapes that stand for one batch alone is read for that."""
    made = [node("Reshape", "x s", "t"), node("MatMul", "t t")]
    path = file_of(tmp_path / "net.onnx", made, 13, ("N", 4), {"s": np.array([2, 2])})
    x = torch.randn(1, 4)
    assert torch.allclose(reading.module(path)(x), x.reshape(2, 2) @ x.reshape(2, 2))


def test_zeros_and_codes(tmp_path):
    """Weights in codes are floats on their grid; a pair between layers is torch's own rounding."""
    codes = GENERATOR.integers(-100, 100, (4, 6, 3, 3)).astype(np.int8)
    made = [
        node("QuantizeLinear", "x step zero", "q"), node("DequantizeLinear", "q step zero", "xs"),
        node("DequantizeLinear", "codes steps zeros", "w", axis=0), node("Conv", "xs w"),
    ]  # fmt: skip
    held = {
        "step": np.float32(0.0625), "zero": np.uint8(128), "codes": codes, "steps": numbers(4, low=0.001),
        "zeros": np.zeros(4, np.int8),
    }  # fmt: skip
    path = file_of(tmp_path / "net.onnx", made, 13, FREE, held)
    read, x = reading.module(path), torch.from_numpy(numbers(*X4))
    assert beside(path, x) < 2e-6
    (layer,) = (m for m in read.modules() if isinstance(m, nn.Conv2d))
    assert torch.allclose(layer.weight, torch.from_numpy(codes * held["steps"][:, None, None, None]))
    assert torch.fake_quantize_per_tensor_affine in {n.target for n in read.graph.nodes}


# -- what cannot be read -----------------------------------------------------------------------------------------------


def test_what_is_lacking_is_named_node_by_node(tmp_path):
    made = [
        helper.make_node("NonZero", ["x"], ["a"], name="first"), helper.make_node("Cast", ["a"], ["b"], to=1),
        helper.make_node("LRN", ["x"], ["c"], size=3, name="second"), node("Add", "c w", "d"), node("Relu", "d"),
    ]  # fmt: skip
    path = file_of(tmp_path / "net.onnx", made, 13, held={"w": numbers(1)}, outputs=("y", "b"))
    with pytest.raises(ValueError, match=r"NonZero \(first\) is not an operator.*; LRN \(second\) is not") as caught:
        reading.module(path)
    assert "\n" not in str(caught.value) and "Relu" not in str(caught.value)


def broken(folder):
    """Files that are none, by what is wrong with them."""
    good = file_of(folder / "good.onnx", [node("Conv", "x w")], 13, held=W).read_bytes()
    lost = onnx.load_from_string(good)
    del lost.graph.initializer[:]
    newer, older = onnx.load_from_string(good), onnx.load_from_string(good)
    newer.opset_import[0].version, older.opset_import[0].version = 99, 7
    files = {
        "cut": good[: len(good) // 2],
        "empty": b"",
        "text": b"no network at all",
        "lost": lost.SerializeToString(),
    }
    files |= {"newer": newer.SerializeToString(), "older": older.SerializeToString()}
    apart_from_it = onnx.load_from_string(good)
    onnx.save(apart_from_it, folder / "data.onnx", save_as_external_data=True, location="data.bin", size_threshold=0)
    (folder / "data.bin").unlink()
    for name, content in files.items():
        (folder / f"{name}.onnx").write_bytes(content)
    return [*files, "data"]


def test_a_broken_file_is_one_line(tmp_path):
    for name in broken(tmp_path):
        with pytest.raises(ValueError, match=rf"{name}\.onnx (is no ONNX file|has operators of opset)") as caught:
            reading.module(tmp_path / f"{name}.onnx")
        assert "\n" not in str(caught.value), name
    with pytest.raises(FileNotFoundError, match=r"nowhere\.onnx is not there"):
        reading.module(tmp_path / "nowhere.onnx")
    with pytest.raises(ValueError, match="is a folder"):
        reading.module(tmp_path)


def test_a_constant_of_a_type_that_is_none_is_named(tmp_path):
    net = onnx.load(file_of(tmp_path / "net.onnx", [node("Conv", "x w")], 13, held=W))
    net.graph.initializer[0].data_type = 65
    onnx.save(net, tmp_path / "net.onnx")
    with pytest.raises(ValueError, match=r"net\.onnx: constant 'w' cannot be read \(KeyError: 65\)$"):
        reading.module(tmp_path / "net.onnx")


def test_weights_beside_a_file_are_read(tmp_path):
    path = file_of(tmp_path / "net.onnx", [node("Conv", "x w b")], 13, held=W)
    onnx.save(onnx.load(path), tmp_path / "two.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    x = torch.from_numpy(numbers(*X4))
    with torch.no_grad():
        assert torch.equal(reading.module(tmp_path / "two.onnx")(x), reading.module(path)(x))


def test_what_the_lab_writes_it_reads(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.randn(2, 3, 8, 8)
    path = export.onnx(net.eval(), tmp_path / "net.onnx", x[:1])
    with torch.no_grad():
        assert apart(reading.module(path)(x), net(x)) < 1e-5


# -- the engine's networks ---------------------------------------------------------------------------------------------

FAST = ("lenet", "resnet_cifar", "vit", "EfficientNet-like", "two-headed detector")
NOT_WRITTEN = ("vgg16", "torchvision vgg16_bn")  # torch's exporter has no pools to sizes that divide nothing


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in zoo.NETWORKS])
def test_the_engine_runs_what_is_read(name, tmp_path):
    if name in NOT_WRITTEN:
        pytest.skip("torch.onnx.export cannot write it on small pictures")
    net, x = zoo.made(name)
    path = exported(net, tmp_path / "net.onnx", x)
    read, theirs = reading.module(path), Deployed(path)(x)
    with torch.no_grad():
        assert apart(read(x), theirs) < 1e-5
    assert apart(Engine(packed.write(compiler.compile(read, x)))(x), theirs) < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@settings(
    max_examples=40, phases=[Phase.generate], derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
@given(graphs.network((*layer_steps.KINDS, *tensor_steps.KINDS, *move_steps.KINDS)))
def test_drawn_networks(drawn):
    """Those of the drawn networks that torch's exporter writes and onnxruntime loads, which most are."""
    net, inputs = drawn
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = exported(net, Path(folder) / "net.onnx", *(x.clone() for x in inputs))
            theirs = list(tensors(Deployed(path)(*inputs)))
        except Exception:  # of many kinds, torch's exporter's and onnxruntime's own
            return
        with torch.no_grad():
            ours, single = reading.module(path)(*inputs), net(*(x.clone() for x in inputs))
            exact = net.double()(*(x.double() for x in inputs))
    if apart(single, exact) < 2e-6:  # where roundings are enlarged, nothing is measured
        assert apart(list(tensors(ours)), theirs) < 1e-5
