"""The engine's cost model, measured: each product in the pattern that runs fastest on this machine, in k-tiles."""

import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from ..core import kernels
from ..core.kernels import Sparse
from .compiler import K_TILE, mostly_single
from .packed import Map, Network, Op, write
from .records import round_up
from .runtime import arena_for, clocked, placed

K_TILES = (64, 96, 128, 192, 256, kernels.MAX_K_TILE)  # columns whose rows of X stay cached while all rows of W pass
SINGLE_K_TILES = (48, *K_TILES)  # those of single weights, whose tiles of pixels are wider
FEW_PIXELS = 64  # at most as many, and blocks of 8 or 16 rows may pay
REPEATS = 7


def tuned(network: Network) -> Network:
    """The network with every product in the form that took the least time here; without the C kernels, as it is.

    First the patterns are timed, each in k-tiles of the usual width: blocks of 4 rows x 1 column with the zero blocks
    left out and with them; single weights, where many are zero that no block spares; blocks of 8 and 16 rows on maps of
    few pixels. Then the k-tiles of the fastest.
    """
    if kernels.backend() != "c":
        return network
    return replace(network, ops=[_fastest(op, network.maps) for op in network.ops])


def _fastest(op: Op, maps: list[Map]) -> Op:
    if op.weights is None or op.kind == "linear" or op.int8 is not None:
        return op
    first = _quickest(op, maps, list(_patterns(op, maps[op.y])))
    return replace(op, weights=_quickest(op, maps, list(_tilings(first))))


def _quickest(op: Op, maps: list[Map], forms: list[Sparse]) -> Sparse:
    """The form of an operator's weights whose median time is least, clocked in turn: noise disturbs all alike."""
    if len(forms) == 1:
        return forms[0]
    clocks = [_Clock(replace(op, weights=form), maps) for form in forms]
    times: list[list[float]] = [[] for _ in clocks]
    for _ in range(REPEATS):
        for clock, seconds in zip(clocks, times, strict=True):
            seconds.append(clock.once())
    return forms[min(range(len(forms)), key=lambda i: statistics.median(times[i]))]


def _patterns(op: Op, y: Map) -> Iterator[Sparse]:
    """An operator's weights in every pattern that may pay, in k-tiles of the usual width."""
    assert op.weights is not None
    w = op.weights.to_dense()
    pixels = y.pixels if op.kind == "pointwise" else op.tile_rows * y.w
    wide = (8, kernels.GEMV_BLOCK) if pixels <= FEW_PIXELS else ()
    for block in (kernels.BLOCK, *wide):
        if round_up(y.c, block) > round_up(y.c, kernels.BLOCK):  # a map has no room for these rows
            continue
        k_tile = kernels.MAX_K_TILE if block == kernels.GEMV_BLOCK else K_TILE
        plain, sparse = (kernels.pack(w, block=block, k_tile=k_tile, dense=dense) for dense in (True, False))
        yield plain
        if len(sparse.blocks) < len(plain.blocks):
            yield sparse
    if mostly_single(w):
        yield kernels.pack(w, block=1, k_tile=K_TILE)


def _tilings(weights: Sparse) -> Iterator[Sparse]:
    """The same blocks in every k-tile."""
    w, is_dense = weights.to_dense(), weights.col is None
    if weights.block == kernels.GEMV_BLOCK:
        yield weights
        return
    for k_tile in SINGLE_K_TILES if weights.block == 1 else K_TILES:
        if k_tile < weights.columns or k_tile == K_TILES[-1]:
            yield kernels.pack(w, block=weights.block, k_tile=k_tile, dense=is_dense)


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
