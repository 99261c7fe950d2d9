"""Where DQSS learns: one tensor's strategies with their logits, summed before the layer reads them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.quantisation.grids import FixedQuantiser
from . import equations as eq

CHUNK = 2**15  # values taken through all strategies while they are in the processor's cache


class RoundedWeight(nn.Module):
    """A weight on the grid -n..n times a step that no longer changes: () or one a channel."""

    step: Tensor

    def __init__(self, step: Tensor, n: int) -> None:
        super().__init__()
        self.low, self.high = -n, n
        self.register_buffer("step", step)

    def forward(self, W: Tensor) -> Tensor:
        return (W / self.step).round_().clamp_(self.low, self.high).mul_(self.step)

    def step_of(self, W: Tensor) -> Tensor:
        """The step as it is."""
        return self.step


class _Grids(torch.autograd.Function):
    """Eq. (3) for fixed grids and Eq. (5) behind it: x, and nothing else of its size, is kept for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: Tensor, grids: tuple[list[float], int, int]) -> Tensor:
        ctx.save_for_backward(x, p)
        ctx.grids = grids
        (steps, low, high), shares = grids, p.tolist()
        flat, mixed = x.reshape(-1), torch.zeros_like(x, memory_format=torch.contiguous_format)
        for part, out in zip(flat.split(CHUNK), mixed.view(-1).split(CHUNK), strict=True):
            codes = torch.empty_like(part)
            for share, step in zip(shares, steps, strict=True):
                torch.mul(part, 1 / step, out=codes).round_().clamp_(low, high)
                out.add_(codes, alpha=share * step)
        return mixed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        (g,), (x, p), (steps, low, high) = grads, ctx.saved_tensors, ctx.grids
        g, shares = g.contiguous(), p.tolist()
        g_x = torch.zeros_like(g) if ctx.needs_input_grad[0] else None
        products = [0.0] * len(steps)
        parts = [t.reshape(-1).split(CHUNK) for t in (x, g)]
        outs = [None] * len(parts[0]) if g_x is None else g_x.view(-1).split(CHUNK)
        for part, above, out in zip(*parts, outs, strict=True):
            codes, clipped = torch.empty_like(part), torch.empty_like(part)
            for k, (share, step) in enumerate(zip(shares, steps, strict=True)):
                torch.mul(part, 1 / step, out=codes)
                torch.clamp(codes, low, high, out=clipped)
                if out is not None:  # as numbers: a mask of booleans takes eight times as long
                    out.add_(torch.eq(codes, clipped, out=codes), alpha=share)
                products[k] += float(torch.dot(above, clipped.round_())) * step
            if out is not None:
                out.mul_(above)
        return g_x, torch.tensor(products, dtype=p.dtype, device=p.device), None


class _Strategies(torch.autograd.Function):
    """Eq. (3) for strategies that learn: each one is computed again on the way back, one at a time."""

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
        g_x, products, learned = torch.zeros_like(x), torch.zeros_like(p), []  # type: ignore[var-annotated]
        for k, strategy in enumerate(ctx.strategies):
            with torch.enable_grad():
                again = x.detach().requires_grad_()
                y = strategy(again)
                wanted = [again, *_learned(strategy)]
                found = torch.autograd.grad(y, wanted, p[k] * g, allow_unused=True)
            products[k] = (g * y.detach()).sum()
            g_x += torch.zeros_like(x) if found[0] is None else found[0]
            learned += found[1:]
        return g_x, products, None, *learned


def _learned(strategy: nn.Module) -> list[Tensor]:
    return [parameter for parameter in strategy.parameters() if parameter.requires_grad]


class Mixture(nn.Module):
    """One tensor's strategies by name: their mixture while `chosen` is None, else that one alone. Shapes stay.

    It stands in the network behind a tensor, or computes a layer's weight as a parametrization. `observer`, where it is
    set, reads the tensor, which then passes as it is.
    """

    def __init__(self, strategies: dict[str, nn.Module]) -> None:
        super().__init__()
        self.observer: Any = None
        self.chosen: int | None = None
        self.T = 1.0
        self.settle(strategies)

    def settle(self, strategies: dict[str, nn.Module]) -> None:
        """Take these strategies instead, none preferred."""
        self.names = tuple(strategies)
        self.strategies = nn.ModuleList(strategies.values())
        self.logits = nn.Parameter(torch.zeros(len(strategies)))

    def forward(self, x: Tensor) -> Tensor:
        if self.observer is not None:
            self.observer(x)
            return x
        if self.chosen is not None or len(self.names) == 1:
            return self.strategies[self.chosen or 0](x)
        p = eq.probabilities(self.logits, self.T)
        grids = _shared(self.strategies)
        if grids is not None:
            return _Grids.apply(x, p, grids)
        if not any(isinstance(one, RoundedWeight) for one in self.strategies):
            return _Strategies.apply(x, p, self.strategies, *(v for one in self.strategies for v in _learned(one)))
        return eq.mixture([one(x) for one in self.strategies], p)  # weights that no longer change, a step a channel

    def extra_repr(self) -> str:
        return f"{', '.join(self.names)}" + ("" if self.chosen is None else f"; {self.names[self.chosen]}")


def _shared(strategies: Sequence[nn.Module]) -> tuple[list[float], int, int] | None:
    """The steps and the ends of grids that are fixed and of as many codes; None if they are not."""
    kinds = (FixedQuantiser, RoundedWeight)
    if not all(isinstance(one, kinds) and one.step.numel() == 1 for one in strategies):
        return None
    ends = {(one.low, one.high) for one in strategies}
    return ([float(one.step) for one in strategies], *ends.pop()) if len(ends) == 1 else None
