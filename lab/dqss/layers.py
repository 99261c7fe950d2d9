"""Where DQSS learns: one tensor's strategies with their logits, summed before the layer reads them."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..core.quantisation.qparams import FixedQuantiser
from . import equations as eq

CHUNK = 2**15  # values taken through all strategies while they are in the processor's cache; elsewhere all at once

FixedGrids = tuple[list[float], int, int]  # the step of each strategy, and the lowest and largest code of all


class RoundedWeight(nn.Module):
    """A weight on the grid -n..n times a step that no longer changes: () or one a channel."""

    step: Tensor

    def __init__(self, step: Tensor, n: int) -> None:
        super().__init__()
        self.qmin, self.qmax = -n, n
        self.register_buffer("step", step)

    def forward(self, W: Tensor) -> Tensor:
        return (W / self.step).round_().clamp_(self.qmin, self.qmax).mul_(self.step)

    def step_of(self, W: Tensor) -> Tensor:
        """The step as it is."""
        return self.step


class _FixedMixture(torch.autograd.Function):
    """Card (3) for fixed grids and Card (5) behind it: x, and nothing else of its size, is kept for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: Tensor, grids: FixedGrids) -> Tensor:
        ctx.save_for_backward(x, p)
        ctx.grids = grids
        (steps, qmin, qmax), shares = grids, p.tolist()
        flat, mixed = x.reshape(-1), torch.empty_like(x, memory_format=torch.contiguous_format)
        for part, out in zip(flat.split(_chunk(x)), mixed.view(-1).split(_chunk(x)), strict=True):
            codes = torch.empty_like(part)
            for k, (share, step) in enumerate(zip(shares, steps, strict=True)):
                torch.mul(part, 1 / step, out=codes).round_().clamp_(qmin, qmax)
                if k:
                    out.add_(codes, alpha=share * step)
                else:
                    torch.mul(codes, share * step, out=out)
        return mixed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        (g,), (x, p), (steps, qmin, qmax) = grads, ctx.saved_tensors, ctx.grids
        g, shares = g.contiguous(), p.tolist()
        g_x = torch.zeros_like(g) if ctx.needs_input_grad[0] else None
        products = [0.0] * len(steps)  # <G, Q_j>, straight into the gradient of p: softmax has its own way back
        x_parts, g_parts = (t.reshape(-1).split(_chunk(x)) for t in (x, g))
        outs = [None] * len(x_parts) if g_x is None else g_x.view(-1).split(_chunk(x))
        for part, above, out in zip(x_parts, g_parts, outs, strict=True):
            codes, clipped = torch.empty_like(part), torch.empty_like(part)
            for k, (share, step) in enumerate(zip(shares, steps, strict=True)):
                torch.mul(part, 1 / step, out=codes)
                torch.clamp(codes, qmin, qmax, out=clipped)
                if out is not None:  # as numbers: a mask of booleans takes eight times as long
                    out.add_(torch.eq(codes, clipped, out=codes), alpha=share)
                products[k] += float(torch.dot(above, clipped.round_())) * step
            if out is not None:
                out.mul_(above)
        return g_x, torch.tensor(products, dtype=p.dtype, device=p.device), None


def _chunk(x: Tensor) -> int:
    return CHUNK if x.device.type == "cpu" else max(1, x.numel())


