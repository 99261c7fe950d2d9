"""Which numbers a quantised tensor may hold, and which modules of a network round to them.

A quantiser is any module with `qparams()`; a layer whose weight lies on a grid has `int_repr()`, or a tensor `step`
beside a weight of integer multiples of it. The ONNX writer, the engines' checks and the methods meet here.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class QParams:
    """The values qmin * scale, ..., qmax * scale; `zero_point` is the byte that stands for the value 0."""

    scale: float
    qmin: int
    qmax: int
    zero_point: int

    @classmethod
    def from_max(cls, alpha: float, qmax: int, signed: bool) -> "QParams":
        """The grid -qmax..qmax times alpha / qmax, or 0..qmax where nothing is negative."""
        return cls(alpha / qmax, -qmax * signed, qmax, 128 * signed)

    @classmethod
    def from_min_max(cls, low: float, high: float, bits: int) -> "QParams":
        """The grid of all 2^bits codes over a range, which is widened to hold 0 and shifted so that 0 is a code."""
        low, high, qmax = min(low, 0.0), max(high, 0.0), 2**bits - 1
        scale = (high - low) / qmax or 1.0
        zero_point = round(-low / scale)
        return cls(scale, -zero_point, qmax - zero_point, zero_point)

    @property
    def bits(self) -> int:
        """Bits that a code takes."""
        return (self.qmax - self.qmin).bit_length()

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the largest value."""
        return self.qmin * self.scale, self.qmax * self.scale

    def to_8bit(self) -> "QParams":
        """The grid of 8 bits over the same values, which any 8-bit kernel can write; itself if it has 8 bits."""
        if self.bits == 8:
            return self
        if self.qmin == -self.qmax:
            return QParams(self.scale * self.qmax / 127, -127, 127, 128)
        steps = self.qmax - self.qmin
        zero_point = round(-self.qmin * 255 / steps)
        return QParams(self.scale * steps / 255, -zero_point, 255 - zero_point, zero_point)

    def to_int8(self) -> "QParams":
        """The grid on signed bytes with zero point 0; where its codes are too large for them, one of the same reach."""
        if -128 <= self.qmin and self.qmax <= 127:
            return replace(self, zero_point=0)
        low, high = self.range
        return QParams(max(-low, high) / 127, -127 * (low < 0), 127, 0)


class FixedQuantiser(nn.Module):
    """A tensor rounded to a grid that no longer changes; without gradient to the grid, straight through inside it."""

    step: Tensor  # (), the scale; stored outcomes hold it under this name

    def __init__(self, qparams: QParams) -> None:
        super().__init__()
        self.qmin, self.qmax, self.zero_point = qparams.qmin, qparams.qmax, qparams.zero_point
        self.register_buffer("step", torch.tensor(qparams.scale))

    def forward(self, x: Tensor) -> Tensor:
        clamped = x.clamp(self.qmin * self.step, self.qmax * self.step)
        return clamped + ((x / self.step).round_().clamp_(self.qmin, self.qmax).mul_(self.step) - clamped).detach()

    def qparams(self) -> QParams:
        """The grid as numbers."""
        return QParams(float(self.step), self.qmin, self.qmax, self.zero_point)

    def extra_repr(self) -> str:
        return f"{self.qparams()}"


def is_quantiser(module: Any) -> bool:
    """Whether a module rounds what it reads to a grid."""
    return isinstance(module, nn.Module) and hasattr(module, "qparams")


def int_repr(layer: Any) -> tuple[Tensor, Tensor] | None:
    """A layer's weight as int8 codes and the step of their grid, () or one a channel; None where it is float."""
    if hasattr(layer, "int_repr"):
        return layer.int_repr()
    step = getattr(layer, "step", None)
    if not isinstance(step, Tensor) or not hasattr(layer, "weight"):
        return None
    return (layer.weight.detach() / step).round().to(torch.int8), step


@torch.no_grad()
def set_int_repr(layer: nn.Module, int_weights: Tensor, step: Tensor) -> None:
    """Make a plain layer's weight `int_weights * step`, and remember the step: () or one a channel."""
    layer.register_buffer("step", step.detach().clone())
    layer.weight = nn.Parameter(int_weights.to(step) * step, requires_grad=False)
