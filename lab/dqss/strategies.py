"""What each strategy is called, and how it is made: for an activation as the float network runs, for a weight as it is.

In 'post' mode a strategy is a rule of `observers`, whose range stays; in 'aware' mode a quantiser that learns on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from ..core.batch import Example, call
from ..core.quantisation import quantisers as core
from ..core.quantisation.qparams import FixedQuantiser, QParams
from . import observers, quantisers
from .layers import RoundedWeight

POST = (*observers.OBSERVERS, "easyquant")
_ACTIVATIONS: dict[str, type[core.RangeQuantiser]] = {
    "dorefa": quantisers.DoReFa,
    "pact": core.PACT,
    "lsq": core.LSQ,
    "lsq+": quantisers.LSQPlus,
    "dsq": quantisers.DSQ,
    "tqt": quantisers.TQT,
    "pams": core.RangeQuantiser,  # PAMS's gradient is that of clamp and scale: autograd has it without its closed form
}
_WEIGHTS: dict[str, Callable[[int, Tensor], nn.Module]] = {  # PACT's paper gives weights to DoReFa
    "dorefa": lambda bits, W: core.DoReFaWeight(bits, W, zero=True),
    "lsq": core.LSQWeight,
    "lsq+": quantisers.LSQPlusWeight,
    "dsq": lambda bits, W: quantisers.RangeWeight(quantisers.DSQ, bits, W),
    "tqt": lambda bits, W: quantisers.RangeWeight(quantisers.TQT, bits, W),
    "pams": lambda bits, W: core.MaxAbsWeight(bits),
}
AWARE = tuple(_ACTIVATIONS)
SAMPLE = 4096  # values of a tensor that its strategies are compared on
EASYQUANT_PICTURES, EASYQUANT_TRIED = 4, 40  # on which it compares a layer's outputs, and ranges that it tries

Strategies = dict[str, nn.Module]


def offered(recipe: Any) -> tuple[str, ...]:
    """The names of the strategies that a recipe chooses from."""
    return recipe.candidates or (POST if recipe.mode == "post" else AWARE)


# -- activations -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Activation:
    """A tensor on its way into layers: the bits of its codes, and whether it may be negative."""

    bits: int
    signed: bool

    @property
    def n(self) -> int:
        """The largest code."""
        return core.largest_code(self.bits, self.signed)


class Calibration(fx.Interpreter):
    """A run of the float network, in which each tensor at a quantiser makes its strategies and passes as it is.

    weights: {layer: its weight}. strategies: {group: {name: quantiser}}. samples: {group: (SAMPLE,)}, what those are
    compared on. weight_ranges: {layer: (G,)}, EasyQuant's, which come with its ranges of what the layer reads.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        recipe: Any,
        activations: dict[str, Activation],
        weights: dict[str, "LayerWeight"],
    ) -> None:
        super().__init__(graph)
        self.extra_traceback = False  # an error is one line
        self.recipe, self.activations, self.weights = recipe, activations, weights
        self.reader: LayerWeight | None = None  # the first layer that reads the tensor at hand, one of its group's
        self.strategies: dict[str, Strategies] = {group: {} for group in activations}
        self.samples: dict[str, Tensor] = {}
        self.weight_ranges: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        layers = (self.weights.get(str(user.target)) for user in n.users)
        self.reader = next((layer for layer in layers if layer is not None), None)
        return super().run_node(n)

    def call_module(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        group = target.removeprefix("quantisers.")
        if group not in self.activations or group == target:
            return super().call_module(target, args, kwargs)
        (x,) = args
        if not x.isfinite().all():
            raise ValueError(
                f"{group} holds values that are not finite, which no grid has: give max-pooling its padding"
            )
        self.samples[group] = observers.subsample(x.detach().flatten(), SAMPLE)
        (self._learn if self.recipe.mode == "aware" else self._read)(group, x)
        return x

    def _learn(self, group: str, x: Tensor) -> None:
        """The quantiser of each paper; of tensors that share one, its range is the mean."""
        activation, strategies = self.activations[group], self.strategies[group]
        for name in offered(self.recipe):
            kind = _ACTIVATIONS[name]
            quantiser: Any = strategies.setdefault(name, kind(activation.bits, activation.signed).to(x.device))
            quantiser.calibrating = True
            quantiser.train()(x if x.any() else torch.ones_like(x))  # a tensor that has no range yet gets one of 1
            quantiser.calibrating = False

    def _read(self, group: str, x: Tensor) -> None:
        """The grid of each rule; of tensors that share one, the widest."""
        activation, strategies = self.activations[group], self.strategies[group]
        names, uneven = offered(self.recipe), self.recipe.scales == "uneven"
        weight_range, alpha = easyquant_ranges(activation, self.reader, x) if "easyquant" in names else (None, 0.0)
        if weight_range is not None and self.reader is not None:
            self.weight_ranges.setdefault(self.reader.name, weight_range)
        for name in names:
            grid = (_uneven_grid if uneven and activation.signed else _even_grid)(name, activation, x, alpha)
            if name in strategies:
                grid = _widest(grid, strategies[name].qparams(), activation.bits)  # type: ignore[operator]
            strategies[name] = FixedQuantiser(grid).to(x.device)


def easyquant_ranges(activation: Activation, weight: "LayerWeight | None", x: Tensor) -> tuple[Tensor | None, float]:
    """EasyQuant's ranges of the weight of the layer that reads x (N, ...), (G,), and of x, which are found together.

    Where no layer reads x, or it is all 0, there is no range of a weight, and max|x|.
    """
    samples = x.detach().flatten(1)[None]
    start = observers.max_abs(samples, activation.n, activation.signed)
    if weight is None or float(start) <= 0:
        return None, float(start)
    module, axis = weight.layer, weight.axis

    def run(x: Tensor, W: Tensor) -> Tensor:
        return functional_call(module, {"weight": W.movedim(0, axis)}, (x,))

    W = module.weight.detach().movedim(axis, 0)
    first = observers.max_abs(weight.rows, weight.n, True).clamp(min=observers.LEAST), start
    w, a = observers.easyquant(
        x[:EASYQUANT_PICTURES], W, run, first, (weight.n, activation.n), activation.signed, EASYQUANT_TRIED
    )
    return w, float(a)


def _even_grid(name: str, activation: Activation, x: Tensor, easyquant: float) -> QParams:
    """A rule's grid about 0, or from 0; `easyquant` is that rule's range."""
    n, signed = activation.n, activation.signed
    samples = x.detach().flatten(1)[None]
    alpha = easyquant if name == "easyquant" else float(observers.OBSERVERS[name](samples, n, signed))
    return QParams.from_max(alpha, n, signed)


def _uneven_grid(name: str, activation: Activation, x: Tensor, easyquant: float) -> QParams:
    """A rule's grid with a zero point: each side of 0 is a tensor of its own, with its share of the codes."""
    sides, codes = [(-x).relu(), x.relu()], core.largest_code(activation.bits, signed=False)
    tops = [float(side.max()) for side in sides]
    if name == "easyquant":
        share = easyquant / max(*tops, observers.LEAST)
        return QParams.from_min_max(-share * tops[0], share * tops[1], activation.bits)
    rule = observers.OBSERVERS[name]
    n = [max(1, round(codes * top / max(sum(tops), observers.LEAST))) for top in tops]
    low, high = (float(rule(side.flatten(1)[None], k, False)) for side, k in zip(sides, n, strict=True))
    return QParams.from_min_max(-low, high, activation.bits)


def _widest(a: QParams, b: QParams, bits: int) -> QParams:
    """The grid that holds the values of both: tensors that share one."""
    if a.zero_point == b.zero_point:
        return max(a, b, key=lambda grid: grid.scale)
    (a_low, a_high), (b_low, b_high) = a.range, b.range
    return QParams.from_min_max(min(a_low, b_low), max(a_high, b_high), bits)


# -- weights -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerWeight:
    """A layer's weight, as ranges are read from it.

    used: the weight in its own shape, 0 where all that it multiplies on the calibration is 0. rows (G, 1, V): the used
    values of the whole weight (G = 1) or of each output channel; `axis` is where those are.
    """

    name: str
    layer: Any
    bits: int
    used: Tensor
    rows: Tensor
    axis: int

    @property
    def n(self) -> int:
        """The largest code."""
        return core.largest_code(self.bits)


@torch.no_grad()
def layer_weights(graph: fx.GraphModule, bits: dict[str, int], scales: str, x: Example) -> dict[str, LayerWeight]:
    """The weights of the layers that `bits` names, on the pictures x (N, C, H, W).

    A norm folded into the layer of a channel that its ReLU has shut makes huge weights, which do nothing; a range that
    held them would leave no codes for the others.
    """
    live: dict[str, Tensor] = {}  # which input channels (C,) are ever not 0

    def note(name: str, args: tuple[Tensor, ...]) -> None:
        axis = -1 if isinstance(graph.get_submodule(name), nn.Linear) else 1
        some = (args[0].detach() != 0).movedim(axis, 0).flatten(1).any(1)
        live[name] = live.get(name, torch.zeros_like(some)) | some

    hooks = [graph.get_submodule(n).register_forward_pre_hook(lambda _, args, n=n: note(n, args)) for n in bits]
    call(graph, x)
    for hook in hooks:
        hook.remove()
    return {name: _layer_weight(name, graph.get_submodule(name), bits[name], scales, live[name]) for name in bits}


def _layer_weight(name: str, layer: Any, bits: int, scales: str, live: Tensor) -> LayerWeight:
    """`scales` says how many groups there are; a channel of which nothing is used is read as it is."""
    axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    used = _used(layer, live)
    every, some = (_grouped(W.movedim(axis, 0), scales) for W in (layer.weight.detach(), used))
    rows = torch.where((some != 0).any(2, keepdim=True), some, every)
    return LayerWeight(name, layer, bits, used, rows, axis)


def _grouped(W: Tensor, scales: str) -> Tensor:
    """A weight with its output channels first as (G, 1, V)."""
    return W.reshape(len(W) if scales == "channel" else 1, 1, -1)


def _used(layer: Any, live: Tensor) -> Tensor:
    """A layer's weight, 0 for input channels that are always 0, but as it is where all of them are."""
    W = layer.weight.detach()
    if isinstance(layer, nn.ConvTranspose2d):
        used = W * live.view(-1, 1, 1, 1)
    elif isinstance(layer, nn.Linear):
        used = W * live
    else:  # (OC, IC / groups, KH, KW): each group of output channels reads channels of its own
        groups = live.view(layer.groups, 1, -1).expand(-1, layer.out_channels // layer.groups, -1)
        used = W * groups.reshape(*W.shape[:2], 1, 1)
    return used if used.any() else W


def learned_weight(names: Sequence[str], weight: LayerWeight) -> Strategies:
    """A quantiser for each paper that has one of weights, its range read from the weight as that paper begins."""
    W = weight.used
    if not W.any():  # the largest that torch would begin with
        W = torch.full_like(W, W[0].numel() ** -0.5)
    return {name: _WEIGHTS[name](weight.bits, W) for name in names if name in _WEIGHTS}


def fixed_weight(names: Sequence[str], weight: LayerWeight, easyquant: Tensor | None) -> Strategies:
    """Each rule's grid for a weight; `easyquant` is its range (G,) if EasyQuant has one."""
    strategies: Strategies = {}
    for name in names:
        alpha = easyquant if name == "easyquant" else observers.OBSERVERS[name](weight.rows, weight.n, True)
        if alpha is not None:
            step = _complete(alpha, weight) / weight.n
            shape = [1] * weight.used.dim()
            shape[weight.axis] = len(step)
            strategies[name] = RoundedWeight(step.view(shape if len(step) > 1 else []), weight.n)
    return strategies


def _complete(alpha: Tensor, weight: LayerWeight) -> Tensor:
    """The ranges (G,) with one for each of many channels that shows none.

    Where a rule gives none the largest |w| is taken; a channel of zeros takes the widest of all, as any would do.
    """
    if len(alpha) == 1:
        return alpha
    alpha = torch.where(_is_step(alpha / weight.n), alpha, observers.max_abs(weight.rows, weight.n, True))
    return torch.where(_is_step(alpha / weight.n), alpha, alpha.amax())


# -- what a strategy can do --------------------------------------------------------------------------------------------


def has_range(strategy: Any) -> bool:
    """Whether a strategy found a range in its tensor: one all 0 has none."""
    if hasattr(strategy, "step"):
        return bool(_is_step(strategy.step).all())
    return bool(_is_step(torch.tensor(strategy.qparams().scale if hasattr(strategy, "qparams") else 1.0)))


def any_range(strategies: Strategies) -> Strategies:
    """The first strategy of a tensor that is all 0, with a range of 1: any would do, but a bias behind it is rounded
    to the products of two steps.
    """
    name, strategy = next(iter(strategies.items()))
    strategy.step = torch.ones_like(strategy.step) / strategy.qmax  # type: ignore[arg-type, operator]
    return {name: strategy}


def _is_step(steps: Tensor) -> Tensor:
    return torch.isfinite(steps) & (steps > observers.LEAST)


def ends(strategy: Any, x: Tensor) -> Tensor:
    """The lowest and the largest value that a strategy leaves of x, or a step either way: (2,), or (2 channels,)."""
    if hasattr(strategy, "qmin"):
        return torch.cat([strategy.qmin * strategy.step.flatten(), strategy.qmax * strategy.step.flatten()])
    step = strategy.step_of(x).flatten() if hasattr(strategy, "step_of") else torch.tensor([strategy.qparams().scale])
    return torch.cat([-step, step])
