"""Where PAMS learns: the quantiser of a tensor with its alpha, and a convolution with rounded weights."""

from typing import Any

import torch
from torch import Tensor, nn

from ..core.quantisation.grids import Grid
from ..core.quantisation.quantisers import floored
from . import equations as eq

LEAST = 1e-6  # alpha is a divisor: it is kept above this


class _Quantise(torch.autograd.Function):
    """Eq. (4) with the gradients of Eqs. (6) and (7) in closed form: one tensor is kept instead of five."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, n: int, signed: bool) -> Tensor:
        ctx.save_for_backward(x, alpha)
        ctx.grid = n, signed
        return eq.quantise(x, alpha, n, signed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        (g,), (x, alpha), (n, signed) = grads, ctx.saved_tensors, ctx.grid
        g_alpha = (g * eq.gradient_alpha(x, alpha, n, signed)).sum().view_as(alpha)
        return g * eq.gradient_x(x, alpha, signed), g_alpha, None, None


class Quantiser(nn.Module):
    """A tensor on b bits with a trainable alpha, its largest value; unsigned where it stands behind a ReLU.

    While `calibrating` and in training mode alpha follows the data and nothing is clamped; `last` forgets all batches
    but the present one, as the release does, and `whole` keeps the largest value of all, for pictures. Shapes stay.
    """

    seen: Tensor

    def __init__(self, bits: int, signed: bool = True, last: bool = False, whole: bool = False) -> None:
        super().__init__()
        self.bits, self.signed, self.last, self.whole = bits, signed, last, whole
        self.n = eq.levels(bits, signed)
        self.alpha = nn.Parameter(torch.full((1,), 10.0))  # the release's first value, before any data
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.calibrating = False

    def forward(self, x: Tensor) -> Tensor:
        if self.calibrating and self.training:
            self._follow(x)
            return x + (eq.quantise_unclamped(x, self.scale_of, self.n) - x).detach()
        return _Quantise.apply(x, self.scale_of, self.n, self.signed)

    @property
    def scale_of(self) -> Tensor:
        """alpha, above 0."""
        return floored(self.alpha, LEAST)

    def grid(self) -> Grid:
        """Where its values lie, as the exported file says it."""
        return Grid(float(self.scale_of.detach()) / self.n, -self.n * self.signed, self.n, 128 * self.signed)

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        M = eq.statistic(x)
        if self.whole:
            self.alpha.copy_(torch.maximum(x.abs().max(), self.alpha * (self.seen > 0)))
        else:
            self.alpha.copy_(M if self.last else eq.moving_average(self.alpha, M, int(self.seen)))
        self.seen += 1

    def extra_repr(self) -> str:
        return f"bits={self.bits}, {'signed' if self.signed else 'unsigned'}"


class QuantisedConv2d(nn.Conv2d):
    """A convolution whose weight is rounded to b bits in every forward pass, by Eq. (3); its bias is not.

    Once its codes are set, `weight` is what they say, and is used as it stands.
    """

    bits: int
    per_channel: bool
    step: Tensor | None

    @classmethod
    def of(cls, conv: nn.Conv2d, bits: int, per_channel: bool = False) -> "QuantisedConv2d":
        """The convolution with the same weights, which both then share."""
        made: QuantisedConv2d = object.__new__(cls)
        made.__dict__.update(conv.__dict__)
        made._parameters = dict(conv._parameters)
        made.bits, made.per_channel, made.step = bits, per_channel, None
        return made

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.rounded(), self.bias)

    def rounded(self) -> Tensor:
        """The weight as it acts."""
        if self.step is not None:
            return self.weight
        return eq.quantise_weight(self.weight, eq.levels(self.bits), self.per_channel)

    def codes(self) -> tuple[Tensor, Tensor]:
        """The weight as integers, int8 in -n..n, and the step of their grid: (1, 1, 1, 1) or (OC, 1, 1, 1)."""
        step = self.step
        if step is None:
            step = eq.weight_scale(self.weight, eq.levels(self.bits), self.per_channel)
        return (self.weight.detach() / step).round().to(torch.int8), step

    @torch.no_grad()
    def set_codes(self, codes: Tensor, step: Tensor) -> None:
        """Make the weight codes * step, on its device."""
        self.step = step.to(self.weight)
        self.weight.copy_(codes.to(self.weight) * self.step)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}"
