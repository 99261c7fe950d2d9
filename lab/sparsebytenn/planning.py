"""Where in the arena what a network holds lies: things that never live at once may share it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .records import round_up


@dataclass
class Block:
    """Floats of the arena that are held from operator `first`'s turn to operator `last`'s; `at`: where, once placed."""

    floats: int
    first: int
    last: int
    at: int = 0

    def meets(self, other: "Block") -> bool:
        """Whether both are held at once."""
        return self.first <= other.last and other.first <= self.last


ORDERS: tuple[Callable[[Block], Any], ...] = (
    lambda block: (-block.floats, block.first),
    lambda block: (block.first - block.last, -block.floats),
    lambda block: (block.first, -block.floats),
    lambda block: -block.floats * (1 + block.last - block.first),
    lambda block: (-block.last, -block.floats),
)


TRIES = 30


def place(blocks: list[Block]) -> int:
    """Give every block its place; returns the floats of the arena.

    Several orders are tried; in the best of them, what ends highest is then taken first, again and again.
    """
    least = needed(blocks)
    queue = min((sorted(blocks, key=order) for order in ORDERS), key=_placed)
    best, end = list(queue), _placed(queue)
    for _ in range(TRIES):
        if end <= least:
            break
        highest = max(queue, key=lambda b: b.at + b.floats)
        queue.sort(key=lambda block: block is not highest)
        trial = _placed(queue)
        if trial < end:
            best, end = list(queue), trial
    return _placed(best)


def needed(blocks: list[Block]) -> int:
    """Floats held at once in the turn in which most are: no arena is smaller."""
    changes: dict[int, int] = {}
    for block in blocks:
        changes[block.first] = changes.get(block.first, 0) + round_up(block.floats, 16)
        changes[block.last + 1] = changes.get(block.last + 1, 0) - round_up(block.floats, 16)
    held = most = 0
    for turn in sorted(changes):
        held += changes[turn]
        most = max(most, held)
    return most


def _placed(blocks: list[Block]) -> int:
    """Each block in turn in the smallest gap that holds it between those it meets; returns where all of them end."""
    for i, block in enumerate(blocks):
        block.at = _gap(sorted((b for b in blocks[:i] if b.meets(block)), key=lambda b: b.at), block.floats)
    return max((b.at + round_up(b.floats, 16) for b in blocks), default=0)


def _gap(live: list[Block], floats: int) -> int:
    """The smallest gap of at least `floats` between live blocks, which come in order of place, else behind them."""
    at, gaps = 0, list[tuple[int, int]]()
    for block in live:
        if at + floats <= block.at:
            gaps.append((block.at - at, at))
        at = max(at, block.at + round_up(block.floats, 16))
    return min(gaps)[1] if gaps else at
