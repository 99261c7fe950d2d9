"""Sparse layers in a network that stays torch's: modules that torch exports, compiles and saves.

A module calls a custom operator of torch, `lab::sparse_conv2d` or `lab::sparse_linear`, with its dense weights; the
operator packs them for the size of its input, keeps that, and runs the engine. To load an exported program elsewhere,
`import lab.sparsebytenn` there first.
"""

import hashlib
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor, nn

from ..core import kernels
from ..core.batch import Example, call, tensors
from ..core.models import checked
from ..core.task import evaluating
from . import compiler, packed
from .runtime import Engine

REPEATS = 9
GAIN = 0.95  # of torch's time: what takes longer is left to torch
KEPT = 512  # operators that stay packed, the latest used of all networks

_engines: OrderedDict[tuple, Engine] = OrderedDict()
_lock = Lock()


@dataclass(frozen=True)
class Swap:
    """What became of a layer: whether a sparse module took its place, and why; times in ms, None if not measured."""

    taken: bool
    why: str
    zeros: float = 0.0
    ms: float | None = None
    torch_ms: float | None = None


def swap(net: nn.Module, example: Example) -> nn.Module:
    """A copy of the network for inference, with sparse modules in the place of the layers whose zeros pay here.

    Every `nn.Conv2d` and `nn.Linear` with zeros in blocks of 4 rows runs on what it reads for `example`, in the engine
    and in torch, and the faster one stays. The copy's `swaps` tells of each by name: a `Swap`. Batches and pictures
    may have any size; state_dicts fit both networks. Raises ValueError in one line for a network that does not run on
    the example, or is not on the CPU.
    """
    if devices := {p.device.type for p in checked(net).parameters()} - {"cpu"}:
        raise ValueError(f"the network is on {', '.join(devices)}: the engine computes on the CPU, give net.cpu()")
    if next(tensors(example), None) is None:
        raise ValueError(f"the example is a {type(example).__name__}, in which there is no tensor: give an input")
    copy = deepcopy(net).eval()
    inputs = _inputs(copy, example)
    swaps: dict[str, Swap] = {}
    for name, layer in list(copy.named_modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            swaps[name], module = _tried(layer, inputs.get(name))
            if swaps[name].taken:
                copy = _with(copy, name, module)
    copy.swaps = swaps  # type: ignore[assignment]
    return copy


def _with(net: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """The network with a module in the place of that name; '' is the network itself."""
    if not name:
        return module
    net.set_submodule(name, module)
    return net


def _inputs(net: nn.Module, example: Example) -> dict[str, Tensor]:
    """What each layer reads first for the example, by the layer's name."""
    read: dict[str, Tensor] = {}
    hooks = []
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):

            def note(_: nn.Module, given: tuple, name: str = name) -> None:
                if given:
                    read.setdefault(name, given[0].detach().clone())

            hooks.append(layer.register_forward_pre_hook(note))
    try:
        with torch.no_grad(), evaluating(net):
            call(net, example)
    except RuntimeError as error:
        raise ValueError(f"the network does not run on the example ({str(error).splitlines()[0]})") from error
    finally:
        for hook in hooks:
            hook.remove()
    return read


def _tried(layer: nn.Conv2d | nn.Linear, x: Tensor | None) -> tuple[Swap, nn.Module]:
    """A layer's sparse module, measured beside it."""
    zeros = float((layer.weight == 0).float().mean()) if layer.weight.numel() else 0.0
    if x is None:
        return Swap(False, "not called for the example", zeros), layer
    if why := _unfit(layer, x):
        return Swap(False, why, zeros), layer
    try:
        sparse = SparseConv2d(layer) if isinstance(layer, nn.Conv2d) else SparseLinear(layer)
        seconds = _raced(sparse, layer, x)
    except ValueError as error:
        return Swap(False, str(error), zeros), layer
    ms, torch_ms = (1000 * s for s in seconds)
    is_faster = ms < GAIN * torch_ms
    why = f"{ms:.3g} ms, torch {torch_ms:.3g} ms" + ("" if is_faster else ": its zeros do not pay")
    return Swap(is_faster, why, zeros, ms, torch_ms), sparse


def _unfit(layer: nn.Conv2d | nn.Linear, x: Tensor) -> str:
    """Why a layer stays torch's without being measured; '' where it may be sparse."""
    if type(layer) not in (nn.Conv2d, nn.Linear) or layer._forward_pre_hooks or layer._forward_hooks:
        return f"{type(layer).__name__} with a forward or hooks of its own"
    if layer.weight.dtype is not torch.float32 or x.dtype is not torch.float32:
        return f"{layer.weight.dtype} weights on {x.dtype}: the engine computes in float32"
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or _padding(layer) is None):
        return f"padding {layer.padding!r}, {layer.padding_mode}: sparse modules pad with zeros, both sides alike"
    if kernels.backend() != "c":
        return "the C kernels are not built"
    rows = layer.weight.detach().flatten(1)
    if layer.groups == 1 if isinstance(layer, nn.Conv2d) else True:
        weight = rows.numpy()
        if weight.size and compiler.mostly_single(weight):
            return ""
        kept = kernels.pack(weight, k_tile=compiler.K_TILE)
        gone = 1 - len(kept.blocks) / max(kept.groups * kept.columns, 1)
        return "" if gone > 0.03 else f"zeros in {gone:.0%} of its blocks of {kernels.BLOCK} rows"
    return f"{layer.groups} groups"


