"""What a recipe's fields may hold, said once in words that the error repeats."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from numbers import Integral, Real
from typing import Any

import numpy as np

from .errors import cut, meant


@dataclass(frozen=True)
class Allowed:
    """A test of a value, and the words for what passes it."""

    holds: Callable[[Any], object]
    words: str


def real(low: float = -math.inf, high: float = math.inf, *, above: float | None = None) -> Allowed:
    """A finite real number from `low` to `high`, or strictly above `above`."""
    limits = [f"> {above:g}"] if above is not None else []
    limits += [f">= {low:g}"] if low > -math.inf else []
    limits += [f"<= {high:g}"] if high < math.inf else []
    least = -math.inf if above is None else above
    words = " ".join(["a number", " and ".join(limits)]).rstrip()
    return Allowed(lambda v: _is(v, Real) and math.isfinite(v) and low <= v <= high and v > least, words)


def integer(low: int, high: float = math.inf) -> Allowed:
    """An integer from `low` to `high`."""
    words = f"an integer >= {low}" if high == math.inf else f"an integer in {low}..{high}"
    return Allowed(lambda v: _is(v, Integral) and low <= v <= high, words)


def one_of(*names: Any) -> Allowed:
    """One of the names; True and False are not 1 and 0."""
    words = f"one of {', '.join(map(repr, names))}"
    return Allowed(lambda v: any(v == n and isinstance(v, bool) == isinstance(n, bool) for n in names), words)


def some_of(*names: Any, least: int = 0) -> Allowed:
    """A tuple of different names, at least `least` of them."""
    words = f"{f'at least {least}' if least else 'any'} of {', '.join(map(repr, names))}, each once"
    return Allowed(
        lambda v: isinstance(v, (tuple, list)) and set(v) <= set(names) and least <= len(v) == len(set(v)), words
    )


def by_name(recipe: Any) -> Any:
    """A decorator of recipes: a field that there is not, or that is given without its name, is a one-line TypeError."""
    init, names, title = recipe.__init__, list(inspect.signature(recipe).parameters), recipe.__name__

    @wraps(init)
    def begin(self: Any, *values: Any, **fields: Any) -> None:
        if values:
            raise TypeError(f"{title} takes its fields by name: give {title}({names[0]}={_shown(values[0])})")
        for name in fields:
            if name not in names:
                raise TypeError(f"{title} has no field {_shown(name)}{meant(name, names)}; it has {', '.join(names)}")
        init(self, **fields)

    recipe.__init__ = begin
    return recipe


def validate(recipe: Any, **fields: Allowed) -> None:
    """Raise a one-line ValueError that names the field, its value and what is allowed.

    A numpy number becomes the Python number that it holds, so that recipes print, compare and are stored alike.
    """
    for name, allowed in fields.items():
        value = getattr(recipe, name)
        if isinstance(value, np.generic):
            value = value.item()
            object.__setattr__(recipe, name, value)
        try:
            holds = allowed.holds(value)
        except (TypeError, ValueError, OverflowError):
            holds = False
        if not holds:
            raise ValueError(f"{type(recipe).__name__}: {name}={_shown(value)} is not allowed: give {allowed.words}")


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return cut(repr(value), 80)
