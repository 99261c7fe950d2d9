"""Attention as maps: where each layer looks, and the rollout over all of them, beside fresh weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..core.graph.operators import called
from ..core.graph.tracing import module_of, reached, trace
from ..core.task import evaluating
from ..ui import Control, Explorer, Frame, raster
from .activations import as_images, as_taken
from .atlas import span
from .attribution import correlation
from .concepts import with_fresh_weights
from .tokens import EXTRA, tracked

ROLLOUT = "rollout"
Grid = tuple[int, int]  # rows and columns of patches
_PRODUCTS = ("matmul", "bmm", "einsum")


def attention(model: nn.Module, x: Tensor) -> list[Tensor]:
    """How each layer of attention weighs its tokens, in the order in which they run: (N, heads, tokens, tokens).

    x is (N, C, H, W). Row i is what token i takes of each token, and sums to 1. Read in eval mode from a traced copy:
    of `scaled_dot_product_attention`, and of a softmax that a product reads. Attention in windows gives them as further
    examples. ValueError in one line for a model without attention, and for one that cannot be traced.
    """
    return _read(model, as_images(x))[0]


def rollout(model: nn.Module, x: Tensor, *, token: int | None = None, grid: Grid | None = None) -> Tensor:
    """How much of each patch reaches a token through all layers (Abnar and Zuidema, ACL 2020): (N, h, w).

    A layer is the mean A of its heads and the residual stream beside it, 0.5 A + 0.5 I with rows that sum to 1; the
    layers are multiplied. `token` is the one whose row is read: left out, the first where there are tokens without a
    patch (the class token), else the mean of all rows. Tokens without a patch are left out of the map, so that it sums
    to less than 1. `grid` are the rows and columns of patches, left out those of the convolution that made them.
    ValueError for attention in windows, between other tokens, or that does not fit the grid.
    """
    x = as_images(x)
    layers, patches = _read(model, x)
    return _on_grid(_rolled(_means(layers, len(x))), _valid_grid(grid or patches, layers), token)


def attend(
    model: nn.Module, x: Tensor, *, token: int | None = None, grid: Grid | None = None, seed: int = 0
) -> Explorer:
    """An explorer of attention: a picture, where the rollout or a layer looks, and the same with fresh weights.

    What looks alike in both shows how tokens lie, not what the network has learned. Arguments as in `rollout`.
    """
    x = as_images(x)
    by_net: list[dict[str, np.ndarray]] = []
    for net in (model, with_fresh_weights(model, seed)):
        layers, of_convolution = _read(net, x)
        patches, means = _valid_grid(grid or of_convolution, layers), _means(layers, len(x))
        weights = {ROLLOUT: _rolled(means), **{f"layer {k}": layer for k, layer in enumerate(means)}}
        by_net.append({name: _on_grid(A, patches, token).float().cpu().numpy() for name, A in weights.items()})
    images, extra = x.float().cpu().numpy(), _extra(layers, patches)
    low, high = span(images)

    def draw(layer: str, image: int = 0) -> Frame:
        maps = [maps[layer][image : image + 1] for maps in by_net]  # (1, h, w)
        parts = [raster.photo(images[image], f"picture {image}", low, high, longest=200)]
        for title, shown in zip((f"{layer}: this network", "control: fresh weights"), maps, strict=True):
            parts.append(raster.grid(shown, title, "attention", longest=200, scale=raster.Scale.of(shown)))
        facts: dict[str, str | int] = {
            "read": _name(token, extra),
            "tokens without a patch": extra,
            "on patches": f"{maps[0].sum():.0%} of the attention",
            "correlation with control": correlation(*(shown.ravel() for shown in maps)),
        }
        return Frame("".join(parts), facts)

    controls = {"layer": Control(list(by_net[0]))}
    if len(x) > 1:
        controls["image"] = Control(range(len(x)), label="picture")
    return Explorer(draw, controls, title=f"{type(model).__name__}: where its tokens look")


def _read(model: nn.Module, x: Tensor) -> tuple[list[Tensor], Grid | None]:
    """The weights of all attention, and the grid of the patches that the last of it is about."""
    x = as_taken(model, x)
    graph = trace(model, x[:1])
    with tracked(graph) as axes, torch.no_grad(), evaluating(graph):
        reader = _Reader(graph)
        reader.run(x)
    if not reader.layers:
        raise ValueError(f"{type(model).__name__} has no attention between tokens: this needs a transformer")
    return reader.layers, axes.grid


class _Reader(fx.Interpreter):
    """Runs a graph and keeps the weights of its attention."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.layers: list[Tensor] = []

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        if called(n) == "scaled_dot_product_attention":
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            self.layers.append(_weights(*args, **kwargs))
        elif _is_attention(n) and isinstance(output, Tensor) and output.ndim > 2:
            self.layers.append(output)
        return output


