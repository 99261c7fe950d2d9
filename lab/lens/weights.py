"""Weights as pictures: first kernels in colour, others as grids of kernels, 1 x 1 and linear layers as a matrix."""

from collections.abc import Sequence

import numpy as np
from torch import nn

from ..core.models import checked
from ..ui import Control, Explorer, Frame, raster, svg
from .activations import named

_DOWN, _ACROSS = 16, 16  # filters and inputs on one page of kernels


def weights(model: nn.Module, layers: Sequence[str] | str | None = None) -> Explorer:
    """An explorer of the weights of convolutions and linear layers, one scale a layer, zero in its middle.

    Kernels on three inputs are shown in colour (grey is zero), others as a grid of filters (down) by inputs (across),
    16 x 16 a page; 1 x 1 and linear layers as one matrix, where a block too fine for the screen shows its strongest
    weight. ValueError for a layer without such weights.
    """
    by_layer = kernels(model, layers)
    down = max(-(-kernel.shape[0] // _DOWN) for kernel in by_layer.values())
    across = max(-(-kernel.shape[1] // _ACROSS) if _is_grid(kernel) else 1 for kernel in by_layer.values())

    def draw(layer: str, down: int = 1, across: int = 1) -> Frame:
        kernel = by_layer[layer]
        scale = raster.Scale(-float(abs(kernel).max() or 1), float(abs(kernel).max() or 1))
        facts = {"shape": " x ".join(map(str, kernel.shape)), "zeros": f"{(kernel == 0).mean():.1%}"}
        if _is_colour(kernel):
            image = _colour(kernel, layer, scale)
        elif _is_grid(kernel):
            image = _kernels(kernel, layer, scale, down - 1, across - 1)
        else:
            matrix = kernel.reshape(1, *kernel.shape[:2])
            side = int(min(480, max(60, 6 * max(matrix.shape[1:]))))
            title = f"{layer}: {matrix.shape[1]} outputs (down) by {matrix.shape[2]} inputs (across)"
            image = raster.grid(matrix, title, "weight", longest=side, scale=scale)
        return Frame(image, facts)

    controls = {"layer": Control(list(by_layer))}
    if down > 1:
        controls["down"] = Control(range(1, down + 1), label="page of filters")
    if across > 1:
        controls["across"] = Control(range(1, across + 1), label="page of inputs")
    return Explorer(draw, controls, title=f"{type(model).__name__}: weights")


def kernels(model: nn.Module, layers: Sequence[str] | str | None = None) -> dict[str, np.ndarray]:
    """The weights by layer: (filters, inputs, k, k) of convolutions, (outputs, inputs) of linear layers."""
    modules = dict(checked(model).named_modules())
    by_layer = {}
    for name in named(model, layers) if layers is not None else modules:
        module = modules[name]
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            weight = module.weight.detach().float().cpu().numpy()
            swap = isinstance(module, nn.ConvTranspose2d) and module.groups == 1
            by_layer[name or type(model).__name__] = weight.swapaxes(0, 1) if swap else weight
        elif layers is not None:
            kind = type(module).__name__
            raise ValueError(
                f"{name!r} is a {kind}, whose weights have no picture: name a convolution or a linear layer"
            )
    if not by_layer:
        raise ValueError(f"{type(model).__name__} has neither convolutions nor linear layers to show")
    return by_layer


def _is_grid(kernel: np.ndarray) -> bool:
    return kernel.ndim == 4 and kernel.shape[2] * kernel.shape[3] > 1 and not _is_colour(kernel)


def _is_colour(kernel: np.ndarray) -> bool:
    return kernel.ndim == 4 and kernel.shape[1] == 3 and kernel.shape[2] * kernel.shape[3] > 1


def _colour(kernel: np.ndarray, layer: str, scale: raster.Scale) -> str:
    """Kernels (filters, 3, k, k) as colour pictures: grey is zero, full red the largest weight on red."""
    columns, side, gap = 16, 40, 4
    shapes = []
    for k, weight in enumerate(kernel):
        pixels = raster.as_picture(weight, scale.low, scale.high)
        x, y = k % columns * (side + gap), svg.HEAD + k // columns * (side + gap)
        shapes.append(raster.image(raster.uri(pixels), x, y, side, side, f"filter {k}"))
    rows = -(-len(kernel) // columns)
    note = f"on red, green and blue; grey is 0, full colour {scale.high:.3g}, none {scale.low:.3g}"
    bottom = svg.HEAD + rows * (side + gap)
    shapes.append(svg.text(0, bottom + svg.BASE, note))
    width = max(min(len(kernel), columns) * (side + gap), svg.text_width(note))
    title = f"{layer}: {len(kernel)} kernels of {kernel.shape[2]} x {kernel.shape[3]}"
    return svg.document(width, bottom + svg.LINE, title, title, shapes)


def _kernels(kernel: np.ndarray, layer: str, scale: raster.Scale, down: int, across: int) -> str:
    """A page of kernels, one filter a row and one input a column; pages past the end are the last one."""
    f = min(down, (kernel.shape[0] - 1) // _DOWN) * _DOWN
    i = min(across, (kernel.shape[1] - 1) // _ACROSS) * _ACROSS
    page = kernel[f : f + _DOWN, i : i + _ACROSS]
    wide = page.shape[1]
    if wide == 1:  # depthwise: one input a filter, so the row is free for filters
        f, page, wide = 0, kernel[:256], 16
        title = f"{layer}: {len(page)} of {len(kernel)} kernels, one input each"
    else:
        title = f"{layer}: filters {f} to {f + page.shape[0] - 1} (down), inputs {i} to {i + wide - 1} (across)"
    maps = page.reshape(-1, *page.shape[2:])
    return raster.grid(maps, title, "weight", columns=wide, longest=24, scale=scale)
