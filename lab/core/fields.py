"""What a recipe's fields may hold, said once in words that the error repeats."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any


@dataclass(frozen=True)
class Allowed:
    """A test of a value, and the words for what passes it."""

    holds: Callable[[Any], object]
    words: str


def number(low: float = float("-inf"), high: float = float("inf"), *, above: float | None = None) -> Allowed:
    """A real number in [low, high], or strictly above `above`."""
    words = f"a number > {above:g}" if above is not None else f"a number in [{low:g}, {high:g}]"
    return Allowed(lambda v: _is(v, Real) and low <= v <= high and (above is None or above < v < float("inf")), words)


def whole(low: int, high: float = float("inf")) -> Allowed:
    """A whole number from `low` to `high`."""
    words = f"a whole number >= {low}" if high == float("inf") else f"a whole number in {low}..{high}"
    return Allowed(lambda v: _is(v, Integral) and low <= v <= high, words)


def one_of(*names: Any) -> Allowed:
    """One of the names."""
    return Allowed(lambda v: v in names, f"one of {', '.join(map(repr, names))}")


def some_of(*names: Any, least: int = 0) -> Allowed:
    """A tuple of different names, at least `least` of them."""
    words = f"{'some' if least else 'any'} of {', '.join(map(repr, names))}"
    return Allowed(lambda v: set(v) <= set(names) and least <= len(v) == len(set(v)), words)


def demand(recipe: Any, **fields: Allowed) -> None:
    """Raise a one-line ValueError that names the field, its value and what is allowed."""
    for name, allowed in fields.items():
        value = getattr(recipe, name)
        try:
            holds = allowed.holds(value)
        except TypeError:
            holds = False
        if not holds:
            raise ValueError(f"{type(recipe).__name__}: {name}={value!r} is not allowed: give {allowed.words}")


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
