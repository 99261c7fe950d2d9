"""Which blocks to do without: published rankings as baselines, each from the block to remove first to the last."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..core.batch import Example, call, inputs
from ..core.data import text
from ..core.models import learning
from ..core.task import evaluating
from . import equations as eq
from .folding import blocks, gates, recorded


def of_states(measure: Callable[[Tensor], Tensor], model: nn.Module, batches: Sequence[Example]) -> Tensor:
    """A mean over the tokens of all batches: `measure` takes what the first block reads and every block gives.

    That is (N + 1, tokens, d), of one batch at a time, for all of them would take more memory than the model.
    """
    total, tokens = torch.zeros(()), 0
    with torch.no_grad(), evaluating(model), recorded(model) as states:
        for x in batches:
            call(model, inputs(x))
            held = torch.stack([h.flatten(0, 1) for h in states])
            total, tokens = total.to(held.device) + measure(held) * held.shape[1], tokens + held.shape[1]
    return total / tokens


def loss(model: nn.Module, batches: Sequence[Example]) -> float:
    """Mean cross-entropy in nats a token."""
    with torch.no_grad(), evaluating(model):
        return sum(float(text.next_token_loss(call(model, inputs(x)), text.targets(x))) for x in batches) / len(batches)


def by_influence(model: nn.Module, batches: Sequence[Example], removals: int = 0) -> tuple[int, ...]:
    """ShortGPT: least block influence first; every block judged by itself."""
    return _ascending(of_states(eq.influence, model, batches).tolist())


def by_leave_one_out(model: nn.Module, batches: Sequence[Example], removals: int = 1) -> tuple[int, ...]:
    """SLEB: the block without which the loss is least, again after every one of `removals`; N tries a round."""
    count = len(blocks(model))
    order: list[int] = []
    scores: dict[int, float] = {}
    for _ in range(max(1, removals)):
        rest = [block for block in range(count) if block not in order]
        scores = {}
        for block in rest:
            with without(model, [other for other in rest if other != block], batches[0]):
                scores[block] = loss(model, batches)
        order.append(min(scores, key=lambda block: scores[block]))
    rest = sorted(set(scores) - set(order), key=lambda block: scores[block])
    return (*order, *rest)


@contextmanager
def without(model: nn.Module, kept: Sequence[int], x: Example) -> Iterator[nn.Module]:
    """The model with all blocks but the `kept` passed by, bit for bit as if they were not there.

    Where a block gives one tensor for a batch x, those passed by cost nothing; elsewhere they stand behind shut gates.
    """
    layers = blocks(model)
    gone = [block for number, block in enumerate(layers) if number not in kept]
    if gone and not _gives_a_tensor(model, x):
        g = torch.zeros(len(layers), device=next(model.parameters()).device)
        g[list(kept)] = 1
        with gates(model, g):
            yield model
        return
    for block in gone:
        block.forward = _passes
    try:
        yield model
    finally:
        for block in gone:
            del block.forward


def _passes(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def _gives_a_tensor(model: nn.Module, x: Example) -> bool:
    """Whether a block gives its states (N, T, d) alone."""
    kinds: list[bool] = []
    handle = blocks(model)[0].register_forward_hook(lambda _, __, out: kinds.append(isinstance(out, Tensor)))
    try:
        with torch.no_grad(), evaluating(model):
            call(model, inputs(x))
    finally:
        handle.remove()
    return kinds[0]


def by_perplexity(model: nn.Module, batches: Sequence[Example], removals: int = 0) -> tuple[int, ...]:
    """Shortened LLaMA's PPL: the block without which alone the loss is least goes first."""
    return by_leave_one_out(model, batches, 1)


def by_taylor(model: nn.Module, batches: Sequence[Example], removals: int = 0) -> tuple[int, ...]:
    """The first-order change of the loss without a block's weights, least first."""
    weights = [[p for p in block.parameters()] for block in blocks(model)]
    flat = [p for block in weights for p in block]
    with learning(flat, True), evaluating(model):
        total = torch.stack([text.next_token_loss(call(model, inputs(x)), text.targets(x)) for x in batches]).mean()
        gradients = iter(torch.autograd.grad(total, flat))
    return _ascending([float(eq.taylor([p.detach() for p in ps], [next(gradients) for _ in ps])) for ps in weights])


def _ascending(scores: Sequence[float]) -> tuple[int, ...]:
    return tuple(sorted(range(len(scores)), key=lambda block: scores[block]))


BASELINES: dict[str, Callable[..., tuple[int, ...]]] = {
    "influence": by_influence,
    "leave-one-out": by_leave_one_out,
    "perplexity": by_perplexity,
    "taylor": by_taylor,
}
