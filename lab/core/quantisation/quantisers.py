"""Uniform quantisers that more than one method needs: DQSS chooses among them, PAMS is built on the first of them and
measured beside the others.

An activation's quantiser is a module with `calibrating`, during which it follows the data; a weight's is a
parametrization (`torch.nn.utils.parametrize`). All use the grid -n..n times a step, or 0..n for a tensor that holds
nothing negative. Shapes stay.
"""

import math

import torch
from torch import Tensor, nn

from .qparams import QParams

LEAST = 1e-6  # a range is a divisor: it is kept above this


def largest_code(bits: int, signed: bool = True) -> int:
    """n, the largest code of a grid: 2^(b-1) - 1, or 2^b - 1 where nothing is negative."""
    return 2 ** (bits - 1) - 1 if signed else 2**bits - 1


def rounded(x: Tensor) -> Tensor:
    """The nearest integer; the gradient passes as if nothing had been rounded."""
    return x + (x.round() - x).detach()


def scaled_gradient(x: Tensor, scale: float) -> Tensor:
    """x itself, its gradient times `scale`."""
    return x * scale + (x * (1 - scale)).detach()


def floored(x: Tensor, least: float) -> Tensor:
    """x, but at least `least`; the gradient passes, so that a range that training drove to 0 can grow again."""
    return x - x.detach() + x.detach().clamp(min=least)


# -- activations -------------------------------------------------------------------------------------------------------


class RangeQuantiser(nn.Module):
    """A tensor on the codes -n..n of a range [-alpha, alpha], or 0..n of [0, alpha] where it is not `signed`.

    alpha (1,) is clamp and scale at once. Rounding passes the gradient straight through, so that an alpha that is
    `learned` has one inside the range too. While `calibrating` and in training mode alpha is the mean of what each
    batch would have, and nothing is rounded.
    """

    learned = True
    seen: Tensor  # (), the batches that alpha has followed

    def __init__(self, bits: int, signed: bool = True) -> None:
        super().__init__()
        self.bits, self.signed, self.n = bits, signed, largest_code(bits, signed)
        self.alpha = nn.Parameter(torch.ones(1), requires_grad=self.learned)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.calibrating = False

    def forward(self, x: Tensor) -> Tensor:
        if self.calibrating and self.training:
            self.observe(x.detach())
            return x
        return self.quantise(x, self.max_value())

    def max_value(self) -> Tensor:
        """The largest value of the range, above 0: (1,)."""
        return floored(self.alpha, LEAST)

    def qparams(self) -> QParams:
        """The grid as numbers."""
        return QParams.from_max(float(self.max_value().detach()), self.n, self.signed)

    def quantise(self, x: Tensor, alpha: Tensor) -> Tensor:
        """x rounded within the range of alpha (1,)."""
        return rounded(self.clamped(x, alpha) * (self.n / alpha)) * (alpha / self.n)

    def clamped(self, x: Tensor, alpha: Tensor) -> Tensor:
        """x within the range, from 0 where it is not signed; min and max give alpha its gradient, clamp would not."""
        return torch.minimum(torch.maximum(x, -alpha if self.signed else torch.zeros_like(alpha)), alpha)

    def batch_range(self, x: Tensor) -> Tensor:
        """The alpha that one batch (N, ...) would have: the mean of each picture's max|x|, ()."""
        return x.abs().flatten(1).amax(1).mean()

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Take one more batch into the mean."""
        self.seen += 1
        self.alpha.add_((self.batch_range(x) - self.alpha) / int(self.seen))

    def extra_repr(self) -> str:
        return f"bits={self.bits}, {'signed' if self.signed else 'unsigned'}"


class MaxAbs(RangeQuantiser):
    """A fixed range: the mean over the calibration of each picture's max|x|. The gradient is 1 inside, 0 outside."""

    learned = False


class LeastSquares(RangeQuantiser):
    """A fixed range: of forty shares of max|x| the one that leaves the smallest squared error, mean of the batches."""

    learned = False

    def batch_range(self, x: Tensor) -> Tensor:
        alphas = x.abs().max().clamp(min=1e-6) * torch.linspace(0.05, 1, 40).to(x)
        errors = torch.stack([(self.quantise(x, alpha) - x).square().mean() for alpha in alphas])
        return alphas[errors.argmin()]


class PACT(RangeQuantiser):
    """A learned range (Choi et al., 1805.06085): alpha's gradient is the sign of what was clamped, 0 inside."""

    def quantise(self, x: Tensor, alpha: Tensor) -> Tensor:
        y = self.clamped(x, alpha)
        fixed = alpha.detach()
        return y + ((y * (self.n / fixed)).round() * (fixed / self.n) - y).detach()


class LSQ(RangeQuantiser):
    """A learned step (Esser et al., 1902.08153), its gradient times 1 / sqrt(values * n); first 2 mean|x| / sqrt(n)."""

    def quantise(self, x: Tensor, alpha: Tensor) -> Tensor:
        return super().quantise(x, scaled_gradient(alpha, (x[0].numel() * self.n) ** -0.5))

    def batch_range(self, x: Tensor) -> Tensor:
        return 2 * x.abs().mean() * self.n**0.5


# -- weights -----------------------------------------------------------------------------------------------------------


class MaxAbsWeight(nn.Module):
    """The step is max|W| / n at every update, with no gradient through it."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.n = largest_code(bits)

    def forward(self, W: Tensor) -> Tensor:
        step = self.step_of(W)
        return rounded(W / step) * step

    def step_of(self, W: Tensor) -> Tensor:
        """The step of the grid that W is rounded to."""
        return (W.detach().abs().max() + 1e-8) / self.n


class DoReFaWeight(nn.Module):
    """tanh(W) over its largest value on 2^b levels in [-1, 1] (Zhou et al., 1606.06160), times max|W| at the start.

    The paper's norms undo its scale of 1; networks without norms need their own. Its grid has no 0; with `zero` it is
    -n..n, so that int8 can hold it (ours).
    """

    def __init__(self, bits: int, W: Tensor, zero: bool = False) -> None:
        super().__init__()
        self.n = 2 * largest_code(bits) if zero else largest_code(bits, signed=False)  # steps from end to end
        self.scale = float(W.detach().abs().max())

    def forward(self, W: Tensor) -> Tensor:
        largest = W.tanh().abs().max()
        largest = torch.where(largest > 0, largest, math.tanh(self.scale) or 1.0)  # weights that begin at 0
        squeezed = W.tanh() / (2 * largest) + 0.5  # in [0, 1]
        return self.scale * (2 * rounded(squeezed * self.n) / self.n - 1)

    def step_of(self, W: Tensor) -> Tensor:
        """The step of the grid with `zero`."""
        return torch.full_like(W.flatten()[0], 2 * self.scale / self.n)


class LSQWeight(nn.Module):
    """LSQ's learned step on a weight."""

    def __init__(self, bits: int, W: Tensor) -> None:
        super().__init__()
        self.n = largest_code(bits)
        self.step = nn.Parameter((2 * W.detach().abs().mean() / self.n**0.5).view(1))

    def forward(self, W: Tensor) -> Tensor:
        step = floored(scaled_gradient(self.step, (W.numel() * self.n) ** -0.5), 1e-8)
        return rounded((W / step).clamp(-self.n, self.n)) * step

    def step_of(self, W: Tensor) -> Tensor:
        """The step as it is."""
        return self.step.detach().clamp(min=1e-8)[0]