class _LearnedMixture(torch.autograd.Function):
    """Card (3) for strategies that learn: each one is computed again on the way back, one at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: Tensor, strategies: nn.ModuleList, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x, p)
        ctx.strategies = strategies
        mixed = torch.zeros_like(x)
        for share, strategy in zip(p.tolist(), strategies, strict=True):
            mixed.add_(strategy(x), alpha=share)
        return mixed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        (g,), (x, p) = grads, ctx.saved_tensors
        g_x, products = torch.zeros_like(x), torch.zeros_like(p)
        parameter_grads: list[Tensor | None] = []
        for k, strategy in enumerate(ctx.strategies):
            with torch.enable_grad():
                again = x.detach().requires_grad_()
                y = strategy(again)
                x_grad, *rest = torch.autograd.grad(y, [again, *_trainable(strategy)], p[k] * g, allow_unused=True)
            products[k] = (g * y.detach()).sum()
            g_x += torch.zeros_like(x) if x_grad is None else x_grad
            parameter_grads += rest
        return g_x, products, None, *parameter_grads


class _ChannelMixture(torch.autograd.Function):
    """Card (3) for a weight with fixed steps a channel, and Card (5) behind it; the weight itself does not learn."""

    @staticmethod
    def forward(ctx: Any, W: Tensor, p: Tensor, strategies: list["RoundedWeight"]) -> Tensor:
        ctx.save_for_backward(W, p)
        ctx.strategies = strategies
        mixed, shares = torch.zeros_like(W), p.tolist()
        for out, rounded in zip(*_by_channels(strategies, mixed, W), strict=True):
            for share, Q in zip(shares, rounded, strict=True):
                out.add_(Q.mul_(share))
        return mixed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        (g,), (W, p) = grads, ctx.saved_tensors
        products = torch.zeros_like(p)
        for above, rounded in zip(*_by_channels(ctx.strategies, g, W), strict=True):
            products += torch.stack([(above * Q).sum() for Q in rounded])
        return None, products, None


def _by_channels(
    strategies: list["RoundedWeight"], other: Tensor, W: Tensor
) -> tuple[tuple[Tensor, ...], Iterator[Iterator[Tensor]]]:
    """A tensor of W's shape in parts of some channels, and for each of them what every strategy makes of W there."""
    axis = max(range(W.dim()), key=lambda k: strategies[0].step.shape[k])
    size = max(1, _chunk(W) * W.shape[axis] // W.numel())
    steps = zip(*(strategy.step.split(size, axis) for strategy in strategies), strict=True)
    ends = strategies[0].qmin, strategies[0].qmax
    rounded = (
        ((part / step).round_().clamp_(*ends).mul_(step) for step in some)
        for part, some in zip(W.split(size, axis), steps, strict=True)
    )
    return other.split(size, axis), rounded


def _trainable(strategy: nn.Module) -> list[Tensor]:
    return [parameter for parameter in strategy.parameters() if parameter.requires_grad]


class Mixture(nn.Module):
    """One tensor's strategies by name: their mixture while `chosen` is None, else that one alone. Shapes stay.

    It stands in the network behind a tensor, or computes a layer's weight as a parametrization.
    """

    def __init__(self, strategies: dict[str, nn.Module]) -> None:
        super().__init__()
        self.chosen: int | None = None
        self.T = 1.0
        self.set_strategies(strategies)

    def set_strategies(self, strategies: dict[str, nn.Module]) -> None:
        """Take these strategies instead, none preferred."""
        self.names = tuple(strategies)
        self.strategies = nn.ModuleList(strategies.values())
        self.logits = nn.Parameter(torch.zeros(len(strategies)))
        self.rounded_from: tuple[int | None, int] | None = None
        self.rounded: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self.chosen is not None or len(self.names) == 1:
            return self.kept(x) if not isinstance(self.kept, RoundedWeight) else self._kept_weight(x)
        p = eq.probabilities(self.logits, self.T)
        grids = _fixed_grids(self.strategies)
        if grids is not None:
            return _FixedMixture.apply(x, p, grids)
        fixed = [strategy for strategy in self.strategies if isinstance(strategy, RoundedWeight)]
        if fixed:
            return _ChannelMixture.apply(x, p, fixed)
        parameters = [parameter for strategy in self.strategies for parameter in _trainable(strategy)]
        return _LearnedMixture.apply(x, p, self.strategies, *parameters)

    def _kept_weight(self, W: Tensor) -> Tensor:
        """A fixed weight on the grid that is chosen: rounded once, for all forward passes until either changes."""
        rounded_from = (self.chosen, W._version)
        if self.rounded_from != rounded_from:
            self.rounded_from, self.rounded = rounded_from, self.kept(W.detach())
        return self.rounded

    @property
    def kept(self) -> Any:
        """The strategy that is chosen, or the only one."""
        return self.strategies[self.chosen or 0]

    def extra_repr(self) -> str:
        return f"{', '.join(self.names)}" + ("" if self.chosen is None else f"; {self.names[self.chosen]}")


def _fixed_grids(strategies: Iterable[nn.Module]) -> FixedGrids | None:
    """The steps and the ends of grids that are fixed and of as many codes; None if they are not."""
    steps, ends = [], set()
    for strategy in strategies:
        if not isinstance(strategy, (FixedQuantiser, RoundedWeight)) or strategy.step.numel() > 1:
            return None
        steps.append(float(strategy.step))
        ends.add((strategy.qmin, strategy.qmax))
    return (steps, *ends.pop()) if len(ends) == 1 else None
