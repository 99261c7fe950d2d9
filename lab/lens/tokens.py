"""Tokens as maps: which axis holds a layer's filters, and where in the picture its tokens lie."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ..core.graph.operators import CONVS, INSTANCE_NORMS, NORMS, TRANSPOSED

EXTRA = 16  # the most tokens without a patch: a class token, a distillation token, registers
_CHANNELS_FIRST = (
    *CONVS, *TRANSPOSED, *NORMS, *INSTANCE_NORMS, nn.GroupNorm, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)  # fmt: skip


class Axes:
    """What the layers of a model that have run tell about those that follow.

    A linear layer has its filters on the last axis, a convolution on axis 1; a layer that keeps the shape keeps the
    axis. `grid` is the height and width of the latest map of a convolution: the patches of the tokens behind it.
    """

    def __init__(self) -> None:
        self.grid: tuple[int, int] | None = None
        self._axis: dict[tuple[int, ...], int] = {}

    def at_present(self) -> "Axes":
        """The same with the present grid; what is learned later of shapes holds for it too."""
        seen = Axes()
        seen.grid, seen._axis = self.grid, self._axis
        return seen

    def note(self, module: nn.Module, output: Any) -> None:
        """Learn from what a layer has given."""
        if not isinstance(output, torch.Tensor) or output.ndim < 3:
            return
        if isinstance(module, _CHANNELS_FIRST):
            self._axis[tuple(output.shape[1:])] = 1
            if output.ndim == 4:
                self.grid = output.shape[2], output.shape[3]
        elif isinstance(module, nn.Linear) or _over_last(module, output):
            self._axis[tuple(output.shape[1:])] = -1

    def of(self, output: torch.Tensor) -> int:
        """The axis of a layer's filters: 1 or -1. Where nothing is known, three axes are (N, tokens, filters)."""
        return self._axis.get(tuple(output.shape[1:]), -1 if output.ndim == 3 else 1)

    def placed(self, output: torch.Tensor) -> torch.Tensor:
        """What a layer gives with its filters on axis 1: tokens as maps (N, filters, h, w), without those of no patch.

        Anything whose tokens have no places comes back as it is.
        """
        if output.ndim < 3 or self.of(output) == 1:
            return output
        if output.ndim == 3 and (extra := self.extra(output)) is not None and self.grid is not None:
            return output[:, extra:].unflatten(1, self.grid).movedim(-1, 1)
        return output.movedim(-1, 1) if output.ndim == 4 else output

    def extra(self, output: torch.Tensor) -> int | None:
        """How many of the tokens (N, tokens, filters) stand for no patch; None where they do not fit the grid."""
        if output.ndim != 3 or self.of(output) == 1 or self.grid is None:
            return None
        extra = output.shape[1] - self.grid[0] * self.grid[1]
        return extra if 0 <= extra <= EXTRA else None


def _over_last(module: nn.Module, output: torch.Tensor) -> bool:
    """Whether a module norms the last axis; some layer norms for maps turn it to axis 1 and back."""
    sizes = tuple(getattr(module, "normalized_shape", ()))
    return (
        len(sizes) == 1 and sizes == output.shape[-1:] and (type(module) is nn.LayerNorm or sizes != output.shape[1:2])
    )


@contextmanager
def tracked(model: nn.Module) -> Iterator[Axes]:
    """For a `with` block, where filters and tokens of the model's layers lie as it runs."""
    axes = Axes()
    with ExitStack() as hooks:
        for module in model.modules():
            if not any(module.children()):
                handle = module.register_forward_hook(lambda module, _, output: axes.note(module, output))
                hooks.callback(handle.remove)
        yield axes


def input_maps(model: nn.Module, layer: str, x: torch.Tensor) -> torch.Tensor:
    """What a layer reads first when the model is called on x, with its filters on axis 1, tokens as maps.

    In the mode in which the model is; without gradients.
    """
    read: list[torch.Tensor] = []
    with tracked(model) as axes:
        note = lambda _, inputs: read.append(axes.placed(inputs[0]))  # noqa: E731
        hook = model.get_submodule(layer).register_forward_pre_hook(note)
        try:
            with torch.no_grad():
                model(x)
        finally:
            hook.remove()
    return read[0]


class _Given(nn.Module):
    """A layer whose output passes through `point` with its filters on axis 1, tokens as maps."""

    layer: Any

    def __init__(self, layer: nn.Module, axes: Axes) -> None:
        super().__init__()
        self.layer, self.point, self.axes = layer, nn.Identity(), axes

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        output = self.layer(*args, **kwargs)
        maps = self.point(self.axes.placed(output))
        if self.axes.of(output) == 1:
            return maps
        if output.ndim == 4:
            return maps.movedim(1, -1)
        return torch.cat([output[:, : self.axes.extra(output)], maps.flatten(2).transpose(1, 2)], 1)


@contextmanager
def maps_given(model: nn.Module, layer: str) -> Iterator[nn.Module]:
    """For a `with` block, a module of the model through which a layer's maps go, (N, filters, h, w)."""
    module = model.get_submodule(layer)
    with tracked(model) as axes:
        given = _Given(module, axes)
        model.set_submodule(layer, given)
        try:
            yield given.point
        finally:
            model.set_submodule(layer, module)
