"""Any outcome's network in the sparse engine, whichever method made its zeros and its grids."""

from typing import Any

from torch import nn

from .core.batch import Example, tensors, zeros_of
from .sparsebytenn.engine import compile


def engine(outcome: Any, example: Example | None = None, **options: Any) -> Any:
    """The network of an outcome in the engine, as `lab.sparsebytenn.engine.compile` makes it with these options.

    Blocks of zeros are left out, products whose inputs and weights lie on grids of 8 bits are done in int8: a network
    that was pruned and then quantised runs on sparse int8. What comes out is held to the network's own outputs.
    `example` is one input with its batch axis; left out, the one that the outcome keeps.
    """
    model = getattr(outcome, "model", None)
    if not isinstance(model, nn.Module):
        raise TypeError(f"a {type(outcome).__name__} holds no network: give the outcome of a run, such as lab.GAL's")
    if example is None:
        example = _example(outcome)
    return compile(model, example, **options)


def _example(outcome: Any) -> Example:
    """The example that an outcome keeps, itself or its shapes."""
    kept = getattr(outcome, "example", None)
    if kept is None:
        raise ValueError(f"a {type(outcome).__name__} keeps no example: give one, lab.engine(outcome, example=x)")
    return kept if next(tensors(kept), None) is not None else zeros_of(kept)