def _padding(layer: nn.Conv2d) -> list[int] | None:
    """Rows above and below, columns left and right; None where the sides differ."""
    if not isinstance(layer.padding, str):
        return list(layer.padding)
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    return [top, left] if (top, left) == (bottom, right) else None


@torch.no_grad()
def _raced(sparse: nn.Module, layer: nn.Module, x: Tensor) -> list[float]:
    """Seconds of each module on x, the medians of runs in turn; ValueError where their answers differ."""
    ours, theirs = sparse(x), layer(x)
    size = float(theirs.abs().max()) if theirs.numel() else 0.0
    if not torch.allclose(ours, theirs, rtol=0, atol=1e-4 * size):
        raise ValueError(
            f"its answer differs from torch's by {float((ours - theirs).abs().max()) / size:.1g} of the largest"
        )
    rounds = [[_clocked(module, x) for module in (sparse, layer)] for _ in range(REPEATS)]
    return [statistics.median(seconds) for seconds in zip(*rounds, strict=True)]


def _clocked(module: Callable[[Tensor], Any], x: Tensor) -> float:
    start = time.perf_counter()
    module(x)
    return time.perf_counter() - start


# -- modules -----------------------------------------------------------------------------------------------------------


class SparseConv2d(nn.Module):
    """A convolution without its zero blocks, for inference: (N, C, H, W) float32; its state_dict is `nn.Conv2d`'s."""

    weight: Tensor
    bias: Tensor | None
    key: str

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        _take_weights(self, layer)
        self.stride, self.dilation, self.groups = list(layer.stride), list(layer.dilation), layer.groups
        self.padding = _padding(layer) or [0, 0]

    def forward(self, x: Tensor) -> Tensor:
        return sparse_conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups, self.key)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, {float((self.weight == 0).float().mean()):.0%} zeros, stride={self.stride}"


class SparseLinear(nn.Module):
    """A linear layer without its zero blocks, for inference: (..., K) float32; its state_dict is `nn.Linear`'s."""

    weight: Tensor
    bias: Tensor | None
    key: str

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        _take_weights(self, layer)

    def forward(self, x: Tensor) -> Tensor:
        return sparse_linear(x, self.weight, self.bias, self.key)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, {float((self.weight == 0).float().mean()):.0%} zeros"


def _take_weights(module: Any, layer: nn.Conv2d | nn.Linear) -> None:
    """Copies of a layer's weights as buffers of a sparse module, and its `key`, which tells them from others."""
    module.register_buffer("weight", layer.weight.detach().clone())
    module.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
    module.key = _digest(module.weight, module.bias)


def _digest(weight: Tensor, bias: Tensor | None) -> str:
    """What tells these weights from others, in exported programs too, where tensors come and go."""
    parts = [t.contiguous().numpy().tobytes() for t in (weight, bias) if t is not None]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


