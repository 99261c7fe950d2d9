"""Quantisers of other papers, to stand beside a method's own: max-abs, least squares, DoReFa, PACT and LSQ.

An activation's quantiser is a module with `calibrating`, during which it follows the data and rounds nothing; a
weight's is a parametrization (`torch.nn.utils.parametrize`). All use the grid -n..n times a step, or 0..2^b - 1 for a
tensor that holds nothing negative; n = 2^(b-1) - 1. Shapes stay.
"""

import torch
from torch import Tensor, nn


def levels(bits: int, signed: bool = True) -> int:
    """The largest code of a grid."""
    return 2 ** (bits - 1) - 1 if signed else 2**bits - 1


def rounded(x: Tensor) -> Tensor:
    """The nearest whole number; the gradient passes as if nothing had been rounded."""
    return x + (x.round() - x).detach()


def scaled_gradient(x: Tensor, scale: float) -> Tensor:
    """x itself, its gradient times `scale`."""
    return x * scale + (x * (1 - scale)).detach()


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
        return self.quantise(x, self.alpha.clamp(min=1e-6))

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


# -- weights -----------------------------------------------------------------------------------------------------------


class MaxAbsWeight(nn.Module):
    """The step is max|W| / n at every update, with no gradient through it."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.n = levels(bits)

    def forward(self, W: Tensor) -> Tensor:
        step = (W.detach().abs().max() + 1e-8) / self.n
        return rounded(W / step) * step


class DoReFaWeight(nn.Module):
    """tanh(W) over its largest value on 2^b levels in [-1, 1] (Zhou et al., 1606.06160), times max|W| at the start.

    The paper's norms undo its scale of 1; networks without norms need their own.
    """

    def __init__(self, bits: int, W: Tensor) -> None:
        super().__init__()
        self.n, self.scale = levels(bits, signed=False), float(W.detach().abs().max())

    def forward(self, W: Tensor) -> Tensor:
        squeezed = W.tanh() / (2 * W.tanh().abs().max()) + 0.5  # in [0, 1]
        return self.scale * (2 * rounded(squeezed * self.n) / self.n - 1)


class LSQWeight(nn.Module):
    """LSQ's learned step on a weight."""

    def __init__(self, bits: int, W: Tensor) -> None:
        super().__init__()
        self.n = levels(bits)
        self.step = nn.Parameter((2 * W.detach().abs().mean() / self.n**0.5).view(1))

    def forward(self, W: Tensor) -> Tensor:
        step = scaled_gradient(self.step, (W.numel() * self.n) ** -0.5).clamp(min=1e-8)
        return rounded((W / step).clamp(-self.n, self.n)) * step
