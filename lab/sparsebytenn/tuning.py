"""The engine's cost model, measured: each product as it runs fastest on this machine, sparse or dense, in k-tiles."""

import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from ..core import kernels
from ..core.kernels import Sparse
from .packed import Map, Network, Op, write
from .runtime import arena_for, clocked, placed

K_TILES = (64, 96, 128, 192, 256, kernels.MAX_K_TILE)  # columns whose rows of X stay cached while all rows of W pass
REPEATS = 7


def tuned(network: Network) -> Network:
    """The network with every product in the form that took the least time here; without the C kernels, as it is.

    A product of 4 x 1 blocks is timed with its zero blocks left out and with them, and with each of K_TILES.
    """
    if kernels.backend() != "c":
        return network
    return replace(network, ops=[_fastest(op, network.maps) for op in network.ops])


def _fastest(op: Op, maps: list[Map]) -> Op:
    if op.weights is None or op.weights.block != kernels.BLOCK or op.int8 is not None:
        return op
    candidates = [replace(op, weights=form) for form in _forms(op.weights)]
    clocks = [_Clock(candidate, maps) for candidate in candidates]
    times: list[list[float]] = [[] for _ in clocks]
    for _ in range(REPEATS):  # in turn, so that a noisy machine disturbs all alike
        for clock, seconds in zip(clocks, times, strict=True):
            seconds.append(clock.once())
    return candidates[min(range(len(candidates)), key=lambda i: statistics.median(times[i]))]


def _forms(weights: Sparse) -> Iterator[Sparse]:
    """Every way to pack the same matrix."""
    w = weights.to_dense()
    has_zeros = not (w.reshape(-1) != 0).all()
    for dense in (True, False) if has_zeros else (True,):
        for k_tile in K_TILES:
            if k_tile < weights.columns or k_tile == K_TILES[-1]:
                yield kernels.pack(w, k_tile=k_tile, dense=dense)


class _Clock:
    """One operator in a network of its own, on noise; a sum it takes in costs every form the same, and is left out."""

    def __init__(self, op: Op, maps: list[Map]) -> None:
        standalone = replace(op, x=0, y=1, add=None)
        ends = [replace(maps[op.x], buffer_rows=0), replace(maps[op.y], buffer_rows=0)]
        data = write(Network(ends, [standalone], (0,), (1,)))
        self.file = placed(data)
        self.arena = arena_for(self.file)
        self.arena[:] = np.random.default_rng(0).random(len(self.arena), np.float32)
        self.once()

    def once(self) -> float:
        """Seconds of this thread for one run."""
        engine = kernels.pointer(self.file), kernels.pointer(self.arena), kernels.isa()
        return clocked(partial(kernels.lib.engine_step, *engine, 0))