# -- operators ---------------------------------------------------------------------------------------------------------


@torch.library.custom_op("lab::sparse_conv2d", mutates_args=(), device_types="cpu")
def sparse_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],  # noqa: UP045 torch reads no other spelling
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    key: str,
) -> Tensor:
    """torch.conv2d by the engine: x (N, C, H, W) float32; `key` tells its weights from others."""
    if x.dim() == 3:
        return sparse_conv2d(x[None], weight, bias, stride, padding, dilation, groups, key)[0]
    settings = (*stride, *padding, *dilation, groups)
    out, inside, *size = weight.shape
    window: Any = {"kernel_size": size, "stride": stride, "padding": padding, "dilation": dilation}
    layer = partial(nn.Conv2d, inside * groups, out, **window, groups=groups, bias=bias is not None)
    engine = _engine((key, *_identity(weight, bias), *settings), layer, weight, bias, tuple(x.shape[1:]))
    images = _numbers(x)
    shape = _fake_conv2d_shape(x, weight, stride, padding, dilation)
    y = torch.empty(shape)
    for image, output in zip(images, y, strict=True):
        output.copy_(torch.from_numpy(engine._run([image])[0]).view_as(output))
    return y


@torch.library.custom_op("lab::sparse_linear", mutates_args=(), device_types="cpu")
def sparse_linear(x: Tensor, weight: Tensor, bias: Optional[Tensor], key: str) -> Tensor:  # noqa: UP045
    """F.linear by the engine: x (..., K) float32, its rows in one run; `key` tells its weights from others."""
    rows = _numbers(x).reshape(-1, x.shape[-1])  # (R, K)
    shape = (*x.shape[:-1], len(weight))
    if not len(rows):
        return torch.empty(shape)
    out, inside = weight.shape
    layer = partial(nn.Linear, inside, out, bias is not None)
    engine = _engine((key, *_identity(weight, bias)), layer, weight, bias, rows.shape)
    return torch.from_numpy(engine._run([rows])[0]).reshape(shape)


@sparse_conv2d.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    key: str,
) -> Tensor:
    if x.dim() == 3:
        return x.new_empty(_fake_conv2d_shape(x[None], weight, stride, padding, dilation)[1:])
    return x.new_empty(_fake_conv2d_shape(x, weight, stride, padding, dilation))


@sparse_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, key: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _fake_conv2d_shape(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> tuple[int, ...]:
    """The shape of a convolution's output, of sizes that may be symbols."""
    sides = [
        (x.shape[2 + n] + 2 * padding[n] - dilation[n] * (weight.shape[2 + n] - 1) - 1) // stride[n] + 1 for n in (0, 1)
    ]
    return (x.shape[0], weight.shape[0], *sides)


def _numbers(x: Tensor) -> np.ndarray:
    """A tensor as the engine reads it; ValueError in one line for other numbers."""
    if x.dtype is not torch.float32:
        raise ValueError(f"x holds {x.dtype} numbers: a sparse layer takes float32, give x.float()")
    return x.detach().contiguous().numpy()


def _identity(weight: Tensor, bias: Tensor | None) -> tuple[int, ...]:
    """Where the weights lie, and how often they were written to: what was packed of others is none of theirs."""
    parts = [t for t in (weight, bias) if t is not None]
    return tuple(n for t in parts for n in (t.data_ptr(), 0 if t.is_inference() else t._version))


def _engine(
    key: tuple, layer: Callable[[], nn.Module], weight: Tensor, bias: Tensor | None, shape: tuple[int, ...]
) -> Engine:
    """The engine of a layer for one input of this shape, packed at first use."""
    key = (*key, *shape)
    with _lock:
        if key in _engines:
            _engines.move_to_end(key)
            return _engines[key]
    module = layer()
    with torch.no_grad():
        for held, given in zip(module.parameters(), (weight, bias), strict=False):
            held.copy_(given)  # type: ignore[arg-type]
    made = Engine(packed.write(compiler.compile(nn.Sequential(module), torch.zeros(1, *shape))))
    with _lock:
        _engines[key] = made
        while len(_engines) > KEPT:
            _engines.popitem(last=False)
    return made