def _weights(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Tensor:
    """The weights of an attention: what it gives where each token's value is a unit vector of its own."""
    unit = torch.eye(key.shape[-2], dtype=value.dtype, device=value.device)
    return F.scaled_dot_product_attention(query, key, unit.expand(*value.shape[:-1], -1), *rest, **named)


def _is_attention(node: fx.Node) -> bool:
    """Whether a node is a softmax that a product of matrices reads, as it is or through a dropout."""
    if called(node) != "softmax" and not isinstance(module_of(node), nn.Softmax):
        return False

    def passes(user: fx.Node) -> bool:
        return "dropout" in (called(user) or type(module_of(user)).__name__).lower()

    behind = reached(node, lambda present: present.users if present is node or passes(present) else ())
    return any(called(user) in _PRODUCTS for user in behind)


def _means(layers: Sequence[Tensor], count: int) -> list[Tensor]:
    """The mean over heads of each layer, (N, tokens, tokens); ValueError where not every token sees every other."""
    size = layers[-1].shape[-1]
    for A in layers:
        if A.shape[0] != count or A.ndim not in (3, 4) or A.shape[-2:] != (size, size):
            raise ValueError(
                f"a layer of attention weighs {tuple(A.shape)} for {count} pictures, the last {size} tokens: maps need "
                "layers in which all tokens of a picture see one another"
            )
    return [A.mean(1) if A.ndim == 4 else A for A in layers]


def _rolled(means: Sequence[Tensor]) -> Tensor:
    """The product of all layers, each with the residual stream beside it: (N, tokens, tokens)."""
    unit = torch.eye(means[0].shape[-1], dtype=means[0].dtype, device=means[0].device)
    rolled = unit.expand_as(means[0])
    for A in means:
        A_hat = 0.5 * A + 0.5 * unit
        rolled = A_hat / A_hat.sum(-1, keepdim=True) @ rolled
    return rolled


def _extra(layers: Sequence[Tensor], grid: Grid) -> int:
    return layers[-1].shape[-1] - grid[0] * grid[1]


def _valid_grid(grid: Grid | None, layers: Sequence[Tensor]) -> Grid:
    """The grid; ValueError where there is none, or the tokens do not fit it."""
    if grid is None or not 0 <= _extra(layers, grid) <= EXTRA:
        tokens = layers[-1].shape[-1]
        raise ValueError(f"{tokens} tokens do not fit patches of {grid}: give grid=(rows, columns) of the patches")
    return grid


def _on_grid(A: Tensor, grid: Grid, token: int | None) -> Tensor:
    """The row of a token as a map of the patches: (N, tokens, tokens) -> (N, h, w)."""
    size = A.shape[-1]
    if token is not None and not (isinstance(token, int) and 0 <= token < size):
        raise ValueError(f"token={token!r}: give the number of a token, 0 to {size - 1}")
    extra = size - grid[0] * grid[1]
    row = A.mean(1) if token is None and not extra else A[:, token or 0]
    return row[:, extra:].unflatten(1, grid)


def _name(token: int | None, extra: int) -> str:
    """Which row of the weights is shown."""
    if token is not None:
        return f"token {token}"
    return "the first token (class)" if extra else "the mean of all tokens"
