"""Quantisers of other papers, to stand beside a method's own or to be chosen from.

Max-abs, least squares, DoReFa, PACT, LSQ, LSQ+, DSQ, TQT and PAMS; ranges that are read from data and no longer change
are in `ranges`.

An activation's quantiser is a module with `calibrating`, during which it follows the data and rounds nothing; a
weight's is a parametrization (`torch.nn.utils.parametrize`). All use the grid -n..n times a step, or 0..2^b - 1 for a
tensor that holds nothing negative; n = 2^(b-1) - 1. Shapes stay.
"""

import math

import torch
from torch import Tensor, nn

from .grids import Grid


def levels(bits: int, signed: bool = True) -> int:
    """The largest code of a grid."""
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


def soft_rounded(x: Tensor, sharp: float = 3.0) -> Tensor:
    """The nearest integer; the gradient is that of a tanh between each two, 1 on average."""
    middle = x.detach().floor() + 0.5
    soft = middle + torch.tanh(sharp * (x - middle)) / (2 * math.tanh(sharp / 2))
    return soft + (x.round() - soft).detach()


def power_of_two(log: Tensor) -> Tensor:
    """2 to the next integer above, with the gradient of 2^log."""
    return torch.exp2(log + (log.ceil() - log).detach())


# -- activations -------------------------------------------------------------------------------------------------------


class MaxAbs(nn.Module):
    """A fixed range: the mean over the calibration of each picture's max|x|. The gradient is 1 inside, 0 outside."""

    def __init__(self, bits: int, signed: bool = True) -> None:
        super().__init__()
        self.bits, self.signed, self.n = bits, signed, levels(bits, signed)
        self.alpha = nn.Parameter(torch.ones(1), requires_grad=False)
        self.calibrating, self.seen = False, 0

    def forward(self, x: Tensor) -> Tensor:
        if self.calibrating and self.training:
            self._follow(x.detach())
            return x
        return self.quantise(x, self.largest())

    def largest(self) -> Tensor:
        """The largest value, above 0."""
        return floored(self.alpha, 1e-6)

    def grid(self) -> Grid:
        """Where the values lie."""
        return Grid(float(self.largest().detach()) / self.n, -self.n * self.signed, self.n, 128 * self.signed)

    def quantise(self, x: Tensor, alpha: Tensor) -> Tensor:
        """x rounded within the range of alpha."""
        return rounded(self.clamped(x, alpha) * (self.n / alpha)) * (alpha / self.n)

    def clamped(self, x: Tensor, alpha: Tensor) -> Tensor:
        """x within the range, from 0 where it is not signed."""
        return torch.minimum(torch.maximum(x, -alpha if self.signed else torch.zeros_like(alpha)), alpha)

    def choice(self, x: Tensor) -> Tensor:
        """The alpha that one batch would have."""
        return x.abs().flatten(1).amax(1).mean()

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        self.seen += 1
        self.alpha.add_((self.choice(x) - self.alpha) / self.seen)


class LeastSquares(MaxAbs):
    """A fixed range: of forty shares of max|x| the one that leaves the smallest squared error, mean of the batches."""

    def choice(self, x: Tensor) -> Tensor:
        alphas = x.abs().max().clamp(min=1e-6) * torch.linspace(0.05, 1, 40).to(x)
        errors = torch.stack([(self.quantise(x, alpha) - x).square().mean() for alpha in alphas])
        return alphas[errors.argmin()]


class PACT(MaxAbs):
    """A learned range (Choi et al., 1805.06085): alpha's gradient is the sign of what was clamped, 0 inside."""

    def __init__(self, bits: int, signed: bool = True) -> None:
        super().__init__(bits, signed)
        self.alpha.requires_grad_(True)

    def quantise(self, x: Tensor, alpha: Tensor) -> Tensor:
        y = self.clamped(x, alpha)
        fixed = alpha.detach()
        return y + ((y * (self.n / fixed)).round() * (fixed / self.n) - y).detach()


class LSQ(MaxAbs):
    """A learned step (Esser et al., 1902.08153), its gradient times 1 / sqrt(values * n); first 2 mean|x| / sqrt(n)."""

    def __init__(self, bits: int, signed: bool = True) -> None:
        super().__init__(bits, signed)
        self.alpha.requires_grad_(True)  # n times the step

    def quantise(self, x: Tensor, alpha: Tensor) -> Tensor:
        return super().quantise(x, scaled_gradient(alpha, (x[0].numel() * self.n) ** -0.5))

    def choice(self, x: Tensor) -> Tensor:
        return 2 * x.abs().mean() * self.n**0.5


