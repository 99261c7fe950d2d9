"""What an operation does to channels: which kind of layer a node calls, and what becomes of a channel of zeros."""

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from .calls import bounds
from .inplace import operator_name
from .tracing import module_of, shape

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)

# Per-channel operations that turn a channel of zeros into zeros, by what they are in the graph.
_ZERO_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.SiLU, nn.Mish, nn.GELU, nn.Hardswish, nn.Tanh, nn.ELU, nn.CELU,
    nn.SELU, nn.Softsign, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.Upsample, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d,
    nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d,
)  # fmt: skip
# Functions and methods alike; the last two are how torchvision and timm call stochastic depth.
_ZERO_NAMES = set(
    "relu relu_ relu6 leaky_relu prelu silu mish gelu hardswish tanh elu celu selu softsign dropout dropout1d "
    "dropout2d dropout3d alpha_dropout feature_dropout max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d "
    "avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d interpolate upsample contiguous clone float half to type_as detach neg abs sqrt square "
    "stochastic_depth drop_path".split()
)
# Per-channel operations that do not: a channel of zeros comes out as a constant.
_OTHER_MODULES = (
    nn.Sigmoid,
    nn.Hardsigmoid,
    nn.LogSigmoid,
    nn.Softplus,
    nn.Hardtanh,
    nn.ConstantPad1d,
    nn.ConstantPad2d,
    nn.ConstantPad3d,
)
_OTHER_NAMES = set(
    "sigmoid hardsigmoid logsigmoid softplus hardtanh exp log log1p rsqrt reciprocal pow clamp clamp_min clamp_max "
    "clip rsub".split()
)
_PRODUCT_NAMES = {"mul", "multiply"}
# Operations of several tensors, entry by entry.
JOINTS = _PRODUCT_NAMES | set(
    "add sub subtract div divide truediv true_divide maximum minimum where pow lerp addcmul eq ne lt le gt ge "
    "masked_fill".split()
)
# Positively homogeneous: f(m x) = m f(x) for m >= 0, so that a scale may be moved through them exactly.
_HOMOGENEOUS_MODULES = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Dropout, nn.Dropout2d)
_HOMOGENEOUS_NAMES = {"relu", "leaky_relu", "dropout", "dropout2d", "stochastic_depth", "drop_path"}


def is_depthwise(module: nn.Module | None) -> bool:
    """Whether a convolution has one filter for each of its input channels."""
    return isinstance(module, CONVS) and module.groups == module.in_channels == module.out_channels > 1


def in_groups(module: nn.Module | None) -> bool:
    """Whether a convolution, transposed ones included, reads its channels in groups; a depthwise one does."""
    return isinstance(module, (*CONVS, *TRANSPOSED)) and module.groups > 1


def keeps_zero(node: fx.Node) -> bool:
    """Whether a node turns a channel of zeros into zeros, whatever the other channels hold, and keeps its place."""
    module = module_of(node)
    if module is not None:
        plain_dw = is_depthwise(module) and module.bias is None
        return isinstance(module, (*_ZERO_MODULES, nn.Flatten)) or plain_dw or _clamps_zero_to_zero(node)
    if called(node) in _ZERO_NAMES | _PRODUCT_NAMES or is_cat(node):
        return True
    return keeps_channel_axis(node) or _flattens(node) or _clamps_zero_to_zero(node)


def is_per_channel(node: fx.Node) -> bool:
    """Whether a node works on each channel alone, without weights that belong to channels."""
    module = module_of(node)
    if module is not None:
        return isinstance(module, (*_ZERO_MODULES, *_OTHER_MODULES))
    return called(node) in _ZERO_NAMES | _OTHER_NAMES


def is_homogeneous(node: fx.Node) -> bool:
    """Whether f(m x) = m f(x) for every m >= 0."""
    module = module_of(node)
    return isinstance(module, _HOMOGENEOUS_MODULES) if module is not None else called(node) in _HOMOGENEOUS_NAMES


def is_product(node: fx.Node) -> bool:
    """Whether a node multiplies, entry by entry."""
    return called(node) in _PRODUCT_NAMES


def called(node: fx.Node) -> str:
    """The name of the function or method that a node calls, '' for any other node."""
    return operator_name(node.target) if node.op in ("call_function", "call_method") else ""


def _clamps_zero_to_zero(node: fx.Node) -> bool:
    limits = bounds(node)
    return limits is not None and limits[0] <= 0 <= limits[1]


def sees_pixels(node: fx.Node) -> bool:
    """Whether a node takes axis 1 for channels and what follows for pixels: pools, batch norms, a PReLU of channels."""
    kind = type(module_of(node)).__name__ if node.op == "call_module" else called(node)
    return any(word in kind.lower() for word in ("pool", "upsample", "interpolate", "pad", "norm", "prelu"))


def keeps_channel_axis(node: fx.Node) -> bool:
    """Whether a pad, an index or a mean leaves the examples and their channels alone."""
    if node.target is F.pad:  # pads are given from the last axis on, two numbers an axis
        pads = _argument(node, 1, "pad")
        return len(pads) <= 2 * (len(shape(node)) - 2) and len(node.args) < 4 and not node.kwargs.get("value")
    if node.target is operator.getitem and isinstance(node.args[1], tuple):
        return _takes_all_channels(node.args[1], len(shape(node.all_input_nodes[0])))
    if node.target in (torch.mean, torch.amax) or (node.op == "call_method" and node.target in ("mean", "amax")):
        dims = _argument(node, 1, "dim")
        dims = dims if isinstance(dims, (tuple, list)) else (dims,)
        rank = len(shape(node.all_input_nodes[0]))
        return all(isinstance(dim, int) and dim % rank >= 2 for dim in dims)
    return False


def _takes_all_channels(index: tuple, rank: int) -> bool:
    """Whether an index such as [:, :, ::2, ::2] or [..., ::2, ::2] takes every example and every channel."""
    everything = slice(None)
    if index[0] is Ellipsis:
        return len(index) - 1 <= rank - 2
    return len(index) >= 2 and index[0] == everything and index[1] == everything and Ellipsis not in index[2:]


def _flattens(node: fx.Node) -> bool:
    if node.target is torch.flatten or (node.op == "call_method" and node.target == "flatten"):
        return _argument(node, 1, "start_dim", 0) == 1 and len(shape(node)) == 2
    if node.op == "call_method" and node.target in ("view", "reshape"):
        is_flat = len(shape(node)) == 2 and shape(node)[0] == shape(node.all_input_nodes[0])[0]
        return is_flat and node.args[2:] == (-1,)
    return False


def is_cat(node: fx.Node) -> bool:
    """Whether a node concatenates tensors along their channels."""
    if node.target not in (torch.cat, torch.concat):
        return False
    return _argument(node, 1, "dim", 0) in (1, 1 - len(shape(node)))


def operands(cat: fx.Node) -> list[fx.Node]:
    """What a concatenation joins, in order, a tensor that stands twice included."""
    return list(_argument(cat, 0, "tensors"))


def _argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    """What a call gives for a parameter, by position or by name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)
