"""Quantisers that only DQSS chooses from; those that PAMS is measured beside too are in `core.quantisation.quantisers`.

DoReFa's activations, DSQ, TQT and LSQ+, and a learned range on a weight. Shapes stay.
"""

import math

import torch
from torch import Tensor, nn

from ..core.quantisation.qparams import QParams
from ..core.quantisation.quantisers import LSQWeight, RangeQuantiser, largest_code, rounded, scaled_gradient


def soft_rounded(x: Tensor, sharp: float = 3.0) -> Tensor:
    """The nearest integer; the gradient is that of a tanh between each two, 1 on average."""
    middle = x.detach().floor() + 0.5
    soft = middle + torch.tanh(sharp * (x - middle)) / (2 * math.tanh(sharp / 2))
    return soft + (x.round() - soft).detach()


def power_of_two(log: Tensor) -> Tensor:
    """2 to the next integer above, with the gradient of 2^log."""
    return torch.exp2(log + (log.ceil() - log).detach())


# -- activations -------------------------------------------------------------------------------------------------------


class DoReFa(RangeQuantiser):
    """The range is 1 (Zhou et al., 1606.06160), whatever the data say."""

    learned = False

    def batch_range(self, x: Tensor) -> Tensor:
        return torch.ones_like(self.alpha[0])


class DSQ(RangeQuantiser):
    """A learned range whose rounding has the gradient of a staircase of tanh (Gong et al., 1908.05033)."""

    def quantise(self, x: Tensor, alpha: Tensor) -> Tensor:
        return soft_rounded(self.clamped(x, alpha) * (self.n / alpha)) * (alpha / self.n)


class TQT(RangeQuantiser):
    """A learned range that is a power of two (Jain et al., 1903.08066): alpha is its logarithm to the base 2."""

    def max_value(self) -> Tensor:
        return power_of_two(self.alpha)

    def batch_range(self, x: Tensor) -> Tensor:
        return super().batch_range(x).clamp(min=1e-6).log2()


class LSQPlus(RangeQuantiser):
    """LSQ with a learned lower end (Bhalgat et al., 2004.09576) in whole steps, so that 0 stays a code (ours)."""

    def __init__(self, bits: int, signed: bool = True) -> None:
        super().__init__(bits, signed)
        self.n = largest_code(bits, signed=False)
        self.lower = nn.Parameter(torch.zeros(1), requires_grad=signed)

    def quantise(self, x: Tensor, alpha: Tensor) -> Tensor:
        step = scaled_gradient(alpha, (x[0].numel() * self.n) ** -0.5) / self.n
        zero_point = rounded((-self.lower / step).clamp(0, self.n))
        codes = torch.minimum(torch.maximum(x / step, -zero_point), self.n - zero_point)
        return rounded(codes) * step

    def qparams(self) -> QParams:
        step = float(self.max_value().detach()) / self.n
        zero_point = round(min(max(-float(self.lower.detach()) / step, 0), self.n))
        return QParams(step, -zero_point, self.n - zero_point, zero_point)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        self.seen += 1
        low = x.flatten(1).amin(1).mean().clamp(max=0) if self.signed else x.new_zeros(())
        high = x.flatten(1).amax(1).mean().clamp(min=0)
        self.lower.add_((low - self.lower) / int(self.seen))
        self.alpha.add_((high - low - self.alpha) / int(self.seen))


# -- weights -----------------------------------------------------------------------------------------------------------


class LSQPlusWeight(LSQWeight):
    """LSQ's step on a weight, first as LSQ+ sets it: from mean and three standard deviations."""

    def __init__(self, bits: int, W: Tensor) -> None:
        super().__init__(bits, W)
        W = W.detach()
        far = torch.maximum((W.mean() - 3 * W.std(correction=0)).abs(), (W.mean() + 3 * W.std(correction=0)).abs())
        self.step.data.copy_(far / self.n)


class RangeWeight(nn.Module):
    """A learned range on a weight; the quantiser of activations does it: DSQ's or TQT's."""

    def __init__(self, quantiser: type[RangeQuantiser], bits: int, W: Tensor) -> None:
        super().__init__()
        self.inner = quantiser(bits)
        self.inner.alpha.data.copy_(self.inner.batch_range(W.detach().flatten()[None]))

    def forward(self, W: Tensor) -> Tensor:
        return self.inner(W)

    def step_of(self, W: Tensor) -> Tensor:
        """The step as it is."""
        return self.inner.max_value().detach()[0] / self.inner.n