class PAMS(MaxAbs):
    """A learned range (Li et al., 2011.04212): alpha is clamp and scale, so that it has a gradient inside too."""

    def __init__(self, bits: int, signed: bool = True) -> None:
        super().__init__(bits, signed)
        self.alpha.requires_grad_(True)


class DoReFa(MaxAbs):
    """The range is 1 (Zhou et al., 1606.06160), whatever the data say."""

    def choice(self, x: Tensor) -> Tensor:
        return torch.ones_like(self.alpha[0])


class DSQ(PAMS):
    """A learned range whose rounding has the gradient of a staircase of tanh (Gong et al., 1908.05033)."""

    def quantise(self, x: Tensor, alpha: Tensor) -> Tensor:
        return soft_rounded(self.clamped(x, alpha) * (self.n / alpha)) * (alpha / self.n)


class TQT(MaxAbs):
    """A learned range that is a power of two (Jain et al., 1903.08066): alpha is its logarithm to the base 2."""

    def __init__(self, bits: int, signed: bool = True) -> None:
        super().__init__(bits, signed)
        self.alpha.requires_grad_(True)

    def largest(self) -> Tensor:
        return power_of_two(self.alpha)

    def choice(self, x: Tensor) -> Tensor:
        return super().choice(x).clamp(min=1e-6).log2()


class LSQPlus(MaxAbs):
    """LSQ with a learned lower end (Bhalgat et al., 2004.09576) in whole steps, so that 0 stays a code (ours)."""

    def __init__(self, bits: int, signed: bool = True) -> None:
        super().__init__(bits, signed)
        self.n = levels(bits, signed=False)
        self.alpha.requires_grad_(True)  # n times the step
        self.lower = nn.Parameter(torch.zeros(1), requires_grad=signed)

    def quantise(self, x: Tensor, alpha: Tensor) -> Tensor:
        step = scaled_gradient(alpha, (x[0].numel() * self.n) ** -0.5) / self.n
        zero = rounded((-self.lower / step).clamp(0, self.n))
        codes = torch.minimum(torch.maximum(x / step, -zero), self.n - zero)
        return rounded(codes) * step

    def grid(self) -> Grid:
        step = float(self.largest().detach()) / self.n
        zero = round(min(max(-float(self.lower.detach()) / step, 0), self.n))
        return Grid(step, -zero, self.n - zero, zero)

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        self.seen += 1
        low = x.flatten(1).amin(1).mean().clamp(max=0) if self.signed else x.new_zeros(())
        high = x.flatten(1).amax(1).mean().clamp(min=0)
        self.lower.add_((low - self.lower) / self.seen)
        self.alpha.add_((high - low - self.alpha) / self.seen)


# -- weights -----------------------------------------------------------------------------------------------------------


class MaxAbsWeight(nn.Module):
    """The step is max|W| / n at every update, with no gradient through it."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.n = levels(bits)

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
        self.n = 2 * levels(bits) if zero else levels(bits, signed=False)  # steps from end to end
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
        self.n = levels(bits)
        self.step = nn.Parameter((2 * W.detach().abs().mean() / self.n**0.5).view(1))

    def forward(self, W: Tensor) -> Tensor:
        step = floored(scaled_gradient(self.step, (W.numel() * self.n) ** -0.5), 1e-8)
        return rounded((W / step).clamp(-self.n, self.n)) * step

    def step_of(self, W: Tensor) -> Tensor:
        """The step as it is."""
        return self.step.detach().clamp(min=1e-8)[0]


class LSQPlusWeight(LSQWeight):
    """LSQ's step on a weight, first as LSQ+ sets it: from mean and three standard deviations."""

    def __init__(self, bits: int, W: Tensor) -> None:
        super().__init__(bits, W)
        W = W.detach()
        far = torch.maximum((W.mean() - 3 * W.std(correction=0)).abs(), (W.mean() + 3 * W.std(correction=0)).abs())
        self.step.data.copy_(far / self.n)


class RangeWeight(nn.Module):
    """A learned range on a weight; the quantiser of activations `kind` does it: DSQ, TQT or PAMS."""

    def __init__(self, kind: type[MaxAbs], bits: int, W: Tensor) -> None:
        super().__init__()
        self.inner = kind(bits)
        self.inner.alpha.data.copy_(self.inner.choice(W.detach().flatten()[None]))

    def forward(self, W: Tensor) -> Tensor:
        return self.inner(W)

    def step_of(self, W: Tensor) -> Tensor:
        """The step as it is."""
        return self.inner.largest().detach()[0] / self.inner.n
