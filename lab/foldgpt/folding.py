"""Which blocks stay, which share their weights, and the smaller `transformers` model that comes of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.data.text import logits
from ..core.modeling_folded import LowRank, adapt, apply_fold, blocks, linears, out_in, stack, unfold
from ..core.task import evaluating
from . import equations as eq
from .configuration import LAYER_NUMBERS, keep_layers, validate_kept


@dataclass(frozen=True)
class Fold:
    """Blocks `kept` and `groups` of adjacent kept ones, by their numbers in the original; the `rank` of adapters."""

    kept: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...] = ()
    rank: int = 0

    def logical(self) -> dict[str, Any]:
        """The groups by the numbers that their layers have in the folded model, with the rank, as its config has it."""
        layer_of = {block: layer for layer, block in enumerate(self.kept)}
        return {"groups": [[layer_of[block] for block in group] for group in self.groups], "rank": self.rank}

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Fold":
        """The fold that `to_dict` wrote."""
        return cls(tuple(values["kept"]), tuple(map(tuple, values["groups"])), values["rank"])


@dataclass(frozen=True)
class Sizes:
    """What the size algebra knows of a model: P0 parameters, N blocks of p, n of them in norms; matrices of a block."""

    P0: int
    N: int
    p: int
    n: int
    shapes: tuple[tuple[int, int], ...]
    cache: int

    @property
    def rest(self) -> int:
        """Embeddings, head and last norm."""
        return self.P0 - self.N * self.p

    @classmethod
    def of(cls, model: Any) -> "Sizes":
        """The sizes of a model, which may be on the meta device; `cache` is bytes a token in 16 bits."""
        block = uniform(model)[0]
        shapes = tuple(out_in(linear) for linear in linears(block).values())
        p = sum(tensor.numel() for tensor in block.parameters())
        shared = sum(t.numel() for linear in linears(block).values() for t in linear.parameters(recurse=False))
        return cls(total(model), len(blocks(model)), p, p - shared, shapes, _cache(model))

    def folded(self, fold: Fold) -> int:
        """Parameters after a fold, by Card (5) and (6)."""
        members = sum(map(len, fold.groups))
        extras = members * eq.adapters(fold.rank, self.shapes) if fold.rank else 0
        return eq.parameters(self.P0, self.p, self.n, self.N - len(fold.kept), tuple(map(len, fold.groups)), extras)


def total(model: nn.Module) -> int:
    """Parameters, shared ones once."""
    return sum(tensor.numel() for tensor in model.parameters())


def _cache(model: Any) -> int:
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", None) or 0
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return eq.cache_bytes(len(blocks(model)), heads, size)


def uniform(model: nn.Module) -> nn.ModuleList:
    """The blocks, or a one-line error if they are not alike in shape."""
    layers = blocks(model)
    if not hasattr(model, "config"):
        raise ValueError(f"{type(model).__name__} has no config: give a causal language model of transformers")
    first = _shapes(layers[0])
    for number, block in enumerate(layers):
        if _shapes(block) != first:
            raise ValueError(
                f"{type(model).__name__}: block {number} differs in shape from block 0, so weights cannot be shared: "
                "give a model of repeated, equal blocks"
            )
    return layers


def _shapes(block: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(tensor.shape)) for name, tensor in block.named_parameters()]


def removed(model: Any, kept: tuple[int, ...]) -> Any:
    """A copy with only the blocks `kept`, each with an index of its own in the cache.

    ValueError where a block of the smaller model would not do what it did: where it depends on its number, and the
    configuration has no list in which that can be said.
    """
    validate_kept(model, kept)
    gone = {id(block): None for number, block in enumerate(blocks(model)) if number not in kept}
    copy = deepcopy(model, gone)  # what goes is not copied first
    holder, name = stack(copy)
    setattr(holder, name, nn.ModuleList([getattr(holder, name)[block] for block in kept]))
    for layer, block in enumerate(getattr(holder, name)):
        for module in block.modules():
            for number in LAYER_NUMBERS & vars(module).keys():
                setattr(module, number, layer)
    keep_layers(copy.config, kept)  # in place: the copy's modules hold it too
    _validate_same_output(model, copy, kept)
    return copy


def _validate_same_output(model: Any, copy: Any, kept: tuple[int, ...]) -> None:
    """Raise unless the copy gives what the model does with its other blocks shut."""
    x = probe(model)
    g = torch.zeros(len(blocks(model)), device=x.device)
    g[list(kept)] = 1
    with torch.no_grad(), evaluating(model), evaluating(copy):
        with gates(model, g):
            expected = logits(model(x))
        if not alike(logits(copy(x)), expected):
            raise ValueError(
                f"{type(model).__name__} answers otherwise without a block than with that block shut: give a model "
                "whose layers do not depend on their number"
            )


def probe(model: Any, length: int = 32) -> Tensor:
    """A few tokens that any model of these sizes reads: (1, T)."""
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or length
    words = model.get_input_embeddings().num_embeddings
    return torch.arange(min(length, limit), device=next(model.parameters()).device)[None] % words


def alike(actual: Tensor, expected: Tensor) -> bool:
    """Whether two outputs are equal up to the rounding of their type: the root of its eps, times the largest number."""
    scale = expected.float().nan_to_num(0, 0, 0).abs().max()
    atol = torch.finfo(expected.dtype).eps ** 0.5 * float(scale)
    return actual.shape == expected.shape and torch.allclose(
        actual.float(), expected.float(), rtol=0, atol=atol, equal_nan=True
    )


def folded(model: Any, fold: Fold) -> Any:
    """A copy with blocks removed, groups sharing the weights of their first block, and adapters that do nothing yet."""
    return apply_fold(removed(model, fold.kept), fold.logical())


def unrolled(model: Any) -> Any:
    """A copy in which nothing is shared and no adapter is left: larger, plain, of the same outputs up to rounding."""
    plain = deepcopy(model)
    for block in blocks(plain):
        for module in block.modules():
            for name, tensor in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad))
        merge(block)
    return unfold(plain)


def merge(block: nn.Module) -> None:
    """Add a block's adapters to its matrices and take them out."""
    for name, module in list(block.named_modules()):
        if isinstance(module, LowRank):
            change = (module.B @ module.A).detach()  # (out, in)
            with torch.no_grad():
                module.base.get_parameter("weight").add_(change if isinstance(module.base, nn.Linear) else change.T)
            parent, _, last = name.rpartition(".")
            setattr(block.get_submodule(parent), last, module.base)


