"""What integers say: the grid that a tensor's values lie on, and which modules of a network have one.

A quantiser is any module with `grid()`; a layer whose weight lies on a grid has `codes()`, or a tensor `step` beside a
weight that is whole multiples of it. The ONNX writer, the engines' checks and the methods meet here.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Grid:
    """The values low * step, ..., high * step; `zero` is the unsigned byte that stands for the value 0."""

    step: float
    low: int
    high: int
    zero: int

    @property
    def bits(self) -> int:
        """Bits that a code takes."""
        return (self.high - self.low).bit_length()

    def wide(self) -> "Grid":
        """The grid of 8 bits over the same values, which any 8-bit kernel can write; itself if it has 8 bits."""
        if self.bits == 8:
            return self
        reach = self.step * (self.high - self.low)
        if self.low == -self.high:
            return Grid(self.step * self.high / 127, -127, 127, 128)
        zero = round(-self.low * 255 / (self.high - self.low))
        return Grid(reach / 255, -zero, 255 - zero, zero)


def between(low: float, high: float, bits: int) -> Grid:
    """The grid of all 2^bits codes over a range, which is widened to hold 0 and shifted so that 0 is a code."""
    low, high, n = min(low, 0.0), max(high, 0.0), 2**bits - 1
    step = (high - low) / n or 1.0
    zero = round(-low / step)
    return Grid(step, -zero, n - zero, zero)


class FixedQuantiser(nn.Module):
    """A tensor rounded to a grid that no longer changes; without gradient to the grid, straight through inside it."""

    step: Tensor

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.low, self.high, self.zero = grid.low, grid.high, grid.zero
        self.register_buffer("step", torch.tensor(grid.step))

    def forward(self, x: Tensor) -> Tensor:
        clamped = x.clamp(self.low * self.step, self.high * self.step)
        return clamped + ((x / self.step).round_().clamp_(self.low, self.high).mul_(self.step) - clamped).detach()

    def grid(self) -> Grid:
        return Grid(float(self.step), self.low, self.high, self.zero)

    def extra_repr(self) -> str:
        return f"{self.grid()}"


def is_quantiser(module: Any) -> bool:
    """Whether a module rounds what it reads to a grid."""
    return isinstance(module, nn.Module) and hasattr(module, "grid")


def codes(layer: Any) -> tuple[Tensor, Tensor] | None:
    """A layer's weight as int8 codes and the step of their grid, () or one a channel; None where it is float."""
    if hasattr(layer, "codes"):
        return layer.codes()
    step = getattr(layer, "step", None)
    if step is None or not hasattr(layer, "weight"):
        return None
    return (layer.weight.detach() / step).round().to(torch.int8), step


@torch.no_grad()
def set_codes(layer: nn.Module, whole: Tensor, step: Tensor) -> None:
    """Make a plain layer's weight `whole * step`, and remember the step."""
    layer.register_buffer("step", step.detach().clone())
    layer.weight = nn.Parameter(whole.to(step) * step, requires_grad=False)
