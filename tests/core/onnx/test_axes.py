"""Convolutions and pools of one axis and of three answer in onnxruntime as in torch, float and on integers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lab.core.onnx import ort_report, qdq
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.core.training import seeded
from tests.core.onnx.networks import quantised

pytest.importorskip("onnxruntime", reason="needs the extra `export`")
from lab.core.onnx.runtime import Deployed

SIDE = 7
KINDS = {
    (1, False): nn.Conv1d, (2, False): nn.Conv2d, (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d, (2, True): nn.ConvTranspose2d, (3, True): nn.ConvTranspose3d,
}  # fmt: skip
axes = st.sampled_from([1, 2, 3])


def picture(count: int, channels: int = 4, samples: int = 2) -> torch.Tensor:
    with seeded(0):
        return torch.randn(samples, channels, *[SIDE] * count)


def deployed(graph: torch.fx.GraphModule, x: torch.Tensor, **options) -> torch.Tensor:
    return Deployed(qdq.to_model(graph, **options).SerializeToString())(x)


@st.composite
def layers(draw):
    """A convolution of one to three axes that takes pictures of 7 pixels a side, with settings of each axis."""
    count, is_transposed = draw(axes), draw(st.booleans())

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(count))

    kernel, stride, dilation = each(1, 3), each(1, 2), each(1, 2)
    options = {"groups": draw(st.sampled_from([1, 2])), "bias": draw(st.booleans()), "stride": stride}
    options |= {"dilation": dilation, "padding": each(0, 1)}
    if is_transposed:
        options["output_padding"] = tuple(min(draw(st.integers(0, 1)), s - 1) for s in stride)
    elif draw(st.booleans()):
        options["padding_mode"] = draw(st.sampled_from(["reflect", "replicate"]))
    elif set(stride) == {1} and draw(st.booleans()):
        options["padding"] = draw(st.sampled_from(["same", "valid"]))
    with seeded(draw(st.integers(0, 99))):
        return count, KINDS[count, is_transposed](4, 6, kernel, **options)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(layers())
def test_a_convolution_of_any_axes(drawn):
    count, layer = drawn
    x, model = picture(count), nn.Sequential(layer, nn.ReLU()).eval()
    with torch.no_grad():
        torch.testing.assert_close(deployed(fold_batch_norms(model, x), x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(layers(), st.booleans(), st.sampled_from([4, 8]), st.sampled_from(["uint8", "int8"]))
def test_a_quantised_convolution_of_any_axes(drawn, per_channel, bits, activation_type):
    count, layer = drawn
    x = picture(count)
    with seeded(1):
        model = nn.Sequential(layer, nn.ReLU(), KINDS[count, False](6, 3, 1)).eval()
    graph = quantised(model, x, per_channel, bits)
    rows = ort_report.parity(graph, x, activation_type)
    assert len(rows) >= 3 and ort_report.worst(rows).steps <= 1


def pools(count: int) -> dict[str, nn.Module]:
    """Pools of so many axes, as modules; 7 pixels a side are no multiple of 3."""
    kinds = {name: getattr(nn, f"{name}{count}d") for name in ("MaxPool", "AvgPool")}
    adaptive = {name: getattr(nn, f"Adaptive{name}{count}d") for name in ("AvgPool", "MaxPool")}
    made = {
        "max": kinds["MaxPool"](3, stride=2, padding=1),
        "dilated": kinds["MaxPool"](2, dilation=2, ceil_mode=True),
        "mean": kinds["AvgPool"](3, stride=2, padding=1),
        "inner mean": kinds["AvgPool"](2, padding=1, count_include_pad=False),
        "global mean": adaptive["AvgPool"](1),
        "global max": adaptive["MaxPool"](1),
        "all": adaptive["MaxPool"](SIDE),
    }
    return made | ({"uneven": adaptive["AvgPool"](3)} if count < 3 else {})


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_pools_pads_and_norms_of_any_axes(count):
    x = picture(count)
    made = pools(count) | {
        "constant": getattr(nn, f"ConstantPad{count}d")(1, 0.5),
        "reflect": getattr(nn, f"ReflectionPad{count}d")(2),
        "replicate": getattr(nn, f"ReplicationPad{count}d")(1),
        "norm": getattr(nn, f"BatchNorm{count}d")(4),
        "instance norm": getattr(nn, f"InstanceNorm{count}d")(4, affine=True),
        "dropout": getattr(nn, f"Dropout{count}d")(),
    }
    for name, module in made.items():
        module = nn.Sequential(module).eval()
        with torch.no_grad():
            torch.testing.assert_close(
                deployed(fold_batch_norms(module, x), x), module(x), rtol=1e-4, atol=1e-5, msg=lambda m, n=name: n + m
            )


class Functions(nn.Module):
    """The same pools as functions."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x):
        if self.count == 1:
            return F.adaptive_avg_pool1d(F.avg_pool1d(F.max_pool1d(x, 2, stride=1), 2, stride=1), 1)
        if self.count == 2:
            return F.adaptive_avg_pool2d(F.avg_pool2d(F.max_pool2d(x, 2, stride=1), 2, stride=1), 1)
        return F.adaptive_max_pool3d(F.avg_pool3d(F.max_pool3d(x, 2, stride=1), 2, stride=1), 1)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_pools_as_functions(count):
    x, model = picture(count), Functions(count)
    torch.testing.assert_close(deployed(fold_batch_norms(model, x), x), model(x), rtol=1e-4, atol=1e-5)


def test_what_has_no_form_is_told_in_one_line():
    x = picture(3)
    with pytest.raises(ValueError, match=r"adaptive mean pooling of \(7, 7, 7\) to \(3, 3, 3\)") as caught:
        deployed(fold_batch_norms(nn.Sequential(nn.AdaptiveAvgPool3d(3)), x), x)
    assert "\n" not in str(caught.value)
