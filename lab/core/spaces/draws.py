"""Draws and orders that hang on a seed and on what a thing is, never on where in a table it stands."""

import hashlib
from collections.abc import Sequence
from typing import Any


def draw(item: Any, seed: int) -> float:
    """A number in [0, 1) by the seed and the item's repr."""
    return int.from_bytes(hashlib.sha256(f"{seed} {item!r}".encode()).digest()[:6], "big") / 2**48


def mixed(items: Sequence[Any], seed: int) -> list[int]:
    """The positions of the items in an order by chance: the same items come alike, however they stood."""
    draws = [draw(item, seed) for item in items]
    return sorted(range(len(items)), key=draws.__getitem__)