def alone(model: Any) -> list[nn.Module]:
    """The blocks that share nothing."""
    fold = getattr(model.config, "fold", None) or {"groups": []}
    grouped = {layer for group in fold["groups"] for layer in group}
    return [block for layer, block in enumerate(blocks(model)) if layer not in grouped]


def adapt_alone(model: nn.Module, rank: int) -> None:
    """Adapters for the blocks that share nothing, of frozen matrices frozen at zero; `merge` takes them out again."""
    for block in alone(model):
        adapt(block, rank)
        for module in block.modules():
            if isinstance(module, LowRank) and not module.base.get_parameter("weight").requires_grad:
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)


@contextmanager
def gates(model: nn.Module, g: Tensor | list[Tensor]) -> Iterator[nn.Module]:
    """The model with its blocks behind gates g (N,), Card (2), for a `with` block."""
    handles = [
        block.register_forward_hook(_gate_hook(g, number), with_kwargs=True)
        for number, block in enumerate(blocks(model))
    ]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def _gate_hook(g: Tensor | list[Tensor], number: int) -> Callable[..., Any]:
    def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any], out: Any) -> Any:
        h = args[0] if args else kwargs["hidden_states"]
        if isinstance(out, (tuple, list)):
            return (eq.gated(h, out[0], g[number]), *out[1:])
        return eq.gated(h, out, g[number])

    return hook


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[Tensor]]:
    """For a `with` block, what the first block reads and what every block gives, (N, T, d) each, of the last call."""
    states: list[Tensor] = []

    def enter(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        states.clear()
        states.append(args[0] if args else kwargs["hidden_states"])

    def leave(_: nn.Module, args: tuple, out: Any) -> None:
        states.append(out[0] if isinstance(out, (tuple, list)) else out)

    layers = blocks(model)
    handles = [layers[0].register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [block.register_forward_hook(leave) for block in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
