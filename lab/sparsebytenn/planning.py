"""Where in the arena what a network holds lies: things that never live at once may share it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .records import round_up


@dataclass
class Region:
    """Floats of the arena that are held from operator `first`'s turn to operator `last`'s; `at`: where, once placed."""

    floats: int
    first: int
    last: int
    at: int = 0

    def meets(self, other: "Region") -> bool:
        """Whether both are held at once."""
        return self.first <= other.last and other.first <= self.last


ORDERS: tuple[Callable[[Region], Any], ...] = (
    lambda region: (-region.floats, region.first),
    lambda region: (region.first - region.last, -region.floats),
    lambda region: (region.first, -region.floats),
    lambda region: -region.floats * (1 + region.last - region.first),
    lambda region: (-region.last, -region.floats),
)
TRIES = 30


def place(regions: list[Region]) -> int:
    """Give every region its place; returns the floats of the arena.

    Several orders are tried; in the best of them, what ends highest is then taken first, again and again.
    """
    least = needed(regions)
    queue = min((sorted(regions, key=order) for order in ORDERS), key=_placed)
    best, end = list(queue), _placed(queue)
    for _ in range(TRIES):
        if end <= least:
            break
        highest = max(queue, key=lambda r: r.at + r.floats)
        queue.sort(key=lambda region: region is not highest)
        trial = _placed(queue)
        if trial < end:
            best, end = list(queue), trial
    return _placed(best)


def needed(regions: list[Region]) -> int:
    """Floats held at once in the turn in which most are: no arena is smaller."""
    changes: dict[int, int] = {}
    for region in regions:
        changes[region.first] = changes.get(region.first, 0) + round_up(region.floats, 16)
        changes[region.last + 1] = changes.get(region.last + 1, 0) - round_up(region.floats, 16)
    held = most = 0
    for turn in sorted(changes):
        held += changes[turn]
        most = max(most, held)
    return most


def _placed(regions: list[Region]) -> int:
    """Each region in turn in the smallest gap that holds it between those it meets; returns where all of them end."""
    for i, region in enumerate(regions):
        region.at = _gap(sorted((r for r in regions[:i] if r.meets(region)), key=lambda r: r.at), region.floats)
    return max((r.at + round_up(r.floats, 16) for r in regions), default=0)


def _gap(live: list[Region], floats: int) -> int:
    """The smallest gap of at least `floats` between live regions, which come in order of place, else behind them."""
    at, gaps = 0, list[tuple[int, int]]()
    for region in live:
        if at + floats <= region.at:
            gaps.append((region.at - at, at))
        at = max(at, region.at + round_up(region.floats, 16))
    return min(gaps)[1] if gaps else at
