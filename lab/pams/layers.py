"""Where PAMS learns: the quantiser of a tensor with its alpha, and layers with rounded weights."""

from typing import Any

import torch
from torch import Tensor, nn

from ..core.quantisation.quantisers import RangeQuantiser
from . import equations as eq

FIRST_ALPHA = 10.0  # the release's, before any data


class _Quantise(torch.autograd.Function):
    """Card (4) with the gradients of Card (6) and (7) in closed form: one tensor is kept instead of five."""

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


class Quantiser(RangeQuantiser):
    """PAMS's learned range: calibrated without a clamp, then trained by the written gradients; from 0 behind a ReLU.

    `last_batch` forgets all batches but the present one, as the release does, and `track_max` keeps the largest value
    of all, as for pictures. Shapes stay.
    """

    def __init__(self, bits: int, signed: bool = True, last_batch: bool = False, track_max: bool = False) -> None:
        super().__init__(bits, signed)
        self.last_batch, self.track_max = last_batch, track_max
        nn.init.constant_(self.alpha, FIRST_ALPHA)

    def forward(self, x: Tensor) -> Tensor:
        if self.calibrating and self.training:
            self.observe(x)
            return x + (eq.quantise_unclamped(x, self.max_value(), self.n) - x).detach()
        return self.quantise(x, self.max_value())

    def quantise(self, x: Tensor, alpha: Tensor) -> Tensor:
        return _Quantise.apply(x, alpha, self.n, self.signed)

    def batch_range(self, x: Tensor) -> Tensor:
        return eq.statistic(x)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        seen = int(self.seen)
        if self.track_max:
            self.alpha.copy_(torch.maximum(x.abs().max(), self.alpha * (seen > 0)))
        else:
            M = self.batch_range(x)
            self.alpha.copy_(M if self.last_batch else eq.moving_average(self.alpha, M, seen))
        self.seen += 1


class RoundedLayer(nn.Module):
    """A layer whose weight is rounded to b bits in every forward pass, by Card (3); its bias is not.

    Once its codes are set, `weight` is what they stand for, and is used as it is.
    """

    weight: Any
    bits: int
    per_channel: bool
    step: Tensor | None

    def rounded_weight(self) -> Tensor:
        """The weight as it acts, in its shape."""
        if self.step is not None:
            return self.weight
        return eq.quantise_weight(self.weight, eq.levels(self.bits), self.per_channel)

    def int_repr(self) -> tuple[Tensor, Tensor]:
        """The weight as integers, int8 in -n..n, and the step of their grid: (1, 1, 1, 1) or (OC, 1, 1, 1)."""
        step = self.step
        if step is None:
            step = eq.weight_scale(self.weight, eq.levels(self.bits), self.per_channel)
        return (self.weight.detach() / step).round().to(torch.int8), step

    @torch.no_grad()
    def set_int_repr(self, int_weights: Tensor, step: Tensor) -> None:
        """Make the weight `int_weights * step`, on its device."""
        self.step = step.to(self.weight)
        self.weight.copy_(int_weights.to(self.weight) * self.step)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}"


class QuantisedConv2d(RoundedLayer, nn.Conv2d):
    """A convolution with a rounded weight."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.rounded_weight(), self.bias)


class QuantisedLinear(RoundedLayer, nn.Linear):
    """A linear layer with a rounded weight; its step is (1, 1) or (OC, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.rounded_weight(), self.bias)


def rounded_layer(layer: nn.Conv2d | nn.Linear, bits: int, per_channel: bool = False) -> RoundedLayer:
    """The layer with its weight rounded; both share the same weights."""
    made: RoundedLayer = object.__new__(QuantisedLinear if isinstance(layer, nn.Linear) else QuantisedConv2d)
    made.__dict__.update(layer.__dict__)
    made._parameters = dict(layer._parameters)
    made.bits, made.per_channel, made.step = bits, per_channel, None
    return made


class Taught(nn.Module):
    """A student that answers as itself, whatever loss calls it; its teacher is asked about the same inputs.

    `student` and `teacher` give their output and the feature F (N, C, H, W) that is compared.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output, self.feature = self.student(*args, **kwargs)
        self.inputs = args, kwargs
        return output

    def features(self) -> tuple[Tensor, Tensor]:
        """F of the student in its last call, and of the teacher there, without gradient."""
        args, kwargs = self.inputs
        with torch.no_grad():
            return self.feature, self.teacher(*args, **kwargs)[1]
